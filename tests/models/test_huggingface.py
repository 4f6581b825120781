"""A BERT encoder in Hugging Face's files: the same hidden states as an independent computation, or a clear refusal."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from assay.data.tokenizer import TextEncoder
from assay.errors import ModelFileError
from assay.models.build import build_model
from assay.models.huggingface_files import read_folder
from assay.params import HuggingFaceStart
from assay.records import StartRef
from assay.training.start import Start, fresh_module, read_start

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "good",
    "film",
    "bad",
    "##ly",
    "cafe",
    ".",
    "!",
    "the",
    "plot",
    "is",
]
CONFIG = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": 12,
    "intermediate_size": 20,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 9,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "vocab_size": len(WORDS),
}
_ERF = np.vectorize(math.erf)


def write_encoder(folder: Path, prefix: str = "", **changes: object) -> dict[str, np.ndarray]:
    """Write a random encoder; returns its tensors under their bare names."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(5)

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.3, shape).astype(np.float32)

    dim, inner, count = 12, 20, len(WORDS)
    tensors = {
        "embeddings.word_embeddings.weight": draw(count, dim),
        "embeddings.position_embeddings.weight": draw(9, dim),
        "embeddings.token_type_embeddings.weight": draw(2, dim),
        "embeddings.LayerNorm.weight": 1 + draw(dim),
        "embeddings.LayerNorm.bias": draw(dim),
    }
    for layer in range(2):
        for name, rows, columns in (
            ("attention.self.query", dim, dim),
            ("attention.self.key", dim, dim),
            ("attention.self.value", dim, dim),
            ("attention.output.dense", dim, dim),
            ("intermediate.dense", inner, dim),
            ("output.dense", dim, inner),
        ):
            tensors[f"encoder.layer.{layer}.{name}.weight"] = draw(rows, columns)
            tensors[f"encoder.layer.{layer}.{name}.bias"] = draw(rows)
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            tensors[f"encoder.layer.{layer}.{name}.weight"] = 1 + draw(dim)
            tensors[f"encoder.layer.{layer}.{name}.bias"] = draw(dim)
    extra = {"pooler.dense.weight": draw(dim, dim), "embeddings.position_ids": np.arange(9)[None]}
    save_file({f"{prefix}{name}": value for name, value in (tensors | extra).items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return tensors


def reference(tensors: dict[str, np.ndarray], tokens: list[int]) -> np.ndarray:
    """BERT's hidden states of one text in float64, written down from the paper."""
    get = {name: value.astype(np.float64) for name, value in tensors.items()}

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ get[f"{name}.weight"].T + get[f"{name}.bias"]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(1, keepdims=True)
        return (
            centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-12) * get[f"{name}.weight"] + get[f"{name}.bias"]
        )

    x = get["embeddings.word_embeddings.weight"][tokens] + get["embeddings.token_type_embeddings.weight"][0]
    x = norm(x + get["embeddings.position_embeddings.weight"][: len(tokens)], "embeddings.LayerNorm")
    for layer in range(2):
        at = f"encoder.layer.{layer}"
        query, key, value = (linear(x, f"{at}.attention.self.{name}") for name in ("query", "key", "value"))
        heads = []
        for head in range(3):
            part = slice(4 * head, 4 * head + 4)
            scores = np.exp(query[:, part] @ key[:, part].T / 2.0)
            heads.append(scores / scores.sum(1, keepdims=True) @ value[:, part])
        x = norm(
            x + linear(np.concatenate(heads, 1), f"{at}.attention.output.dense"), f"{at}.attention.output.LayerNorm"
        )
        inner = linear(x, f"{at}.intermediate.dense")
        inner = inner * 0.5 * (1 + _ERF(inner / math.sqrt(2)))
        x = norm(x + linear(inner, f"{at}.output.dense"), f"{at}.output.LayerNorm")
    return x


def start_of(folder: Path, max_length: int = 9) -> Start:
    ref = StartRef("huggingface", str(folder), str(folder), read_folder(folder)[1])
    return read_start(ref, HuggingFaceStart(path=str(folder), max_length=max_length))


@pytest.mark.parametrize("prefix", ["", "bert."], ids=["encoder alone", "below a head"])
def test_hidden_states_are_those_of_the_paper(tmp_path: Path, prefix: str) -> None:
    tensors = write_encoder(tmp_path, prefix)
    start = start_of(tmp_path)
    spec = start.spec.__class__(**{**vars(start.spec), "class_names": ("a", "b")})
    module = fresh_module(spec, 0, start).eval()
    texts = ["A goodly film!", "bad.", "good bad good bad good bad good bad good"]
    rows = TextEncoder(spec.tokenizer).encode(texts, 9)
    tokens = torch.from_numpy(rows.padded(np.arange(3), 9, 0).astype(np.int64))
    with torch.no_grad():
        states = module.encode(tokens).numpy()  # type: ignore[operator]
    for row in range(3):
        numbers = rows.row(row).tolist()
        assert np.abs(states[row, : len(numbers)] - reference(tensors, numbers)).max() < 1e-5


def test_the_tokenizer_is_bert_s_own(tmp_path: Path) -> None:
    write_encoder(tmp_path)
    encoder = TextEncoder(start_of(tmp_path).spec.tokenizer)
    assert encoder.tokens("A goodly Café!", 9) == ["[CLS]", "a", "good", "##ly", "cafe", "!", "[SEP]"]
    assert encoder.tokens("good " * 20, 5) == ["[CLS]", "good", "good", "good", "[SEP]"]
    assert (encoder.unknown_id, encoder.mask_id) == (1, 4)


def test_fewer_positions_may_be_wanted_and_never_more_than_there_are(tmp_path: Path) -> None:
    write_encoder(tmp_path)
    assert start_of(tmp_path, 5).tensors["positions.weight"].shape == (5, 12)
    assert start_of(tmp_path, 500).spec.shape == (9,)


def test_the_output_layer_is_fresh_and_all_else_is_given(tmp_path: Path) -> None:
    write_encoder(tmp_path)
    start = start_of(tmp_path)
    spec = start.spec.__class__(**{**vars(start.spec), "class_names": ("a", "b", "c")})
    given, fresh = fresh_module(spec, 3, start).state_dict(), build_model(spec, 3).state_dict()
    assert torch.equal(given["output.weight"], fresh["output.weight"])
    assert all(torch.equal(given[name], start.tensors[name]) for name in given if not name.startswith("output."))


@pytest.mark.parametrize(
    "change",
    [{"model_type": "roberta"}, {"hidden_act": "gelu_new"}, {"layer_norm_eps": 1e-5}, {"is_decoder": True}],
    ids=lambda change: next(iter(change)),
)
def test_other_architectures_are_refused_by_name(tmp_path: Path, change: dict[str, object]) -> None:
    write_encoder(tmp_path, **change)
    with pytest.raises(ModelFileError, match=next(iter(change))):
        start_of(tmp_path)


@pytest.mark.parametrize("changes", [{"num_hidden_layers": 3}, {"num_hidden_layers": 1}], ids=["missing", "unknown"])
def test_weights_of_another_model_are_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    write_encoder(tmp_path, **changes)
    with pytest.raises(ModelFileError, match=r"holds .*encoder\.layer\."):
        start_of(tmp_path)


def test_a_pickle_alone_is_refused_and_said(tmp_path: Path) -> None:
    write_encoder(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelFileError, match=r"pytorch_model.bin.*pickles \(.bin\) are not read"):
        read_folder(tmp_path)


def test_the_digest_covers_every_file_and_a_later_change_is_noticed(tmp_path: Path) -> None:
    write_encoder(tmp_path)
    before = read_folder(tmp_path)[1]
    ref = StartRef("huggingface", "x", str(tmp_path), before)
    (tmp_path / "vocab.txt").write_text("\n".join([*WORDS[:-1], "was"]) + "\n")
    assert read_folder(tmp_path)[1] != before
    with pytest.raises(ModelFileError, match="was changed since the run was planned"):
        read_start(ref, HuggingFaceStart(path=str(tmp_path)))


def test_a_truncated_weights_file_is_refused(tmp_path: Path) -> None:
    write_encoder(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ModelFileError, match="no whole safetensors file"):
        start_of(tmp_path)


@pytest.mark.slow
def test_real_weights_tell_meanings_apart() -> None:
    folder = os.environ.get("ASSAY_TEST_ENCODER", "")
    if not folder:
        pytest.skip("ASSAY_TEST_ENCODER names no folder with the files of all-MiniLM-L6-v2")
    start = start_of(Path(folder), 64)
    spec = start.spec.__class__(**{**vars(start.spec), "class_names": ("a", "b")})
    module = fresh_module(spec, 0, start).eval()
    texts = ["A man is eating food.", "Somebody eats a meal.", "The stock market fell sharply."]
    rows = TextEncoder(spec.tokenizer).encode(texts, 64)
    vectors = []
    for row in range(3):
        with torch.no_grad():
            states = module.encode(torch.from_numpy(rows.row(row)[None].astype(np.int64)))  # type: ignore[operator]
        vectors.append(torch.nn.functional.normalize(states[0].mean(0), dim=0))
    assert float(vectors[0] @ vectors[1]) > 0.6 > 0.2 > float(vectors[0] @ vectors[2])
