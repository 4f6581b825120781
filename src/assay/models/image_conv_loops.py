"""The first convolution of `assay.models.pooled_conv`, of an image's few channels, both ways, written for LLVM.

An image has too few channels to be multiplied a vector at a time, and what comes of it is many times larger. So a
vector is of output channels here, and what is between convolution and pooling never leaves the registers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from jaxtyping import Float, Int
from llvmlite import ir
from torch import Tensor

from assay.models.native import (
    BYTE,
    FLOAT,
    SHORT,
    WORD,
    Array,
    Loop,
    MachineCode,
    constant,
    float_lanes,
    may_choose_lanes,
    new_module,
    sum_of_shares,
)
from assay.models.native import has_fused_multiply_add as is_fused
from assay.models.pooling_native import NOBODY
from assay.models.window_loops import KERNEL, PLACES, Layer, keep_largest

_AROUND = 4
"""Rows and columns of pixels around a window."""

_KINDS = {torch.bfloat16: SHORT, torch.float32: FLOAT}


class ImageLoops:
    """Machine code for layers of one shape.

    Args:
        height: Height of the images.
        width: Their width.
        in_channels: Their channels.
        out_channels: Channels of the output, a multiple of 16.
        kind: Type of the arrays, ``torch.bfloat16`` or ``torch.float32``.

    Raises:
        RuntimeError: The processor does not multiply and add in one instruction; or LLVM cannot.
    """

    def __init__(self, height: int, width: int, in_channels: int, out_channels: int, kind: torch.dtype) -> None:
        if not is_fused():
            raise RuntimeError("the processor has no fused multiply-add")
        self._layer = layer = _Layer(height, width, in_channels, out_channels, float_lanes())
        module = new_module("image_conv")
        _write_forward(module, layer, _KINDS[kind])
        _write_backward(module, layer, _KINDS[kind])
        self._code = MachineCode(str(module))

    @property
    def is_parallel(self) -> bool:
        """Whether they run in as many threads as torch, not in one."""
        return self._code.is_parallel

    def forward(
        self,
        images: Float[Tensor, "batch height width channel"],
        weight: Float[Tensor, "out_channel channel 3 3"],
        bias: Float[Tensor, " out_channel"],
    ) -> tuple[
        Float[Tensor, "batch half_height half_width out_channel"],
        Int[Tensor, "batch half_height half_width out_channel"],
    ]:
        """Return the pooled activations in the images' type, and the places of the maxima, int8.

        Args:
            images: Contiguous.
            weight: In any memory layout.
            bias: Contiguous.
        """
        layer = self._layer
        pooled = images.new_empty((len(images), layer.rows, layer.columns, layer.out_channels))
        places = torch.empty_like(pooled, dtype=torch.int8)
        blocked, padded = layer.blocked(weight.float()), self._room()
        arrays = (images, blocked, bias.float(), padded, pooled, places)
        self._code.run("forward", len(images), [array.data_ptr() for array in arrays])
        return pooled, places

    def backward(
        self,
        gradient: Float[Tensor, "batch half_height half_width out_channel"],
        places: Int[Tensor, "batch half_height half_width out_channel"],
        images: Float[Tensor, "batch height width channel"],
    ) -> tuple[Float[Tensor, "out_channel channel 3 3"], Float[Tensor, " out_channel"]]:
        """Return the gradients of weights and biases, float32.

        Args:
            gradient: Gradient of the pooled activations, contiguous.
            places: What `forward` said.
            images: What `forward` took.
        """
        layer, num_shares = self._layer, torch.get_num_threads()
        of_weight = torch.zeros((num_shares, *layer.blocked_shape))
        of_bias = torch.zeros((num_shares, layer.out_channels))
        arrays = (gradient, places, images, self._room(), of_weight, of_bias)
        self._code.run("backward", len(images), [array.data_ptr() for array in arrays])
        return layer.unblocked(sum_of_shares(of_weight)), sum_of_shares(of_bias)

    def _room(self) -> Tensor:
        return torch.zeros((torch.get_num_threads(), self._layer.padded_size))


@dataclass(frozen=True)
class _Layer(Layer):
    """Sizes, known when the code is made.

    Attributes:
        lanes: Output channels of a vector.
    """

    lanes: int

    @property
    def padded_size(self) -> int:
        """Numbers of an image with a frame of zeros, ``[channel, height + 2, width + 2]``."""
        return self.in_channels * self.plane_size

    @property
    def plane_size(self) -> int:
        return (self.height + 2) * (self.width + 2)

    @property
    def num_factors(self) -> int:
        """Weights of an output channel."""
        return self.in_channels * len(KERNEL)

    @property
    def width_of_step(self) -> int:
        """Output channels that go forward together: two vectors, where there are as many."""
        return self.lanes * (2 if self.out_channels % (2 * self.lanes) == 0 else 1)

    @property
    def blocked_shape(self) -> tuple[int, int, int, int]:
        """Shape of weights as the loops want them: ``[block, channel, tap, lane]``."""
        return self.out_channels // self.lanes, self.in_channels, len(KERNEL), self.lanes

    def blocked(self, weight: Tensor) -> Tensor:
        blocks, channels, taps, lanes = self.blocked_shape
        return weight.reshape(blocks, lanes, channels, taps).permute(0, 2, 3, 1).contiguous()

    def unblocked(self, weight: Tensor) -> Tensor:
        return weight.permute(0, 3, 1, 2).reshape(self.out_channels, self.in_channels, 3, 3)


def _write_forward(module: Any, layer: _Layer, kind: Any) -> None:
    loop = Loop(module, "forward", num_values=6)
    images, weights, biases, padded, pooled, places = loop.values
    room = loop.part(Array(padded, FLOAT), loop.share, layer.padded_size)
    with loop.visit(loop.first, loop.end) as image:
        _pad(loop, layer, loop.part(Array(images, kind), image, layer.num_inputs), room)
        small, where = (
            loop.part(Array(array, of), image, layer.num_outputs) for array, of in ((pooled, kind), (places, BYTE))
        )
        with loop.visit(0, layer.out_channels, step=layer.width_of_step) as channel:
            vectors = [loop.total(channel, offset) for offset in range(0, layer.width_of_step, layer.lanes)]
            factors = [_factors(loop, layer, Array(weights, FLOAT), vector) for vector in vectors]
            bias = [loop.load(Array(biases, FLOAT), vector, layer.lanes) for vector in vectors]
            with loop.visit(0, layer.rows) as row, loop.visit(0, layer.columns) as column:
                sums = [dict.fromkeys(PLACES, value) for value in bias]
                for tap, (color, down, right) in enumerate(product(range(layer.in_channels), range(3), range(3))):
                    around = _around(loop, layer, room, color, row, column)
                    for top, left in PLACES:
                        pixel = around(top + down, left + right)
                        for total, own in zip(sums, factors, strict=True):
                            total[top, left] = loop.multiply_add(pixel, own[tap], total[top, left])
                for total, vector in zip(sums, vectors, strict=True):
                    here = _offset(loop, layer, row, column, vector)
                    keep_largest(loop, list(total.values()), small, where, here)
    loop.close()


def _write_backward(module: Any, layer: _Layer, kind: Any) -> None:
    loop = Loop(module, "backward", num_values=6)
    at, lanes = loop.builder, layer.lanes
    gradients, places, images, padded, of_weights, of_biases = loop.values
    room = loop.part(Array(padded, FLOAT), loop.share, layer.padded_size)
    weights = loop.part(Array(of_weights, FLOAT), loop.share, layer.out_channels * layer.num_factors)
    biases = loop.part(Array(of_biases, FLOAT), loop.share, layer.out_channels)
    zeros = constant(FLOAT, 0, lanes)
    with loop.visit(loop.first, loop.end) as image:
        _pad(loop, layer, loop.part(Array(images, kind), image, layer.num_inputs), room)
        small = loop.part(Array(gradients, kind), image, layer.num_outputs)
        where = loop.part(Array(places, BYTE), image, layer.num_outputs)
        with loop.visit(0, layer.out_channels, step=lanes) as vector:
            of_bias = loop.variable(zeros.type, loop.load(biases, vector, lanes))
            for channel in range(layer.in_channels):
                first = loop.total(loop.product(vector, layer.num_factors), channel * len(KERNEL) * lanes)
                offsets = [loop.total(first, tap * lanes) for tap in range(len(KERNEL))]
                sums = [loop.variable(zeros.type, loop.load(weights, offset, lanes)) for offset in offsets]
                with loop.visit(0, layer.rows) as row, loop.visit(0, layer.columns) as column:
                    here = _offset(loop, layer, row, column, vector)
                    gradient, place = loop.widened(loop.load(small, here, lanes)), loop.load(where, here, lanes)
                    around = _around(loop, layer, room, channel, row, column)
                    for passed, pixels in _passed(loop, gradient, place, around):
                        if channel == 0:
                            at.store(at.fadd(at.load(of_bias), passed), of_bias)
                        for total, pixel in zip(sums, pixels, strict=True):
                            at.store(loop.multiply_add(passed, pixel, at.load(total)), total)
                for total, offset in zip(sums, offsets, strict=True):
                    loop.store(at.load(total), weights, offset)
            loop.store(at.load(of_bias), biases, vector)
    loop.close()


def _pad(loop: Loop, layer: _Layer, image: Array, room: Array) -> None:
    """Write an image into the padded one, channel by channel; the frame is zero."""
    with loop.visit(0, layer.height) as row, loop.visit(0, layer.width) as column:
        pixel = loop.product(loop.total(loop.product(row, layer.width), column), layer.in_channels)
        inside = loop.total(loop.product(loop.total(row, 1), layer.width + 2), column, 1)
        for channel in range(layer.in_channels):
            value = loop.widened(loop.load(image, loop.total(pixel, channel)))
            loop.store(value, room, loop.total(inside, channel * layer.plane_size))


def _around(loop: Loop, layer: _Layer, room: Array, channel: int, row: Any, column: Any) -> "_Pixels":
    """Return the 4x4 pixels around a window."""
    corner = loop.total(channel * layer.plane_size, loop.product(row, 2, layer.width + 2), loop.product(column, 2))
    return _Pixels(loop, room, corner, layer.width + 2, layer.lanes)


class _Pixels:
    """The 4x4 pixels around a window: one of them in all lanes, or each lane its own."""

    def __init__(self, loop: Loop, room: Array, corner: Any, line: int, lanes: int) -> None:
        self._loop, self._room, self._corner, self._line, self._lanes = loop, room, corner, line, lanes
        self._known: dict[int, Any] = {}

    def __call__(self, down: int, right: int) -> Any:
        """Return one in all lanes."""
        offset = down * self._line + right
        if offset not in self._known:
            number = self._loop.load(self._room, self._loop.total(self._corner, offset))
            self._known[offset] = self._loop.everywhere(number, self._lanes)
        return self._known[offset]

    def of_each(self, place: Any) -> list[Any]:
        """Return for each of the kernel's offsets, and in each of 16 lanes, the pixel of a place of the window."""
        loop, at = self._loop, self._loop.builder
        begins = [loop.total(self._corner, down * self._line) for down in range(_AROUND)]
        lines = [loop.load(self._room, begin, _AROUND) for begin in begins]
        upper, lower = (loop.shuffled(lines[row], lines[row + 1], range(2 * _AROUND)) for row in (0, 2))
        pixels = loop.shuffled(upper, lower, range(_AROUND * _AROUND))
        number = at.zext(place, ir.VectorType(WORD, self._lanes))
        is_below = at.and_(number, constant(WORD, 2, self._lanes))
        first = at.add(number, is_below)  # 0, 1, 4, 5: lines are four pixels long, and a window's two
        return [
            loop.chosen(pixels, at.add(first, constant(WORD, down * _AROUND + right, self._lanes)))
            for down, right in KERNEL
        ]


