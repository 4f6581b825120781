"""A convolution, what goes into it and what comes back, for tests of pooled convolutions."""

import torch
import torch.nn.functional as F
from torch import nn

from assay.models.pooled_conv import is_worth_it


def layer(shape, dtype, seed: int = 0) -> tuple[torch.Tensor, nn.Conv2d, torch.Tensor]:
    """Return features, a convolution and a gradient of the result.

    Args:
        shape: Batch, input and output channels, height and width.
        dtype: Type of all.
        seed: Seed of the random numbers.
    """
    batch, channels, out_channels, height, width = shape
    generator = torch.Generator().manual_seed(seed)
    conv = nn.Conv2d(channels, out_channels, 3, padding=1)
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 10)
    features = torch.randn((batch, channels, height, width), generator=generator)
    gradient = torch.randn((batch, out_channels, height // 2, width // 2), generator=generator)
    conv = conv.to(dtype)
    assert is_worth_it(conv, height, width, 1 << 60, num_threads=1, kind=torch.float32)
    return features.to(dtype), conv, gradient.to(dtype)


def run(function, features: torch.Tensor, conv: nn.Conv2d, gradient: torch.Tensor) -> list[torch.Tensor]:
    """Return the result and the gradients of weights and biases, and that of the input where it is wanted."""
    features = features.detach().requires_grad_(features.requires_grad)
    conv.zero_grad()
    result = function(features, conv)
    result.backward(gradient)
    found = [result, conv.weight.grad, conv.bias.grad, *([features.grad] if features.requires_grad else [])]
    return [tensor.detach().clone() for tensor in found]


def by_torch(features: torch.Tensor, conv: nn.Conv2d) -> torch.Tensor:
    return F.relu(F.max_pool2d(conv(features), 2))


def close_up(features: torch.Tensor, conv: nn.Conv2d) -> torch.Tensor:
    """Return the four numbers of each window before pooling, float64 ``[batch, row, column, channel, 4]``."""
    wide = F.conv2d(features.double(), conv.weight.double(), conv.bias.double(), padding=1)
    rows, columns = wide.shape[2] // 2, wide.shape[3] // 2
    windows = wide[:, :, : 2 * rows, : 2 * columns].unflatten(2, (rows, 2)).unflatten(4, (columns, 2))
    return windows.permute(0, 2, 4, 1, 3, 5).flatten(4)


def exact(features: torch.Tensor, conv: nn.Conv2d, gradient: torch.Tensor) -> list[torch.Tensor]:
    """Return the gradients of weights, biases and input in float64, with torch's maxima in the given type."""
    pooled, where = F.max_pool2d(conv(features), 2, return_indices=True)
    spread = torch.zeros(conv(features).shape, dtype=torch.float64)
    passed = gradient.double() * (pooled > 0)
    spread.flatten(2).scatter_(2, where.flatten(2), passed.flatten(2))
    return of_spread(features, conv, spread)


def spread_of(gradient: torch.Tensor, places: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Return the gradient of the convolution's result in float64: that of each window at the place of its maximum."""
    spread = torch.zeros((*gradient.shape[:2], *features.shape[2:]), dtype=torch.float64)
    for place in range(4):
        passed = gradient.double() * (places.permute(0, 3, 1, 2) == place)
        rows, columns = passed.shape[2:]
        spread[:, :, place // 2 : 2 * rows : 2, place % 2 : 2 * columns : 2] = passed
    return spread


def of_spread(features: torch.Tensor, conv: nn.Conv2d, spread: torch.Tensor) -> list[torch.Tensor]:
    """Return the gradients of weights, biases and input, given that of the convolution's result in float64."""
    weight, image = conv.weight.double(), features.double()
    return [
        nn.grad.conv2d_weight(image, weight.shape, spread, padding=1),
        spread.sum((0, 2, 3)),
        nn.grad.conv2d_input(image.shape, weight, spread, padding=1),
    ]
