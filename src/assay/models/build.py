"""A spec in, a module with fresh weights out."""

from collections.abc import Callable

import torch
from torch import nn

from assay.models.fitting import input_shape, require_kind
from assay.models.spec import DropoutProbs, ModelSpec
from assay.params import ModelParams
from assay.records import TEXT


def build_model(spec: ModelSpec, seed: int) -> nn.Module:
    """Build a model; its initial weights depend on the spec and the seed alone.

    Args:
        spec: Architecture, input and output.
        seed: Seed of the initial weights, 0 to 2**32 - 1.

    Returns:
        The module on the CPU, in training mode, image weights in channels-last layout. It maps what `ModelSpec` says
        to logits ``[batch, class]``.

    Raises:
        DataError: The data is too small for the model.
        ParamsError: The model does not take data of this kind.
    """
    require_kind(spec.model, spec.kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = _model_class(spec.model.kind)(spec)
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module


def require_fit(params: ModelParams, kind: str, shape: tuple[int, ...]) -> None:
    """Make sure that a model can be built for such data, without building its weights.

    Args:
        params: The model section.
        kind: Kind of data.
        shape: Of one example, as in `assay.records.DataRef`.

    Raises:
        DataError: The data is too small for the model.
        ParamsError: The model does not take data of this kind.
    """
    require_kind(params, kind)
    num_channels = 0 if kind == TEXT else shape[-1]
    statistics = (0.0,) * num_channels, (1.0,) * num_channels
    num_tokens = 16 if kind == TEXT else 0
    with torch.device("meta"):
        _model_class(params.kind)(
            ModelSpec(
                params, input_shape(params, kind, shape), ("a", "b"), DropoutProbs(), *statistics, kind, num_tokens
            )
        )


def _model_class(kind: str) -> Callable[[ModelSpec], nn.Module]:
    """Import only what is asked for."""
    match kind:
        case "cnn":
            from assay.models.cnn import Cnn

            return Cnn
        case "lstm":
            from assay.models.lstm import Lstm

            return Lstm
        case "transformer":
            from assay.models.transformer import Transformer

            return Transformer
        case _:
            from assay.models.mlp import Mlp

            return Mlp