def _passed(loop: Loop, gradient: Any, place: Any, around: _Pixels) -> Iterator[tuple[Any, list[Any]]]:
    """Give what passes of a window's gradient, with the pixels that it belongs to for each of the kernel's offsets.

    Where the processor can, each of sixteen lanes takes the pixels of its own place; else the four places take turns.
    """
    at, lanes = loop.builder, place.type.count
    zeros = constant(FLOAT, 0, lanes)
    if lanes == _AROUND * _AROUND and may_choose_lanes():
        is_none = at.icmp_unsigned("==", place, constant(BYTE, NOBODY, lanes))
        yield at.select(is_none, zeros, gradient), around.of_each(place)
        return
    for number, (top, left) in enumerate(PLACES):
        is_here = at.icmp_unsigned("==", place, constant(BYTE, number, lanes))
        yield at.select(is_here, gradient, zeros), [around(top + down, left + right) for down, right in KERNEL]


def _factors(loop: Loop, layer: _Layer, weights: Array, vector: Any) -> list[Any]:
    """Return the weights of a vector of output channels, in the order of channels and taps."""
    first = loop.product(vector, layer.num_factors)
    return [
        loop.load(weights, loop.total(first, number * layer.lanes), layer.lanes) for number in range(layer.num_factors)
    ]


def _offset(loop: Loop, layer: _Layer, row: Any, column: Any, channel: Any) -> Any:
    """Offset of a window's channel in the pooled image."""
    window = loop.total(loop.product(row, layer.columns), column)
    return loop.total(loop.product(window, layer.out_channels), channel)
