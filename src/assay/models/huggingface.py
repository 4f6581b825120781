"""A BERT encoder's weights under the names of our own transformer."""

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from assay.errors import ModelFileError
from assay.models.huggingface_files import WEIGHTS_FILE
from assay.params import TransformerParams

_LAYER = {
    "attention.self.query": "attention.query",
    "attention.self.key": "attention.key",
    "attention.self.value": "attention.value",
    "attention.output.dense": "attention.output",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "widen",
    "output.dense": "narrow",
    "output.LayerNorm": "feedforward_norm",
}
"""Part of an encoder layer there -> here; each has a weight and a bias."""

_WORDS, _PLACES, _SEGMENTS = (f"embeddings.{name}_embeddings.weight" for name in ("word", "position", "token_type"))
_PREFIX = "bert."
_LEFT_OUT = ("pooler.", "cls.", "classifier.", "qa_outputs.")
"""Layers behind the encoder; each task has its own."""


def read_encoder(files: Mapping[str, bytes], folder: Path, params: TransformerParams) -> dict[str, Tensor]:
    """Return an encoder's weights as the state of a `assay.models.transformer.Transformer`, its output layer left out.

    A text is one segment, so the vector of segment 0 is part of every position's. In exact arithmetic the hidden states
    are the encoder's own.

    Args:
        files: What `assay.models.huggingface_files.read_folder` gave.
        folder: Where they are from, for messages.
        params: The architecture, from `assay.models.huggingface_files.read_config`.

    Returns:
        Name -> float32 tensor.

    Raises:
        ModelFileError: The file is no safetensors file, or a weight is missing, not known, or of another shape.

    Source:
        Devlin et al., "BERT", NAACL 2019, section 3 and figure 2.
    """
    place = folder / WEIGHTS_FILE
    try:
        found = {
            name.removeprefix(_PREFIX)
            .replace("LayerNorm.gamma", "LayerNorm.weight")
            .replace("LayerNorm.beta", "LayerNorm.bias"): tensor.float()
            for name, tensor in safetensors.torch.load(files[WEIGHTS_FILE]).items()
        }
    except SafetensorError as error:
        raise ModelFileError(f"{place}: is no whole safetensors file ({error}). Fetch it again.") from error
    found = {
        name: tensor
        for name, tensor in found.items()
        if not name.startswith(_LEFT_OUT) and name != "embeddings.position_ids"
    }
    wanted = _names(params.num_layers)
    missing = sorted({*wanted.values(), _PLACES, _SEGMENTS} - found.keys())
    unknown = sorted(found.keys() - {*wanted.values(), _PLACES, _SEGMENTS})
    if missing or unknown:
        problem = f"holds no {missing[0]}" if missing else f"holds {unknown[0]}, which is not known"
        raise ModelFileError(f"{place}: {problem}. Take the files of a BERT encoder, all of one model.")
    places = found[_PLACES]
    if len(places) < params.max_length:
        raise ModelFileError(
            f"{place}: knows {len(places)} positions, and config.json says more. Take files of one model."
        )
    tensors = {ours: found[theirs] for ours, theirs in wanted.items()}
    return tensors | {"positions.weight": places[: params.max_length] + found[_SEGMENTS][0]}


def _names(num_layers: int) -> dict[str, str]:
    """Name of each tensor here -> there, but for the positions."""
    names = {"tokens.weight": _WORDS}
    for kind in ("weight", "bias"):
        names[f"norm.{kind}"] = f"embeddings.LayerNorm.{kind}"
        for layer in range(num_layers):
            for theirs, ours in _LAYER.items():
                names[f"layers.{layer}.{ours}.{kind}"] = f"encoder.layer.{layer}.{theirs}.{kind}"
    return names
