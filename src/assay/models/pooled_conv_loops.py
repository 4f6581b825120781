"""The backward pass of `assay.models.pooled_conv`, written for LLVM."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, product
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
    has_brain_float_products,
    new_module,
    sum_of_shares,
)
from assay.models.native import has_fused_multiply_add as is_fused
from assay.models.pooling_native import NOBODY
from assay.models.window_loops import KERNEL, PLACES, Layer

_LANES_OF_PAIRS = 16
_KINDS = {torch.bfloat16: SHORT, torch.float32: FLOAT}


class GradientLoops:
    """Machine code for layers of one shape.

    Input channels are worked on a few at a time, as many as the processor adds at once: a block. For a block, the nine
    sums of one output channel stay in registers, and so do the sixteen that one window adds to the input's gradient.
    Where the processor multiplies bfloat16 in pairs (AVX512-BF16), gradients of an output channel are taken in pairs.

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
        in_pairs = kind == torch.bfloat16 and has_brain_float_products() and float_lanes() == _LANES_OF_PAIRS
        self._layer = layer = _Layer(height, width, in_channels, out_channels, float_lanes(), in_pairs)
        module = new_module("pooled_conv")
        _write(module, layer, _KINDS[kind])
        self._code = MachineCode(str(module))

    @property
    def is_parallel(self) -> bool:
        """Whether they run in as many threads as torch, not in one."""
        return self._code.is_parallel

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
        taps = weight.to(layer.padded_kind).reshape(layer.out_channels, -1, layer.block, 9)
        blocked = taps.permute(1, 0, 3, 2).contiguous()
        of_weight = torch.zeros((num_shares, layer.in_channels // layer.lanes, layer.out_channels, 9, layer.lanes))
        of_bias = torch.zeros((num_shares, layer.out_channels))
        entries = torch.empty((num_shares, layer.out_channels, layer.most_entries), dtype=torch.int64)
        counts = torch.empty((num_shares, layer.out_channels), dtype=torch.int64)
        padded = torch.zeros((num_shares, layer.padded_size), dtype=layer.padded_kind)
        room = torch.empty(padded.shape)
        of_features = torch.empty_like(features)
        arrays = (gradient, places, features, blocked, entries, counts, padded, room, of_weight, of_bias, of_features)
        self._code.run("gradients", len(gradient), [array.data_ptr() for array in arrays])
        return of_features, layer.in_order(sum_of_shares(of_weight)), sum_of_shares(of_bias)


@dataclass(frozen=True)
class _Layer(Layer):
    """Sizes, known when the code is made.

    Attributes:
        lanes: Input channels of a vector.
        in_pairs: Whether products are added in pairs, of bfloat16.
    """

    lanes: int
    in_pairs: bool

    @property
    def block(self) -> int:
        """Input channels that are worked on at once."""
        return next(size for size in (32, 16) if self.in_channels % size == 0) if self.in_pairs else self.lanes

    def in_order(self, of_weight: Tensor) -> Tensor:
        """Return gradients of weights, ``[vector, output channel, tap, lane]``, as torch wants them."""
        num_parts = len(self.parts)
        split = of_weight.view(-1, num_parts, self.out_channels, 9, self.lanes // 4, 4).permute(2, 0, 4, 1, 5, 3)
        return split.reshape(self.out_channels, self.in_channels, 3, 3)

    @property
    def chunk(self) -> int:
        """Output channels whose places are compared at once."""
        return next(size for size in (64, 32, 16) if self.out_channels % size == 0)

    @property
    def most_entries(self) -> int:
        """Room for the entries of an output channel, and for one more, which makes their number even."""
        return self.num_windows + 1

    @property
    def padded_kind(self) -> torch.dtype:
        return torch.bfloat16 if self.in_pairs else torch.float32

    @property
    def padded_width(self) -> int:
        return self.width + 2

    @property
    def padded_size(self) -> int:
        """Numbers of a block of an image with a frame of zeros, ``[height + 2, width + 2, channel]``."""
        return (self.height + 2) * self.padded_width * self.block

    @property
    def parts(self) -> Sequence[Sequence[int]]:
        """The input channels of each vector of a block.

        Two vectors have the first and the second half of every eight channels, as what pairs the numbers of two vectors
        does it for 128 bits at a time; what does not takes twice as long.
        """
        if self.block == self.lanes:
            return (range(self.lanes),)
        return [[channel for channel in range(self.block) if channel // 4 % 2 == half] for half in range(2)]


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

    with loop.visit(loop.first, loop.end) as image:
        arrays = _Arrays(
            gradient=loop.part(Array(gradient, kind), image, layer.num_outputs),
            places=loop.part(Array(places, BYTE), image, layer.num_outputs),
            features=loop.part(Array(features, kind), image, layer.num_inputs),
            of_features=loop.part(Array(of_features, kind), image, layer.num_inputs),
            weights=Array(weights, _KINDS[layer.padded_kind]),
            entries=own(entries, SIZE, layer.out_channels * layer.most_entries),
            counts=own(counts, SIZE, layer.out_channels),
            padded=own(padded, _KINDS[layer.padded_kind], layer.padded_size),
            padded_gradient=own(padded_gradient, FLOAT, layer.padded_size),
            of_weight=own(of_weight, FLOAT, layer.out_channels * layer.in_channels * 9),
            of_bias=own(of_bias, FLOAT, layer.out_channels),
        )
        _list_entries(loop, layer, arrays)
        _add_to_biases(loop, layer, arrays)
        with loop.visit(0, layer.in_channels, step=layer.block) as channel:
            _pad(loop, layer, arrays, channel)
            (_add_pairs_to_weights if layer.in_pairs else _add_to_weights)(loop, layer, arrays, channel)
            _clear(loop, layer, arrays)
            (_add_pairs_to_input if layer.in_pairs else _add_to_input)(loop, layer, arrays, channel)
            _write_input(loop, layer, arrays, channel)
    loop.close()


def _list_entries(loop: Loop, layer: _Layer, arrays: _Arrays) -> None:
    """List, for each output channel, where its gradients go to and what they are.

    An entry's lower half is the offset of the pixel above and to the left of the largest one, in a padded image; its
    upper half is the gradient. An entry of nobody is written, too, and overwritten by the next. The last is followed by
    one whose gradient is zero.
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
            inner = _offset(loop, layer, at.lshr(place, SIZE(1)), at.and_(place, SIZE(1)))
            offset = loop.total(corner, inner)
            bits = at.bitcast(loop.widened(loop.load(arrays.gradient, here)), WORD)
            entry = at.or_(offset, at.shl(at.zext(bits, SIZE), SIZE(32)))
            count = loop.load(arrays.counts, channel)
            loop.store(entry, arrays.entries, loop.total(loop.product(channel, layer.most_entries), count))
            is_somebody = at.zext(at.icmp_unsigned("!=", place, SIZE(NOBODY)), SIZE)
            loop.store(loop.total(count, is_somebody), arrays.counts, channel)
    with loop.visit(0, layer.out_channels) as channel:
        end = loop.total(loop.product(channel, layer.most_entries), loop.load(arrays.counts, channel))
        loop.store(SIZE(0), arrays.entries, end)


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


def _pad(loop: Loop, layer: _Layer, arrays: _Arrays, channel: Any) -> None:
    """Write some channels of the image, from this one on, into the padded one, whose frame is zero."""
    with loop.visit(0, layer.height) as row, loop.visit(0, layer.width) as column:
        values = loop.load(arrays.features, _offset_in_image(loop, layer, row, column, channel), layer.block)
        inside = _offset(loop, layer, loop.total(row, 1), loop.total(column, 1))
        loop.store(values if layer.in_pairs else loop.widened(values), arrays.padded, inside)


def _add_to_weights(loop: Loop, layer: _Layer, arrays: _Arrays, first_input: Any) -> None:
    at, lanes = loop.builder, layer.lanes
    kind = constant(FLOAT, 0, lanes).type
    with loop.visit(0, layer.out_channels) as channel:
        offsets = _offsets_of_weights(loop, layer, channel, first_input)
        sums = [loop.variable(kind, loop.load(arrays.of_weight, offset, lanes)) for offset in offsets]
        begin = loop.product(channel, layer.most_entries)
        with loop.visit(begin, loop.total(begin, loop.load(arrays.counts, channel))) as number:
            entry = loop.load(arrays.entries, number)
            factor = loop.everywhere(at.bitcast(at.trunc(at.lshr(entry, SIZE(32)), WORD), FLOAT), lanes)
            for total, pixel in zip(sums, _pixels(loop, layer, arrays, entry), strict=True):
                at.store(loop.multiply_add(factor, pixel, at.load(total)), total)
        for total, offset in zip(sums, offsets, strict=True):
            loop.store(at.load(total), arrays.of_weight, offset)


def _add_pairs_to_weights(loop: Loop, layer: _Layer, arrays: _Arrays, first_input: Any) -> None:
    """The same for two entries at once, of which each lane multiplies a pair."""
    at, lanes = loop.builder, layer.lanes
    kind = constant(FLOAT, 0, lanes).type
    with loop.visit(0, layer.out_channels) as channel:
        firsts = [loop.total(first_input, part * lanes) for part in range(len(layer.parts))]
        offsets = [_offsets_of_weights(loop, layer, channel, first) for first in firsts]
        sums = [
            [loop.variable(kind, loop.load(arrays.of_weight, offset, lanes)) for offset in some] for some in offsets
        ]
        begin = loop.product(channel, layer.most_entries)
        end = loop.total(begin, loop.load(arrays.counts, channel))
        with loop.visit(begin, end, step=2) as number:
            one, other = loop.load(arrays.entries, number), loop.load(arrays.entries, loop.total(number, 1))
            upper = at.and_(at.lshr(other, SIZE(32)), SIZE(0xFFFF0000))
            factor = loop.everywhere(at.trunc(at.or_(at.lshr(one, SIZE(48)), upper), WORD), lanes)
            pixels = [_pixels(loop, layer, arrays, entry) for entry in (one, other)]
            for tap, (first, second) in enumerate(zip(*pixels, strict=True)):
                for part, totals in zip(layer.parts, sums, strict=True):
                    pairs = loop.interleaved(first, second, part)
                    at.store(loop.add_pairs(pairs, factor, at.load(totals[tap])), totals[tap])
        for totals, some in zip(sums, offsets, strict=True):
            for total, offset in zip(totals, some, strict=True):
                loop.store(at.load(total), arrays.of_weight, offset)


def _pixels(loop: Loop, layer: _Layer, arrays: _Arrays, entry: Any) -> Iterator[Any]:
    """Read the pixels that an entry's gradient is multiplied with, for one weight of the kernel after the other."""
    corner = loop.builder.and_(entry, SIZE(0xFFFFFFFF))
    for row, column in KERNEL:
        yield loop.load(arrays.padded, loop.total(corner, _offset(loop, layer, row, column)), layer.block)


def _offsets_of_weights(loop: Loop, layer: _Layer, channel: Any, first_input: Any) -> list[Any]:
    """Offsets of an output channel's nine weights for a block of input channels, from this one on."""
    first = loop.total(loop.product(first_input, layer.out_channels), loop.product(channel, layer.lanes))
    return [loop.total(loop.product(first, 9), tap * layer.lanes) for tap in range(9)]


def _clear(loop: Loop, layer: _Layer, arrays: _Arrays) -> None:
    with loop.visit(0, layer.padded_size, step=layer.lanes) as offset:
        loop.store(constant(FLOAT, 0, layer.lanes), arrays.padded_gradient, offset)


def _add_to_input(loop: Loop, layer: _Layer, arrays: _Arrays, first_input: Any) -> None:
    """Add what each window gives to the 4x4 pixels around it, output channels by the place of their largest number."""
    at, lanes = loop.builder, layer.lanes
    zeros = constant(FLOAT, 0, lanes)
    with loop.visit(0, layer.rows) as row, loop.visit(0, layer.columns) as column:
        window = loop.product(loop.total(loop.product(row, layer.columns), column), layer.out_channels)
        around = {pixel: loop.variable(zeros.type, zeros) for pixel in product(range(4), range(4))}
        with loop.visit(0, layer.out_channels, step=layer.chunk) as start:
            for (top, left), mask in _masks(loop, layer, arrays, window, start):
                with loop.visit_ones(mask) as number:
                    channel = loop.total(start, number)
                    value = loop.widened(loop.load(arrays.gradient, loop.total(window, channel)))
                    factor = loop.everywhere(value, lanes)
                    weights = _weights(loop, layer, arrays, channel, first_input)
                    for (down, right), weight in zip(KERNEL, weights, strict=True):
                        total = around[top + down, left + right]
                        at.store(loop.multiply_add(factor, weight, at.load(total)), total)
        for pixel, total in around.items():
            _add_to_pixel(loop, layer, arrays, (row, column), pixel, 0, at.load(total))


def _add_pairs_to_input(loop: Loop, layer: _Layer, arrays: _Arrays, first_input: Any) -> None:
    """The same for two output channels at once, of which each lane multiplies a pair."""
    at, lanes = loop.builder, layer.lanes
    zeros = constant(FLOAT, 0, lanes)
    with loop.visit(0, layer.rows) as row, loop.visit(0, layer.columns) as column:
        window = loop.product(loop.total(loop.product(row, layer.columns), column), layer.out_channels)
        with loop.visit(0, layer.out_channels, step=layer.chunk) as start:
            for (top, left), mask in _masks(loop, layer, arrays, window, start):
                sums = [[loop.variable(zeros.type, zeros) for _ in layer.parts] for _ in KERNEL]
                with loop.visit_pairs_of_ones(mask) as (one, other, is_pair):
                    channels = [loop.total(start, number) for number in (one, other)]
                    values = [
                        at.zext(loop.load(arrays.gradient, loop.total(window, channel)), WORD) for channel in channels
                    ]
                    upper = at.select(is_pair, at.shl(values[1], WORD(16)), WORD(0))
                    factor = loop.everywhere(at.or_(values[0], upper), lanes)
                    weights = [_weights(loop, layer, arrays, channel, first_input) for channel in channels]
                    for totals, first, second in zip(sums, *weights, strict=True):
                        for part, total in zip(layer.parts, totals, strict=True):
                            pairs = loop.interleaved(first, second, part)
                            at.store(loop.add_pairs(pairs, factor, at.load(total)), total)
                for (down, right), totals in zip(KERNEL, sums, strict=True):
                    pixel = top + down, left + right
                    for number, total in enumerate(totals):
                        _add_to_pixel(loop, layer, arrays, (row, column), pixel, number, at.load(total))


def _masks(
    loop: Loop, layer: _Layer, arrays: _Arrays, window: Any, start: Any
) -> Iterator[tuple[tuple[int, int], Any]]:
    """Give each place of a window, and a mask of the output channels of a chunk whose largest number is there."""
    at, chunk = loop.builder, layer.chunk
    places = loop.load(arrays.places, loop.total(window, start), chunk)
    for place, corner in enumerate(PLACES):
        yield corner, at.bitcast(at.icmp_unsigned("==", places, constant(BYTE, place, chunk)), ir.IntType(chunk))


def _weights(loop: Loop, layer: _Layer, arrays: _Arrays, channel: Any, first_input: Any) -> Iterator[Any]:
    """Read the nine weights of an output channel for a block of input channels, from this one on."""
    first = loop.total(loop.product(first_input, layer.out_channels), loop.product(channel, layer.block))
    for tap in range(len(KERNEL)):
        yield loop.load(arrays.weights, loop.total(loop.product(first, len(KERNEL)), tap * layer.block), layer.block)


def _add_to_pixel(
    loop: Loop, layer: _Layer, arrays: _Arrays, window: tuple[Any, Any], pixel: tuple[int, int], part: int, value: Any
) -> None:
    """Add to the gradient of one of the 4x4 pixels around a window, for one vector of the block."""
    (row, column), (down, right) = window, pixel
    place = loop.total(loop.product(row, 2), down), loop.total(loop.product(column, 2), right)
    offset = loop.total(_offset(loop, layer, *place), part * layer.lanes)
    old = loop.load(arrays.padded_gradient, offset, layer.lanes)
    loop.store(loop.builder.fadd(old, value), arrays.padded_gradient, offset)


def _write_input(loop: Loop, layer: _Layer, arrays: _Arrays, first_input: Any) -> None:
    """Write a padded block's inside to the gradient of the image."""
    with loop.visit(0, layer.height) as row, loop.visit(0, layer.width) as column:
        inside = _offset(loop, layer, loop.total(row, 1), loop.total(column, 1))
        outside = _offset_in_image(loop, layer, row, column, first_input)
        firsts = range(0, layer.block, layer.lanes)
        vectors = [loop.load(arrays.padded_gradient, loop.total(inside, first), layer.lanes) for first in firsts]
        lane_of = {channel: lane for lane, channel in enumerate(chain.from_iterable(layer.parts))}
        for first in firsts:
            order = [lane_of[channel] for channel in range(first, first + layer.lanes)]
            values = loop.shuffled(vectors[0], vectors[-1], order)
            loop.store(loop.narrowed(values, arrays.of_features.kind), arrays.of_features, loop.total(outside, first))


def _offset(loop: Loop, layer: _Layer, row: Any, column: Any) -> Any:
    """Offset of a pixel in a padded block."""
    return loop.product(loop.total(loop.product(row, layer.padded_width), column), layer.block)


def _offset_in_image(loop: Loop, layer: _Layer, row: Any, column: Any, channel: Any) -> Any:
    """Offset of a pixel's channel in an image."""
    pixel = loop.product(loop.total(loop.product(row, layer.width), column), layer.in_channels)
    return loop.total(pixel, channel)
