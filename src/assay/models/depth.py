"""A model's layers from the input to the output, for training that treats them differently."""

from torch import nn

_BOTTOM = frozenset({"tokens", "positions", "first"})
_TOP = frozenset({"pooling", "output"})


def layers_of(module: nn.Module) -> list[list[nn.Parameter]]:
    """Return the parameters of each layer, the lowest first.

    Token vectors, with all that tells a token's place, are one layer; so is each encoder layer, each LSTM layer, and
    each convolution or linear layer with its normalisation and residual blocks. The output layer, with the pooling and
    the last normalisation before it, is the last.

    Args:
        module: A model that `assay.models.build.build_model` built.
    """
    layers: dict[tuple[int, int], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        layers.setdefault(_place(name, getattr(module, "is_post", False)), []).append(parameter)
    return [layers[place] for place in sorted(layers)]


def _place(name: str, is_post: bool) -> tuple[int, int]:
    """Where a parameter stands: bottom, stack (and where in it), between stack and top, top."""
    first, *rest = name.split(".")
    if first in _BOTTOM or (first == "norm" and is_post):
        return 0, 0
    if rest and rest[0].isdigit():
        return 1, int(rest[0])
    return (3, 0) if first in _TOP or first == "norm" else (2, 0)
