"""Normalisation that travels inside the model, fitted on train only."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
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


class NormalizeFeatures(nn.Module):
    """Subtract each feature's mean and divide by its standard deviation; what is missing becomes 0, the mean.

    Args:
        mean: Mean of each feature over the train split.
        std: Standard deviation of each feature over the train split; a constant feature (0) is only centred.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        scale = [value if value > 0 else 1.0 for value in std]
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(scale, dtype=torch.float32))

    def forward(self, values: Float[Tensor, "*batch feature"]) -> Float[Tensor, "*batch feature"]:
        """Return the normalised values.

        Args:
            values: Raw values; NaN where one is missing or padding.
        """
        # Replaced before the arithmetic, too: NaN times the gradient 0 would be NaN.
        missing = values.isnan()
        return ((values.masked_fill(missing, 0.0) - self.mean) / self.std).masked_fill(missing, 0.0)


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation of features, which takes a batch of one, too.

    One value has no variance to be normalised by: while training it is normalised by the running statistics, as later
    in use, and leaves them as they are. The last batch of an epoch may be that small.
    """

    def forward(self, inputs: Float[Tensor, "batch feature"]) -> Float[Tensor, "batch feature"]:
        """Return the normalised features."""
        return _by_running_statistics(self, inputs) if _is_alone(self, inputs) else super().forward(inputs)


class BatchNormMaps(nn.BatchNorm2d):
    """The same for the channels of images; there it takes a batch of one whose maps are a pixel."""

    def forward(
        self, inputs: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch channel height width"]:
        """Return the normalised maps."""
        return _by_running_statistics(self, inputs) if _is_alone(self, inputs) else super().forward(inputs)


def _is_alone(norm: nn.BatchNorm1d | nn.BatchNorm2d, inputs: Tensor) -> bool:
    return norm.training and inputs.numel() == inputs.shape[1]


def _by_running_statistics(norm: nn.BatchNorm1d | nn.BatchNorm2d, inputs: Tensor) -> Tensor:
    return F.batch_norm(inputs, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
