"""Normalisation that travels inside the model, fitted on train only."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Normalize(nn.Module):
    """Subtract each channel's mean and divide by its standard deviation.

    Args:
        mean: Mean of each channel over the train split.
        std: Standard deviation of each channel over the train split; a constant channel (0) is only centred.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        scale = [value if value > 0 else 1.0 for value in std]
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(scale, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(
        self, images: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch channel height width"]:
        """Return the normalised images."""
        # As large as an image and laid out like it: a few channels at a time, broadcasting does not vectorise.
        one = torch.zeros_like(images[:1])
        return (images - (one + self.mean)) / (one + self.std)
