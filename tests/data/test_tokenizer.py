import numpy as np
import pytest

from assay.data.tokenizer import MASK_ID, PAD_ID, SPECIAL_TOKENS, UNKNOWN_ID, TextEncoder, fit_tokenizer
from assay.errors import DataError
from assay.params import TokenizerParams

TEXTS = [
    "The film is great, truly great!",
    "the plot is thin",
    "a great cast and a thin plot",
    "is it great? it is",
] * 3
KINDS = ["wordpiece", "bpe"]


@pytest.fixture(params=KINDS)
def params(request: pytest.FixtureRequest) -> TokenizerParams:
    return TokenizerParams(kind=request.param, vocab_size=60)


def test_the_same_texts_give_the_same_tokenizer(params: TokenizerParams) -> None:
    assert len({fit_tokenizer(TEXTS, params) for _ in range(5)}) == 1
    assert fit_tokenizer(TEXTS, params) != fit_tokenizer([*TEXTS, "zebra zebra zebra"], params)


def test_numbers_are_within_the_vocabulary_and_special_tokens_come_first(params: TokenizerParams) -> None:
    encoder = TextEncoder(fit_tokenizer(TEXTS, params))
    assert encoder.num_tokens <= 60
    rows = encoder.encode(TEXTS, 50)
    assert rows.values.dtype == np.int32
    assert rows.values.min() >= len(SPECIAL_TOKENS) and rows.values.max() < encoder.num_tokens
    assert (encoder.unknown_id, encoder.mask_id) == (UNKNOWN_ID, MASK_ID)


def test_what_train_did_not_have_is_unknown(params: TokenizerParams) -> None:
    encoder = TextEncoder(fit_tokenizer(TEXTS, params))
    assert UNKNOWN_ID in encoder.encode(["жук"], 10).values
    assert PAD_ID not in encoder.encode(["[PAD] great"], 10).row(0)[1:]


def test_case_matters_only_if_asked_to() -> None:
    for lowercase in (True, False):
        encoder = TextEncoder(fit_tokenizer(TEXTS, TokenizerParams(vocab_size=60, lowercase=lowercase)))
        same = encoder.encode(["The"], 9).values.tolist() == encoder.encode(["the"], 9).values.tolist()
        assert same == lowercase


def test_long_texts_are_cut_and_empty_ones_are_one_unknown_token(params: TokenizerParams) -> None:
    encoder = TextEncoder(fit_tokenizer(TEXTS, params))
    rows = encoder.encode([TEXTS[0], "", " "], 3)
    assert rows.lengths(np.arange(3)).tolist() == [3, 1, 1]
    assert rows.row(0).tolist() == encoder.encode([TEXTS[0]], 50).row(0)[:3].tolist()
    assert rows.row(1).tolist() == [UNKNOWN_ID]


def test_texts_without_anything_to_tokenize_are_refused(params: TokenizerParams) -> None:
    with pytest.raises(DataError, match="hold nothing that a token could be made of"):
        fit_tokenizer(["", "  "], params)


def test_what_is_no_tokenizer_is_refused() -> None:
    with pytest.raises(ValueError, match="is no tokenizer"):
        TextEncoder("{}")
