"""The backward pass of `assay.models.pooled_conv`, written for LLVM."""

from collections.abc import Iterator
from contextlib import contextmanager
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
    SIZE,
    WORD,
    Array,
    Loop,
    MachineCode,
    constant,
    float_lanes,
    new_module,
)
from assay.models.native import has_fused_multiply_add as is_fused
from assay.models.pooling_native import NOBODY

_KERNEL = tuple(product(range(3), range(3)))
_KINDS = {torch.bfloat16: SHORT, torch.float32: FLOAT}


class GradientLoops:
    """Machine code for layers of one shape.

    Input channels are worked on a few at a time, as many as the processor adds at once: a block. For a block, the nine
    sums of one output channel stay in registers, and so do the sixteen that one window adds to the input's gradient.

    Args:
        height: Height of the input.
        width: Its width.
        in_channels: Its channels, a multiple of 16.
        out_channels: Channels of the output, a multiple of 16.
        kind: Type of the arrays, ``torch.bfloat16`` or ``torch.float32``.

    Raises:
        RuntimeError: The processor does not multiply and add in one instruction; or LLVM cannot.
    """

    def __init__(self, height: int, width: int, in_channels: int, out_channels: int, kind: torch.dtype) -> None:
        if not is_fused():
            raise RuntimeError("the processor has no fused multiply-add")
        self._layer = layer = _Layer(height, width, in_channels, out_channels, float_lanes())
        module = new_module("pooled_conv")
        _write(module, layer, _KINDS[kind])
        self._code = MachineCode(str(module))

    def run(
        self,
        gradient: Float[Tensor, "batch half_height half_width out_channel"],
        places: Int[Tensor, "batch half_height half_width out_channel"],
        features: Float[Tensor, "batch height width channel"],
        weight: Float[Tensor, "out_channel channel 3 3"],
    ) -> tuple[
        Float[Tensor, "batch height width channel"],
        Float[Tensor, "out_channel channel 3 3"],
        Float[Tensor, " out_channel"],
    ]:
        """Compute the gradients; all arrays but the weights are contiguous.

        Args:
            gradient: Gradient of the result.
            places: Which of a window's numbers is the largest, int8; `NOBODY` where none is positive.
            features: The layer's input.
            weight: Its weights, in any memory layout.

        Returns:
            Gradients of the input in its type, and of weights and biases in float32.
        """
        layer, num_shares = self._layer, torch.get_num_threads()
        blocked = weight.float().reshape(layer.out_channels, layer.num_blocks, layer.lanes, 9).permute(1, 0, 3, 2)
        blocked = blocked.contiguous()
        of_weight = torch.zeros((num_shares, *blocked.shape))
        of_bias = torch.zeros((num_shares, layer.out_channels))
        entries = torch.empty((num_shares, layer.out_channels, layer.num_windows), dtype=torch.int64)
        counts = torch.empty((num_shares, layer.out_channels), dtype=torch.int64)
        padded = torch.zeros((2, num_shares, layer.padded_size))
        of_features = torch.empty_like(features)
        arrays = (gradient, places, features, blocked, entries, counts, *padded, of_weight, of_bias, of_features)
        self._code.run("gradients", len(gradient), [array.data_ptr() for array in arrays])
        summed = of_weight.sum(0).permute(1, 0, 3, 2).reshape(layer.out_channels, layer.in_channels, 3, 3)
        return of_features, summed, of_bias.sum(0)


@dataclass(frozen=True)
class _Layer:
    """Sizes, known when the code is made.

    Attributes:
        lanes: Input channels of a block.
    """

    height: int
    width: int
    in_channels: int
    out_channels: int
    lanes: int

    @property
    def rows(self) -> int:
        return self.height // 2

    @property
    def columns(self) -> int:
        return self.width // 2

    @property
    def num_windows(self) -> int:
        return self.rows * self.columns

    @property
    def num_blocks(self) -> int:
        return self.in_channels // self.lanes

    @property
    def padded_width(self) -> int:
        return self.width + 2

    @property
    def padded_size(self) -> int:
        """Numbers of one block of an image with a frame of zeros, ``[height + 2, width + 2, lane]``."""
        return (self.height + 2) * self.padded_width * self.lanes


@dataclass(frozen=True)
class _Arrays:
    """Arrays of a job: of the image that is visited, the weights, and the sums and the room of this share."""

    gradient: Array
    places: Array
    features: Array
    of_features: Array
    weights: Array
    entries: Array
    counts: Array
    padded: Array
    padded_gradient: Array
    of_weight: Array
    of_bias: Array


