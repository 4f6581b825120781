"""``relu(max_pool2d(conv2d(x), 2))`` whose gradient is computed only where it is not zero.

Of the four numbers of a window only the largest gets a gradient, and none where ReLU cuts it off. A dense backward pass
multiplies all the zeros, which is three quarters of its work and more. The first layer, of images, is limited by memory
instead; there nothing between convolution and pooling is written.
"""

import logging
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.models.pooling import pool_relu, pool_with_places, refuse_second_derivatives
from assay.models.pooling_native import make_kernels

if TYPE_CHECKING:
    from assay.models.image_conv_loops import ImageLoops
    from assay.models.pooled_conv_loops import GradientLoops
    from assay.models.tiled_loops import TiledForward, TiledGradients
    from assay.models.winograd_loops import WinogradLoops

LANES = 16
"""Output channels have to be a multiple, and input channels, too, but for images."""

MOST_IMAGE_CHANNELS = 4
"""Input channels of what is taken for images."""

_ENOUGH, _ENOUGH_OF_IMAGES = 1 << 35, 1 << 32
"""Multiplications of a layer's forward passes in a training, from which on making machine code is worth it."""

_log = logging.getLogger(__name__)


def is_worth_it(
    conv: nn.Conv2d, height: int, width: int, num_examples: int, num_threads: int, kind: torch.dtype | None = None
) -> bool:
    """Return whether a layer is to be trained by `conv_pool_relu`: machine code can be made, and pays.

    It follows from the layer and the whole training, not from what a process did before: gradients are rounded
    otherwise than those of torch's operations, so a training keeps to one way from its first step to the last.

    Args:
        conv: The convolution.
        height: Height of its input.
        width: Its width.
        num_examples: Examples that all epochs of the training read together, at most.
        num_threads: Threads that it computes with.
        kind: Type that it computes in, that of the weights if not given.
    """
    is_its_kind = (
        conv.kernel_size == (3, 3)
        and conv.padding == (1, 1)
        and (conv.stride, conv.dilation, conv.groups) == ((1, 1), (1, 1), 1)
        and conv.bias is not None
        and (conv.in_channels % LANES == 0 or _is_of_images(conv))
        and conv.out_channels % LANES == 0
        and min(height, width) >= 2
    )
    enough = _ENOUGH_OF_IMAGES if _is_of_images(conv) else _ENOUGH
    if not is_its_kind or num_examples * height * width * conv.weight.numel() < enough:
        return False
    kind = kind or conv.weight.dtype
    if kind == torch.bfloat16 and not _is_of_images(conv) and _multiplies_tiles() and not _fills_tiles(conv):
        return False
    shape = height, width, conv.in_channels, conv.out_channels
    loops = _image_loops(*shape, kind) if _is_of_images(conv) else _loops(*shape, kind)
    if loops is None or not (num_threads == 1 or loops.is_parallel):
        return False
    return _is_of_images(conv) or _forward_loops(*shape, kind) is not None or make_kernels() is not None


def conv_pool_relu(
    features: Float[Tensor, "batch channel height width"], conv: nn.Conv2d
) -> Float[Tensor, "batch out_channel half_height half_width"]:
    """Return ``relu(max_pool2d(conv(features), 2))`` on a CPU; an odd last row or column is left out.

    In bfloat16 it is `assay.models.tiled_loops` both ways on a processor that multiplies tiles of it (AMX), and
    `assay.models.winograd_loops` forward on one that multiplies pairs (AVX512-BF16); else torch's convolution and the
    loop of `assay.models.pooling`. With ``g`` the gradient of the result,
    ``p(w, o)`` the pixel of window ``w`` that is largest in channel ``o``, and the sum over the windows in which it is
    positive::

        d weight[o, i, t] = sum over w of g[w, o] * x[p(w, o) + t, i]        t = the nine offsets of the kernel
        d x[q, i]         = sum over w, o, t with p(w, o) + t = q of g[w, o] * weight[o, i, t]
        d bias[o]         = sum over w of g[w, o]

    Sums are taken in float32, also where the arrays are bfloat16, and in the same order on every processor, except that
    one that multiplies bfloat16 adds products in pairs. Under autocast everything is in its type. The second derivative
    is refused. Of images both ways are one loop, and what is compared in a window are numbers that have not been
    rounded to bfloat16.

    Args:
        features: Input, fastest in channels-last layout. Images whose own gradient is wanted go through torch.
        conv: A layer of which `is_worth_it` said so.

    Returns:
        Pooled and rectified activations of half the height and width, rounded down.
    """
    kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else features.dtype
    assert conv.bias is not None
    is_of_images = _is_of_images(conv)
    if is_of_images and features.requires_grad:
        return pool_relu(conv(features))
    function = _ImageConvPoolRelu if is_of_images else _ConvPoolRelu
    pooled: Tensor = function.apply(  # type: ignore[no-untyped-call]
        features.to(kind), conv.weight.to(kind), conv.bias.to(kind)
    )
    return pooled


