"""Text to token numbers, by a tokenizer that was fitted on train and travels with the model."""

import json
from collections.abc import Sequence

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from assay.data.ragged import RaggedArray, from_rows
from assay.errors import DataError
from assay.params import TokenizerParams

PAD, UNKNOWN, MASK = "[PAD]", "[UNK]", "[MASK]"
SPECIAL_TOKENS = (PAD, UNKNOWN, MASK)
"""Their numbers are 0, 1 and 2."""

PAD_ID, UNKNOWN_ID, MASK_ID = range(3)

_BLOCK = 4096


def fit_tokenizer(texts: Sequence[str], params: TokenizerParams) -> str:
    """Learn a vocabulary; the same texts give the same tokenizer.

    Args:
        texts: The texts of train.
        params: Which algorithm and how many tokens.

    Returns:
        The tokenizer as JSON, for `TextEncoder`.

    Raises:
        DataError: There is nothing in the texts to make tokens of.
    """
    steps: list[normalizers.Normalizer] = [normalizers.NFC()]
    normalizer = normalizers.Sequence([*steps, normalizers.Lowercase()] if params.lowercase else steps)
    special = list(SPECIAL_TOKENS)
    if params.kind == "wordpiece":
        special += _inner_letters(texts, normalizer)
        tokenizer = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
        tokenizer.decoder = decoders.WordPiece()
    else:
        tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
        tokenizer.decoder = decoders.BPEDecoder()
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = (trainers.WordPieceTrainer if params.kind == "wordpiece" else trainers.BpeTrainer)(
        vocab_size=params.vocab_size,
        min_frequency=params.min_frequency,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in special],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    if tokenizer.get_vocab_size() <= len(special):
        raise DataError(
            f"The texts of train hold nothing that a token could be made of, or so many letters ({len(special)}) that "
            f"model.tokenizer.vocab_size={params.vocab_size} leaves no room for more. Look at the text column, or "
            "raise the number."
        )
    values = json.loads(tokenizer.to_str())
    values["added_tokens"] = [token for token in values["added_tokens"] if token["content"] in SPECIAL_TOKENS]
    return json.dumps(values, ensure_ascii=False)


def _inner_letters(texts: Sequence[str], normalizer: normalizers.Normalizer) -> list[str]:
    """Name every letter as it stands within a word, in a fixed order.

    The trainer numbers these in the order of a hash table, which is another one in every process, and breaks ties by
    number: without this, two runs on the same texts would learn different vocabularies.
    """
    letters: set[str] = set()
    for text in texts:
        letters.update(normalizer.normalize_str(text))
    return [f"##{letter}" for letter in sorted(letters) if not letter.isspace()]


class TextEncoder:
    """Turns texts into token numbers.

    Args:
        tokenizer: The tokenizer as JSON.

    Attributes:
        num_tokens: Tokens that it tells apart, padding included.

    Raises:
        ValueError: It is no tokenizer, or its padding is not number 0.
    """

    def __init__(self, tokenizer: str) -> None:
        try:
            self._tokenizer = Tokenizer.from_str(tokenizer)
        except Exception as error:  # the library raises its bare Exception
            raise ValueError(f"is no tokenizer ({error})") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.num_tokens = max(self._tokenizer.get_vocab().values()) + 1
        if self._tokenizer.token_to_id(PAD) != PAD_ID:
            raise ValueError(f"gives {PAD} the number {self._tokenizer.token_to_id(PAD)}, not {PAD_ID}")
        self.unknown_id = self._number(UNKNOWN)
        self.mask_id = self._number(MASK)

    def _number(self, token: str) -> int:
        number = self._tokenizer.token_to_id(token)
        if number is None:
            raise ValueError(f"has no token {token}")
        return int(number)

    def encode(self, texts: Sequence[str], max_length: int) -> RaggedArray:
        """Encode texts.

        Args:
            texts: At least one.
            max_length: Tokens that are kept of each; special tokens at the ends, where the tokenizer adds some, count.

        Returns:
            Rows of int32 ``[token]``; a text without any token is one unknown token.
        """
        self._tokenizer.enable_truncation(max_length)
        rows: list[np.ndarray] = []
        for start in range(0, len(texts), _BLOCK):
            encoded = self._tokenizer.encode_batch_fast(list(texts[start : start + _BLOCK]))
            rows += [np.array(one.ids or [self.unknown_id], np.int32) for one in encoded]
        return from_rows(rows)

    def tokens(self, text: str, max_length: int) -> list[str]:
        """Return the tokens of one text in words."""
        self._tokenizer.enable_truncation(max_length)
        return list(self._tokenizer.encode(text).tokens)
