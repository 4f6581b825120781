"""``relu(max_pool2d(x, 2))`` in a fraction of the time: as integer arithmetic, or as one loop over memory."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from assay.models.pooling_native import PoolKernels, kernels_for

_INTEGER_OF = {torch.bfloat16: torch.int16, torch.float16: torch.int16}


def pool_relu(
    features: Float[Tensor, "batch channel height width"],
) -> Float[Tensor, "batch channel half_height half_width"]:
    """Return ``relu(max_pool2d(features, 2))``; an odd last row or column is left out.

    On a CPU it runs as one loop each way where `assay.models.pooling_native` has one; else in 16 bits as integer
    operations, which vectorise several times better there than torch's max-pool and its backward pass. Everywhere
    else, and for export, which is in float32, it is torch's own. The numbers and gradients are the same. Second
    derivatives are refused but by torch's own.

    Args:
        features: Activations, fastest in channels-last layout.

    Returns:
        Pooled and rectified activations of half the height and width, rounded down.
    """
    is_short, is_float32 = features.dtype in _INTEGER_OF, features.dtype == torch.float32
    kernels = kernels_for(features) if features.device.type == "cpu" and (is_short or is_float32) else None
    pooled: Tensor
    if kernels is not None:
        pooled = _NativePoolRelu.apply(features, kernels)  # type: ignore[no-untyped-call]
        return pooled
    if features.device.type != "cpu" or not is_short:
        return F.relu(F.max_pool2d(features, kernel_size=2))
    if torch.is_grad_enabled() and features.requires_grad:
        pooled = _PoolRelu.apply(features)  # type: ignore[no-untyped-call]
        return pooled
    larger = torch.maximum(*_columns(_bits(features)))
    largest = torch.maximum(larger[:, 0::2], larger[:, 1::2]).clamp_min_(0)
    return largest.view(features.dtype).permute(0, 3, 1, 2)


class _PoolRelu(torch.autograd.Function):
    """The integer form.

    The bits of non-negative floats, read as integers, are ordered as the floats are, and negative floats are negative
    integers. So the maximum over integers is right wherever it is not negative, and the rest is zero after ``relu``
    and passes no gradient. Among equals the first in reading order wins, as in torch. A NaN whose sign bit is set
    comes out as 0, but the infinity or NaN that caused it still reaches the gradient of the weights before.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        bits = _bits(features)
        left, right = _columns(bits)
        larger, right_won = _maximum(left, right)
        pooled, lower_won = _maximum(larger[:, 0::2], larger[:, 1::2])
        pooled.clamp_min_(0)
        ctx.save_for_backward(right_won, lower_won, pooled)
        ctx.shape = bits.shape
        return pooled.view(features.dtype).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        refuse_second_derivatives()
        right_won, lower_won, pooled = ctx.saved_tensors
        (gradient,) = gradients
        passed = torch.gt(pooled, 0, out=torch.empty_like(pooled)).mul_(_bits(gradient))
        rows = torch.empty_like(right_won)
        _distribute(passed, lower_won, rows[:, 0::2], rows[:, 1::2])
        spread = _room_for_gradient(pooled, ctx.shape)
        _distribute(rows, right_won, *_columns(spread))
        result: Tensor = spread.view(gradient.dtype).permute(0, 3, 1, 2)
        return result


class _NativePoolRelu(torch.autograd.Function):
    """One loop each way: over the integers of `_PoolRelu`, or over float32, in which NaN goes on as in torch."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, kernels: PoolKernels) -> Tensor:
        pooled, places = pool_with_places(features, kernels)
        ctx.save_for_backward(places)
        ctx.shape = features.permute(0, 2, 3, 1).shape
        ctx.kernels = kernels
        return pooled

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        refuse_second_derivatives()
        (places,) = ctx.saved_tensors
        (gradient,) = gradients
        numbers = _bits(gradient)
        spread = _room_for_gradient(numbers, ctx.shape)
        ctx.kernels.backward(spread, numbers, places)
        return spread.view(gradient.dtype).permute(0, 3, 1, 2), None


def pool_with_places(features: Tensor, kernels: PoolKernels) -> tuple[Tensor, Tensor]:
    """Return what `pool_relu` does, and where in each window the maxima are.

    Args:
        features: Activations, ``[batch, channel, height, width]``.
        kernels: Machine code for them.

    Returns:
        The pooled activations, and the places, int8 ``[batch, half_height, half_width, channel]``.
    """
    numbers = _bits(features)
    batch, height, width, channels = numbers.shape
    pooled = numbers.new_empty((batch, height // 2, width // 2, channels))
    places = torch.empty_like(pooled, dtype=torch.int8)
    kernels.forward(numbers, pooled, places)
    return pooled.view(features.dtype).permute(0, 3, 1, 2), places


def refuse_second_derivatives() -> None:
    """Nothing is differentiated through gradients of our own: a second derivative would silently lack a part."""
    if torch.is_grad_enabled():
        raise NotImplementedError("pooling has no second derivative on a CPU: leave create_graph out")


def _room_for_gradient(like: Tensor, shape: torch.Size) -> Tensor:
    """An array of a shape, with zeros if an odd last row or column gets no gradient."""
    is_even = shape[1] % 2 == 0 and shape[2] % 2 == 0
    return (like.new_empty if is_even else like.new_zeros)(shape)


def _bits(values: Tensor) -> Tensor:
    """Read 16-bit floats as integers, others as they are, ``[batch, height, width, channel]``."""
    return values.detach().permute(0, 2, 3, 1).contiguous().view(_INTEGER_OF.get(values.dtype, values.dtype))


def _columns(bits: Tensor) -> tuple[Tensor, Tensor]:
    """View the left and the right columns of all 2x2 windows in ``[batch, height, width, channel]``."""
    inside = bits[:, : bits.shape[1] // 2 * 2, : bits.shape[2] // 2 * 2]
    return inside[:, :, 0::2], inside[:, :, 1::2]


def _maximum(first: Int[Tensor, "*shape"], second: Int[Tensor, "*shape"]) -> tuple[Tensor, Tensor]:
    """Return the larger of two numbers, and 1 where it is the second, else 0, in the same integer type."""
    larger = torch.maximum(first, second)
    # Into the same type, the comparison vectorises; into bool it is nine times slower.
    return larger, torch.lt(first, second, out=torch.empty_like(larger))


def _distribute(bits: Tensor, second_won: Tensor, first: Tensor, second: Tensor) -> None:
    """Write `bits` to the one that won and zeros to the other."""
    torch.mul(bits, second_won, out=second)
    torch.bitwise_xor(bits, second, out=first)
