"""An encoder in Hugging Face's files: what is read of them, and what they hash to; torch is not needed for it."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from assay.errors import ModelFileError
from assay.params import TokenizerParams, TransformerParams

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
TOKENIZER_FILE, VOCABULARY_FILE, TOKENIZER_CONFIG_FILE = "tokenizer.json", "vocab.txt", "tokenizer_config.json"
_NEEDED = (CONFIG_FILE, WEIGHTS_FILE)
_FIXED = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "layer_norm_eps": 1e-12,
}
"""What the transformer of `assay.models.transformer` is in any case."""


def read_folder(folder: Path) -> tuple[dict[str, bytes], str]:
    """Read an encoder's files.

    Returns:
        Name -> content, and the SHA-256 (hex) over names and contents. Of ``tokenizer.json`` and ``vocab.txt`` the
        first one that is there is read.

    Raises:
        ModelFileError: One of them is not there or cannot be read.
    """
    tokenizer = [TOKENIZER_FILE] if (folder / TOKENIZER_FILE).is_file() else [VOCABULARY_FILE, TOKENIZER_CONFIG_FILE]
    files: dict[str, bytes] = {}
    for name in (*_NEEDED, *tokenizer):
        try:
            files[name] = (folder / name).read_bytes()
        except OSError as error:
            if name == TOKENIZER_CONFIG_FILE and isinstance(error, FileNotFoundError):
                continue
            raise ModelFileError(_advice(folder, name, error)) from error
    digest = hashlib.sha256()
    for name, content in files.items():
        digest.update(f"{name} {hashlib.sha256(content).hexdigest()}\n".encode())
    return files, digest.hexdigest()


def _advice(folder: Path, name: str, error: OSError) -> str:
    if name == WEIGHTS_FILE and isinstance(error, FileNotFoundError):
        others = sorted(path.name for path in folder.glob("*") if path.suffix in (".bin", ".safetensors", ".onnx"))
        found = f"there is {', '.join(others)}. " if others else ""
        return (
            f"{folder / name}: is not there; {found}Weights are read from this one file; pickles (.bin) are not read "
            "at all. Take the model's safetensors file."
        )
    return (
        f"{folder / name}: cannot be read ({error.strerror}). train.start.path has to name a folder with "
        f"{CONFIG_FILE}, {WEIGHTS_FILE} and {TOKENIZER_FILE} or {VOCABULARY_FILE}."
    )


def read_config(files: Mapping[str, bytes], folder: Path, max_length: int) -> TransformerParams:
    """Return the architecture that ``config.json`` describes.

    Args:
        files: What `read_folder` gave.
        folder: Where they are from, for messages.
        max_length: Tokens that are to be read at most.

    Raises:
        ModelFileError: It is no BERT encoder, or one of a form that the transformer here does not have.
    """
    place = folder / CONFIG_FILE
    try:
        config: dict[str, Any] = json.loads(files[CONFIG_FILE])
        for name, wanted in _FIXED.items():
            found = config.get(name, wanted)
            if found != wanted or (name == "model_type" and name not in config):
                raise ModelFileError(
                    f"{place}: {name} is {config.get(name)!r}, and only {wanted!r} is understood. Take a BERT encoder "
                    "(BERT, MiniLM, BGE, E5 and others)."
                )
        return TransformerParams(
            dim=config["hidden_size"],
            num_layers=config["num_hidden_layers"],
            num_heads=config["num_attention_heads"],
            feedforward_dim=config["intermediate_size"],
            positions="learned",
            norm="post",
            activation="gelu",
            pooling="mean",
            max_length=min(max_length, int(config["max_position_embeddings"])),
            tokenizer=TokenizerParams(kind="wordpiece", vocab_size=config["vocab_size"]),
        )
    except (ValueError, TypeError, KeyError) as error:
        raise ModelFileError(f"{place}: does not describe a BERT encoder ({error!r}).") from error


def read_tokenizer(files: Mapping[str, bytes], folder: Path) -> str:
    """Return the encoder's tokenizer as JSON, with the special tokens that it puts around a text.

    Args:
        files: What `read_folder` gave.
        folder: Where they are from, for messages.

    Raises:
        ModelFileError: It is no tokenizer.
    """
    try:
        if TOKENIZER_FILE in files:
            return files[TOKENIZER_FILE].decode()
        settings = json.loads(files.get(TOKENIZER_CONFIG_FILE, b"{}"))
        return _from_vocabulary(files[VOCABULARY_FILE].decode().splitlines(), settings)
    except (ValueError, KeyError) as error:
        raise ModelFileError(f"{folder}: holds no tokenizer of a BERT encoder ({error!r}).") from error


def _from_vocabulary(vocabulary: list[str], settings: Mapping[str, Any]) -> str:
    """Build BERT's tokenizer out of its list of tokens, number 0 first.

    Source:
        Devlin et al., "BERT", NAACL 2019, section 3; word pieces: Wu et al., 2016, section 4.1.
    """
    numbers = {token: number for number, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, numbers[token]) for token in ("[CLS]", "[SEP]")]
    )
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(
        [token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if token in numbers]
    )
    return str(tokenizer.to_str())