def _is_of_images(conv: nn.Conv2d) -> bool:
    return conv.in_channels <= MOST_IMAGE_CHANNELS


class _ConvPoolRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        last = _last(features)
        _, height, width, channels = last.shape
        loops = _forward_loops(height, width, channels, len(weight), last.dtype)
        if loops is not None:
            pooled, places = loops.run(last, weight, bias)
            pooled = pooled.permute(0, 3, 1, 2)
        else:
            kernels = make_kernels()
            assert kernels is not None
            pooled, places = pool_with_places(F.conv2d(features, weight, bias, padding=1), kernels)
        ctx.save_for_backward(last, weight, places)
        return pooled

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        refuse_second_derivatives()
        features, weight, places = ctx.saved_tensors
        _, height, width, channels = features.shape
        loops = _loops(height, width, channels, len(weight), weight.dtype)
        assert loops is not None
        of_features, of_weight, of_bias = loops.run(_last(gradients[0]), places, features, weight)
        return of_features.permute(0, 3, 1, 2), of_weight.to(weight.dtype), of_bias.to(weight.dtype)


class _ImageConvPoolRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        _, channels, height, width = images.shape
        loops = _image_loops(height, width, channels, len(weight), weight.dtype)
        assert loops is not None
        pixels = _last(images)
        pooled, places = loops.forward(pixels, weight, bias)
        ctx.save_for_backward(pixels, places)
        ctx.loops = loops
        return pooled.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, Tensor]:
        refuse_second_derivatives()
        pixels, places = ctx.saved_tensors
        of_weight, of_bias = ctx.loops.backward(_last(gradients[0]), places, pixels)
        return None, of_weight.to(pixels.dtype), of_bias.to(pixels.dtype)


@cache
def _multiplies_tiles() -> bool:
    """Whether tiles of bfloat16 are multiplied, by torch as well: then nothing else comes near."""
    try:
        from assay.models.native import may_multiply_tiles

        return may_multiply_tiles()
    except Exception:  # without LLVM there are no loops to choose either
        return False


def _fills_tiles(conv: nn.Conv2d) -> bool:
    """Whether channels fill the rows of a tile, which holds two vectors of bfloat16."""
    return conv.in_channels % (2 * LANES) == 0 and conv.out_channels % (2 * LANES) == 0


@cache
def _image_loops(
    height: int, width: int, in_channels: int, out_channels: int, kind: torch.dtype
) -> "ImageLoops | None":
    try:
        from assay.models.image_conv_loops import ImageLoops

        return ImageLoops(height, width, in_channels, out_channels, kind)
    except Exception as error:  # whatever it is, torch's operations do it
        _log.warning("No machine code for a convolution of images (%s): training takes longer.", error)
        return None


@cache
def _forward_loops(
    height: int, width: int, in_channels: int, out_channels: int, kind: torch.dtype
) -> "TiledForward | WinogradLoops | None":
    if kind != torch.bfloat16:
        return None
    try:
        if _multiplies_tiles():
            from assay.models.tiled_loops import TiledForward

            return TiledForward(height, width, in_channels, out_channels)
        from assay.models.winograd_loops import WinogradLoops

        return WinogradLoops(height, width, in_channels, out_channels)
    except Exception as error:  # whatever it is, torch's convolution does it
        _log.debug("No machine code for a convolution in bfloat16 (%s): it is torch's.", error)
        return None


@cache
def _loops(
    height: int, width: int, in_channels: int, out_channels: int, kind: torch.dtype
) -> "GradientLoops | TiledGradients | None":
    try:
        if kind == torch.bfloat16 and _multiplies_tiles():
            from assay.models.tiled_loops import TiledGradients

            return TiledGradients(height, width, in_channels, out_channels)
        from assay.models.pooled_conv_loops import GradientLoops

        return GradientLoops(height, width, in_channels, out_channels, kind)
    except Exception as error:  # whatever it is, torch's operations do it
        _log.warning("No machine code for gradients of a convolution (%s): training takes longer.", error)
        return None


def _last(values: Tensor) -> Tensor:
    """View or copy as contiguous ``[batch, height, width, channel]``."""
    return values.detach().permute(0, 2, 3, 1).contiguous()