def _write(module: Any, layer: _Layer, kind: Any) -> None:
    loop = Loop(module, "gradients", num_values=11)
    gradient, places, features, weights, entries, counts, padded, padded_gradient, of_weight, of_bias, of_features = (
        loop.values
    )

    def own(address: Any, number_kind: Any, length: int) -> Array:
        return loop.part(Array(address, number_kind), loop.share, length)

    num_outputs, num_inputs = layer.num_windows * layer.out_channels, layer.height * layer.width * layer.in_channels
    with loop.visit(loop.first, loop.end) as image:
        arrays = _Arrays(
            gradient=loop.part(Array(gradient, kind), image, num_outputs),
            places=loop.part(Array(places, BYTE), image, num_outputs),
            features=loop.part(Array(features, kind), image, num_inputs),
            of_features=loop.part(Array(of_features, kind), image, num_inputs),
            weights=Array(weights, FLOAT),
            entries=own(entries, SIZE, num_outputs),
            counts=own(counts, SIZE, layer.out_channels),
            padded=own(padded, FLOAT, layer.padded_size),
            padded_gradient=own(padded_gradient, FLOAT, layer.padded_size),
            of_weight=own(of_weight, FLOAT, layer.out_channels * layer.in_channels * 9),
            of_bias=own(of_bias, FLOAT, layer.out_channels),
        )
        _list_entries(loop, layer, arrays)
        _add_to_biases(loop, layer, arrays)
        with loop.visit(0, layer.num_blocks) as block:
            _pad(loop, layer, arrays, block)
            _add_to_weights(loop, layer, arrays, block)
            _clear(loop, layer, arrays)
            _add_to_input(loop, layer, arrays, block)
            _write_input(loop, layer, arrays, block)
    loop.close()


def _list_entries(loop: Loop, layer: _Layer, arrays: _Arrays) -> None:
    """List, for each output channel, where its gradients go to and what they are.

    An entry's lower half is the offset of the pixel above and to the left of the largest one, in a padded block; its
    upper half is the gradient. An entry of nobody is written, too, and overwritten by the next.
    """
    at = loop.builder
    with loop.visit(0, layer.out_channels) as channel:
        loop.store(SIZE(0), arrays.counts, channel)
    with loop.visit(0, layer.rows) as row, loop.visit(0, layer.columns) as column:
        window = loop.product(loop.total(loop.product(row, layer.columns), column), layer.out_channels)
        corner = _offset(loop, layer, loop.product(row, 2), loop.product(column, 2))
        with loop.visit(0, layer.out_channels) as channel:
            here = loop.total(window, channel)
            place = at.zext(loop.load(arrays.places, here), SIZE)
            offset = loop.total(corner, _offset(loop, layer, at.lshr(place, SIZE(1)), at.and_(place, SIZE(1))))
            bits = at.bitcast(loop.widened(loop.load(arrays.gradient, here)), WORD)
            entry = at.or_(offset, at.shl(at.zext(bits, SIZE), SIZE(32)))
            count = loop.load(arrays.counts, channel)
            loop.store(entry, arrays.entries, loop.total(loop.product(channel, layer.num_windows), count))
            is_somebody = at.zext(at.icmp_unsigned("!=", place, SIZE(NOBODY)), SIZE)
            loop.store(loop.total(count, is_somebody), arrays.counts, channel)


def _add_to_biases(loop: Loop, layer: _Layer, arrays: _Arrays) -> None:
    at, lanes = loop.builder, layer.lanes
    zeros, nobody = constant(FLOAT, 0, lanes), constant(BYTE, NOBODY, lanes)
    with loop.visit(0, layer.out_channels, step=lanes) as channel:
        total = loop.variable(zeros.type, loop.load(arrays.of_bias, channel, lanes))
        with loop.visit(0, layer.num_windows) as window:
            here = loop.total(loop.product(window, layer.out_channels), channel)
            is_somebody = at.icmp_unsigned("!=", loop.load(arrays.places, here, lanes), nobody)
            values = at.select(is_somebody, loop.widened(loop.load(arrays.gradient, here, lanes)), zeros)
            at.store(at.fadd(at.load(total), values), total)
        loop.store(at.load(total), arrays.of_bias, channel)


def _pad(loop: Loop, layer: _Layer, arrays: _Arrays, block: Any) -> None:
    """Write a block of the image into the padded one, whose frame is zero."""
    with loop.visit(0, layer.height) as row, loop.visit(0, layer.width) as column:
        values = loop.load(arrays.features, _offset_in_image(loop, layer, row, column, block), layer.lanes)
        inside = _offset(loop, layer, loop.total(row, 1), loop.total(column, 1))
        loop.store(loop.widened(values), arrays.padded, inside)


