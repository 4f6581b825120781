"""A spec in, a module with fresh weights out."""

import torch
from torch import nn

from assay.models.cnn import Cnn
from assay.models.spec import ModelSpec
from assay.params import ModelParams


def build_model(spec: ModelSpec, seed: int) -> nn.Module:
    """Build a model; its initial weights depend on the spec and the seed alone.

    Args:
        spec: Architecture, input and output.
        seed: Seed of the initial weights, 0 to 2**32 - 1.

    Returns:
        The module on the CPU, in training mode, weights in channels-last layout. It maps float32 raw pixel
        values ``[batch, channel, height, width]`` to logits ``[batch, class]``.

    Raises:
        DataError: The images are too small for the model.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = Cnn(spec)
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module


def require_fit(params: ModelParams, image_shape: tuple[int, int, int]) -> None:
    """Make sure that a model can be built for images of this shape, without building its weights.

    Args:
        params: The model section.
        image_shape: Height, width, channels.

    Raises:
        DataError: The images are too small for the model.
    """
    statistics = (0.0,) * image_shape[2], (1.0,) * image_shape[2]
    with torch.device("meta"):
        Cnn(ModelSpec(params, image_shape, ("a", "b"), 0.0, *statistics))