def _add_to_weights(loop: Loop, layer: _Layer, arrays: _Arrays, block: Any) -> None:
    at, lanes = loop.builder, layer.lanes
    kind = constant(FLOAT, 0, lanes).type
    with loop.visit(0, layer.out_channels) as channel:
        first = loop.product(loop.total(loop.product(block, layer.out_channels), channel), 9 * lanes)
        offsets = [loop.total(first, tap * lanes) for tap in range(9)]
        sums = [loop.variable(kind, loop.load(arrays.of_weight, offset, lanes)) for offset in offsets]
        with _each_entry(loop, layer, arrays, channel) as (corner, value):
            factor = loop.everywhere(value, lanes)
            for total, (row, column) in zip(sums, _KERNEL, strict=True):
                pixel = loop.load(arrays.padded, loop.total(corner, _offset(loop, layer, row, column)), lanes)
                at.store(loop.multiply_add(factor, pixel, at.load(total)), total)
        for total, offset in zip(sums, offsets, strict=True):
            loop.store(at.load(total), arrays.of_weight, offset)


def _clear(loop: Loop, layer: _Layer, arrays: _Arrays) -> None:
    with loop.visit(0, layer.padded_size, step=layer.lanes) as offset:
        loop.store(constant(FLOAT, 0, layer.lanes), arrays.padded_gradient, offset)


def _add_to_input(loop: Loop, layer: _Layer, arrays: _Arrays, block: Any) -> None:
    """Add what each window gives to the 4x4 pixels around it, output channels by the place of their largest number."""
    at, lanes = loop.builder, layer.lanes
    zeros = constant(FLOAT, 0, lanes)
    chunk = next(size for size in (64, 32, 16) if layer.out_channels % size == 0)
    with loop.visit(0, layer.rows) as row, loop.visit(0, layer.columns) as column:
        window = loop.product(loop.total(loop.product(row, layer.columns), column), layer.out_channels)
        around = {pixel: loop.variable(zeros.type, zeros) for pixel in product(range(4), range(4))}
        with loop.visit(0, layer.out_channels, step=chunk) as start:
            places = loop.load(arrays.places, loop.total(window, start), chunk)
            for place, (top, left) in enumerate(product(range(2), range(2))):
                mask = at.bitcast(at.icmp_unsigned("==", places, constant(BYTE, place, chunk)), ir.IntType(chunk))
                with loop.visit_ones(mask) as number:
                    channel = loop.total(start, number)
                    value = loop.widened(loop.load(arrays.gradient, loop.total(window, channel)))
                    factor = loop.everywhere(value, lanes)
                    first = loop.product(loop.total(loop.product(block, layer.out_channels), channel), 9 * lanes)
                    for tap, (down, right) in enumerate(_KERNEL):
                        weights = loop.load(arrays.weights, loop.total(first, tap * lanes), lanes)
                        total = around[top + down, left + right]
                        at.store(loop.multiply_add(factor, weights, at.load(total)), total)
        for (down, right), total in around.items():
            offset = _offset(
                loop, layer, loop.total(loop.product(row, 2), down), loop.total(loop.product(column, 2), right)
            )
            old = loop.load(arrays.padded_gradient, offset, lanes)
            loop.store(at.fadd(old, at.load(total)), arrays.padded_gradient, offset)


def _write_input(loop: Loop, layer: _Layer, arrays: _Arrays, block: Any) -> None:
    """Write a padded block's inside to the gradient of the image."""
    with loop.visit(0, layer.height) as row, loop.visit(0, layer.width) as column:
        inside = _offset(loop, layer, loop.total(row, 1), loop.total(column, 1))
        values = loop.load(arrays.padded_gradient, inside, layer.lanes)
        narrowed = loop.narrowed(values, arrays.of_features.kind)
        loop.store(narrowed, arrays.of_features, _offset_in_image(loop, layer, row, column, block))


@contextmanager
def _each_entry(loop: Loop, layer: _Layer, arrays: _Arrays, channel: Any) -> Iterator[tuple[Any, Any]]:
    """Repeat what is written in the block for each entry of a channel; give its offset and its gradient."""
    at = loop.builder
    begin = loop.product(channel, layer.num_windows)
    with loop.visit(begin, loop.total(begin, loop.load(arrays.counts, channel))) as number:
        entry = loop.load(arrays.entries, number)
        upper = at.trunc(at.lshr(entry, SIZE(32)), WORD)
        yield at.and_(entry, SIZE(0xFFFFFFFF)), at.bitcast(upper, FLOAT)


def _offset(loop: Loop, layer: _Layer, row: Any, column: Any) -> Any:
    """Offset of a pixel in a padded block."""
    return loop.product(loop.total(loop.product(row, layer.padded_width), column), layer.lanes)


def _offset_in_image(loop: Loop, layer: _Layer, row: Any, column: Any, block: Any) -> Any:
    """Offset of a pixel's block in an image."""
    pixel = loop.product(loop.total(loop.product(row, layer.width), column), layer.in_channels)
    return loop.total(pixel, loop.product(block, layer.lanes))
