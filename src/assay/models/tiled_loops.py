"""Both ways of `assay.models.pooled_conv` on a processor that multiplies tiles of bfloat16 (AMX), written for LLVM.

A tile is 16 rows of 64 bytes. One instruction adds the product of two to a third, 16x32 times 32x16 numbers. An image
has a frame of zeros and lies in one row of pixels, ``P`` to a line, so that an offset ``t`` of the kernel is a distance
``s(t)`` in that row and sixteen neighbouring pixels are sixteen rows of a tile, whatever the image's width::

    y[q, o]          = sum over t, i of x[q + s(t), i] * weight[o, i, t]
    d x[q, i]        = sum over t, o of g[q - s(t), o] * weight[o, i, t]
    d weight[o,i,t]  = sum over q of x[q + s(t), i] * g[q, o]

``g`` is the gradient at the places of the maxima, and zero elsewhere: all zeros are multiplied. Between lines there are
results that mean nothing, of pixels of the frame; nobody reads them, and ``g`` is zero there. Sums are float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from llvmlite import ir
from torch import Tensor

from assay.models.native import (
    BYTE,
    FLOAT,
    SHORT,
    Array,
    Loop,
    MachineCode,
    constant,
    may_multiply_tiles,
    new_module,
    sum_of_shares,
)
from assay.models.window_loops import KERNEL, PLACES, Layer, keep_largest

CHANNELS = 32
"""Input and output channels have to be a multiple of what a tile's row holds."""

_ROWS, _ROW_BYTES = 16, 64
_LANES = 16
_SUMS, _FIRST, _SECOND = (0, 1, 2, 3), 4, 5
"""Numbers of the tiles: four sums of the products of two tiles with two others, and one of either to multiply."""

_SHAPES = bytes([1, *[0] * 15, *[_ROW_BYTES, 0] * 8, *[0] * 16, *[_ROWS] * 8, *[0] * 8])
"""What the processor is told: palette 1, bytes of a row and rows for each tile."""


class TiledForward:
    """Machine code of the forward pass for layers of one shape, whose arrays are bfloat16.

    Args:
        height: Height of the input.
        width: Its width.
        in_channels: Its channels, a multiple of `CHANNELS`.
        out_channels: Channels of the output, a multiple of `CHANNELS`.

    Raises:
        RuntimeError: The processor or the system has no tiles; or LLVM cannot.
    """

    def __init__(self, height: int, width: int, in_channels: int, out_channels: int) -> None:
        self._layer = layer = _layer(height, width, in_channels, out_channels)
        module = new_module("tiled_forward")
        _write_forward(module, layer)
        self._code = MachineCode(str(module))

    def run(
        self,
        features: Float[Tensor, "batch height width channel"],
        weight: Float[Tensor, "out_channel channel 3 3"],
        bias: Float[Tensor, " out_channel"],
    ) -> tuple[
        Float[Tensor, "batch half_height half_width out_channel"],
        Int[Tensor, "batch half_height half_width out_channel"],
    ]:
        """Return the pooled activations, and the places of the maxima, int8.

        Args:
            features: Contiguous.
            weight: In any memory layout.
            bias: Contiguous.
        """
        layer, num_shares = self._layer, torch.get_num_threads()
        pooled = features.new_empty((len(features), layer.rows, layer.columns, layer.out_channels))
        places = torch.empty_like(pooled, dtype=torch.int8)
        padded = features.new_zeros((num_shares, layer.num_pixels, layer.in_channels))
        results = torch.empty((num_shares, layer.num_pixels, layer.out_channels))
        arrays = (layer.shapes, features, layer.forward_tiles(weight), bias.float(), padded, results, pooled, places)
        self._code.run("forward", len(features), [array.data_ptr() for array in arrays])
        return pooled, places


class TiledGradients:
    """Machine code of the backward pass for layers of one shape, whose arrays are bfloat16.

    Args:
        height: Height of the input.
        width: Its width.
        in_channels: Its channels, a multiple of `CHANNELS`.
        out_channels: Channels of the output, a multiple of `CHANNELS`.

    Raises:
        RuntimeError: The processor or the system has no tiles; or LLVM cannot.
    """

    def __init__(self, height: int, width: int, in_channels: int, out_channels: int) -> None:
        self._layer = layer = _layer(height, width, in_channels, out_channels)
        module = new_module("tiled_gradients")
        _write_gradients(module, layer)
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
        of_features = torch.empty_like(features)
        of_weight = torch.zeros((num_shares, 9 * layer.in_channels * layer.out_channels))
        of_bias = torch.zeros((num_shares, layer.out_channels))
        padded = features.new_zeros((num_shares, layer.num_pixels, layer.in_channels))
        turned = torch.empty_like(padded)
        spread = features.new_zeros((num_shares, layer.num_pixels, layer.out_channels))
        paired = torch.zeros_like(spread)
        results = torch.empty((num_shares, layer.num_pixels, layer.in_channels))
        arrays = (
            *(layer.shapes, gradient, places, features, layer.backward_tiles(weight)),
            *(padded, turned, spread, paired, results, of_weight, of_bias, of_features),
        )
        self._code.run("gradients", len(gradient), [array.data_ptr() for array in arrays])
        return of_features, layer.in_order(sum_of_shares(of_weight)), sum_of_shares(of_bias)


def _layer(height: int, width: int, in_channels: int, out_channels: int) -> "_Layer":
    if not may_multiply_tiles():
        raise RuntimeError("the processor, or its system, has no tiles of bfloat16")
    if in_channels % CHANNELS or out_channels % CHANNELS:
        raise RuntimeError(f"{in_channels} and {out_channels} channels do not fill tiles")
    return _Layer(height, width, in_channels, out_channels)


@dataclass(frozen=True)
class _Layer(Layer):
    """Sizes, known when the code is made."""

    @cached_property
    def shapes(self) -> Tensor:
        """Shapes of the tiles."""
        return torch.frombuffer(bytearray(_SHAPES), dtype=torch.uint8)

    @property
    def line(self) -> int:
        """Pixels of a line with its frame, an even number: two neighbouring columns of windows are a pair."""
        return (self.width + 3) // 2 * 2

    @property
    def num_results(self) -> int:
        """Results of an image with those that mean nothing, for whole pairs of tiles."""
        return -(-self.height * self.line // (2 * _ROWS)) * 2 * _ROWS

    @property
    def num_pixels(self) -> int:
        """Pixels of an image with its frame, and zeros for the last tiles at the farthest offset."""
        return -(-(self.num_results + self.distance((2, 2))) // (2 * _ROWS)) * 2 * _ROWS

    def distance(self, tap: tuple[int, int]) -> int:
        """Return how far an offset of the kernel is in the row of pixels."""
        return tap[0] * self.line + tap[1]

    def forward_tiles(self, weight: Tensor) -> Tensor:
        """Return weights as tiles ``[tap, block of inputs, block of outputs]``, each ``[pair, output, of pair]``."""
        blocks = weight.reshape(self.out_channels // 16, 16, self.in_channels // 32, 16, 2, 9)
        return blocks.permute(5, 2, 0, 3, 1, 4).contiguous()

    def backward_tiles(self, weight: Tensor) -> Tensor:
        """Return weights as tiles ``[tap from the last, block of outputs, block of inputs]``."""
        blocks = weight.reshape(self.out_channels // 32, 16, 2, self.in_channels // 16, 16, 9).flip(-1)
        return blocks.permute(5, 0, 3, 1, 4, 2).contiguous()

    def in_order(self, of_weight: Tensor) -> Tensor:
        """Return gradients of weights, tiles ``[tap, block of inputs, block of outputs]``, as torch wants them."""
        tiles = of_weight.view(9, self.in_channels // 16, self.out_channels // 16, 16, 16)
        return tiles.permute(2, 4, 1, 3, 0).reshape(self.out_channels, self.in_channels, 3, 3)


def _write_forward(module: Any, layer: _Layer) -> None:
    loop = Loop(module, "forward", num_values=8)
    shapes, features, weights, biases, padded, results, pooled, places = loop.values
    with loop.tiles(shapes), loop.visit(loop.first, loop.end) as image:
        frame = loop.part(Array(padded, SHORT), loop.share, layer.num_pixels * layer.in_channels)
        sums = loop.part(Array(results, FLOAT), loop.share, layer.num_pixels * layer.out_channels)
        _pad(loop, layer, loop.part(Array(features, SHORT), image, layer.num_inputs), frame)
        _convolve(loop, layer, frame, layer.in_channels, Array(weights, SHORT), sums, layer.out_channels)
        _pool(
            loop,
            layer,
            sums,
            Array(biases, FLOAT),
            loop.part(Array(pooled, SHORT), image, layer.num_outputs),
            loop.part(Array(places, BYTE), image, layer.num_outputs),
        )
    loop.close()


def _write_gradients(module: Any, layer: _Layer) -> None:
    loop = Loop(module, "gradients", num_values=13)
    shapes, gradient, places, features, weights, *rooms, of_weight, of_bias, of_features = loop.values
    inputs, outputs = layer.num_pixels * layer.in_channels, layer.num_pixels * layer.out_channels
    padded, turned, spread, paired, results = (
        loop.part(Array(room, kind), loop.share, size)
        for room, kind, size in zip(
            rooms, (SHORT, SHORT, SHORT, SHORT, FLOAT), (inputs, inputs, outputs, outputs, inputs), strict=True
        )
    )
    weight_sums = loop.part(Array(of_weight, FLOAT), loop.share, 9 * layer.in_channels * layer.out_channels)
    bias_sums = loop.part(Array(of_bias, FLOAT), loop.share, layer.out_channels)
    with loop.tiles(shapes), loop.visit(loop.first, loop.end) as image:
        _spread(
            loop,
            layer,
            loop.part(Array(gradient, SHORT), image, layer.num_outputs),
            loop.part(Array(places, BYTE), image, layer.num_outputs),
            spread,
            paired,
            bias_sums,
        )
        _pad(loop, layer, loop.part(Array(features, SHORT), image, layer.num_inputs), padded)
        _turn(loop, layer, padded, turned)
        _add_weights(loop, layer, turned, paired, weight_sums)
        _convolve(loop, layer, spread, layer.out_channels, Array(weights, SHORT), results, layer.in_channels)
        _unpad(loop, layer, results, loop.part(Array(of_features, SHORT), image, layer.num_inputs))
    loop.close()


def _pad(loop: Loop, layer: _Layer, image: Array, padded: Array) -> None:
    """Write the image into its frame, which is zero."""
    length = layer.width * layer.in_channels
    with loop.visit(0, layer.height) as row, loop.visit(0, length, step=CHANNELS) as place:
        values = loop.load(image, loop.total(loop.product(row, length), place), CHANNELS)
        pixel = loop.total(loop.product(row, layer.line), layer.distance((1, 1)))
        loop.store(values, padded, loop.total(loop.product(pixel, layer.in_channels), place))


def _unpad(loop: Loop, layer: _Layer, results: Array, image: Array) -> None:
    """Write the results of an image's own pixels, rounded."""
    length = layer.width * layer.in_channels
    with loop.visit(0, layer.height) as row, loop.visit(0, length, step=_LANES) as place:
        values = loop.load(results, loop.total(loop.product(row, layer.line * layer.in_channels), place), _LANES)
        loop.store(loop.converted(values), image, loop.total(loop.product(row, length), place))


def _convolve(
    loop: Loop, layer: _Layer, pixels: Array, num_inputs: int, weights: Array, results: Array, num_outputs: int
) -> None:
    """Write all results of an image: two tiles of 16 pixels times two of 16 output channels at a time."""
    blocks, tile = num_inputs // CHANNELS, _ROWS * CHANNELS
    with (
        loop.visit(0, num_outputs // _LANES, step=2) as block,
        loop.visit(0, layer.num_results, step=2 * _ROWS) as first,
    ):
        for number in _SUMS:
            loop.zero_tile(number)
        for tap, place in enumerate(KERNEL):
            for inputs in range(blocks):
                begin = loop.product(loop.total(first, layer.distance(place)), num_inputs)
                nth = loop.total((tap * blocks + inputs) * (num_outputs // _LANES), block)
                firsts = [loop.total(begin, side * _ROWS * num_inputs + inputs * CHANNELS) for side in (0, 1)]
                seconds = [loop.product(loop.total(nth, side), tile) for side in (0, 1)]
                _add_products(loop, (pixels, firsts, num_inputs * 2), (weights, seconds, _ROW_BYTES))
        for number in _SUMS:
            down, right = divmod(number, 2)
            pixel = loop.product(loop.total(first, down * _ROWS), num_outputs)
            here = loop.total(pixel, loop.product(loop.total(block, right), _LANES))
            loop.store_tile(number, results, here, num_outputs * 4)


def _add_weights(loop: Loop, layer: _Layer, turned: Array, paired: Array, sums: Array) -> None:
    """Add an image's gradients of weights: two tiles of 16 inputs times two of 16 outputs, 32 pixels at a time."""
    num_blocks, tile = layer.out_channels // _LANES, _ROWS * _LANES
    for tap, place in enumerate(KERNEL):
        with (
            loop.visit(0, layer.in_channels // _LANES, step=2) as inputs,
            loop.visit(0, num_blocks, step=2) as outputs,
        ):
            nth = loop.total(loop.product(loop.total(inputs, tap * layer.in_channels // _LANES), num_blocks), outputs)
            sums_at = [
                loop.product(loop.total(nth, down * num_blocks + right), tile) for down in (0, 1) for right in (0, 1)
            ]
            for number, here in zip(_SUMS, sums_at, strict=True):
                loop.load_tile(number, sums, here, _ROW_BYTES)
            with loop.visit(0, layer.num_results, step=CHANNELS) as first:
                pixel = loop.total(first, layer.distance(place))
                begin = loop.product(first, layer.out_channels)
                firsts, seconds = [], []
                for side in (0, 1):
                    channel = loop.product(loop.total(inputs, side), _LANES)
                    firsts.append(loop.total(loop.product(channel, layer.num_pixels), pixel))
                    seconds.append(loop.total(begin, loop.product(loop.total(outputs, side), 2 * _LANES)))
                _add_products(loop, (turned, firsts, layer.num_pixels * 2), (paired, seconds, layer.out_channels * 4))
            for number, here in zip(_SUMS, sums_at, strict=True):
                loop.store_tile(number, sums, here, _ROW_BYTES)


def _add_products(loop: Loop, firsts: tuple[Array, list[Any], int], seconds: tuple[Array, list[Any], int]) -> None:
    """Add the products of two tiles with two others to the four sums.

    One of them is read twice, so that only six of the eight tiles are in use. On a shared machine all eight took half
    as long again for minutes on end, presumably while somebody else was on the core's other thread; else the same.

    Args:
        loop: Where instructions go.
        firsts: An array, where the two tiles are in it, and the bytes from row to row.
        seconds: The same of the two others.
    """
    loaded: dict[int, int] = {}
    for down, right in ((0, 0), (0, 1), (1, 1), (1, 0)):
        for number, side, (array, places, stride) in ((_FIRST, down, firsts), (_SECOND, right, seconds)):
            if loaded.get(number) != side:
                loop.load_tile(number, array, places[side], stride)
                loaded[number] = side
        loop.multiply_tiles(2 * down + right, _FIRST, _SECOND)


def _pool(loop: Loop, layer: _Layer, results: Array, biases: Array, pooled: Array, places: Array) -> None:
    with (
        loop.visit(0, layer.rows) as row,
        loop.visit(0, layer.columns) as column,
        loop.visit(0, layer.out_channels, step=_LANES) as channel,
    ):
        corner = loop.total(loop.product(row, 2 * layer.line), loop.product(column, 2))
        bias = loop.load(biases, channel, _LANES)
        numbers = []
        for down, right in PLACES:
            pixel = loop.total(corner, down * layer.line + right)
            value = loop.load(results, loop.total(loop.product(pixel, layer.out_channels), channel), _LANES)
            numbers.append(loop.builder.fadd(value, bias))
        window = loop.total(loop.product(row, layer.columns), column)
        keep_largest(loop, numbers, pooled, places, loop.total(loop.product(window, layer.out_channels), channel))


def _spread(
    loop: Loop, layer: _Layer, gradient: Array, places: Array, spread: Array, paired: Array, sums: Array
) -> None:
    """Write each gradient at the place of its maximum and zero at the three others, and add up those of the biases.

    It is written twice: with a pixel's channels together in the frame of `spread`, and without a frame in `paired`
    with the two pixels of a pair together, ``[pair, channel, of pair]``.
    """
    at, zeros = loop.builder, constant(SHORT, 0, _LANES)
    with (
        loop.visit(0, layer.rows) as row,
        loop.visit(0, layer.columns) as column,
        loop.visit(0, layer.out_channels, step=_LANES) as channel,
    ):
        window = loop.total(loop.product(row, layer.columns), column)
        here = loop.total(loop.product(window, layer.out_channels), channel)
        values, place = loop.load(gradient, here, _LANES), loop.load(places, here, _LANES)
        at_place = [
            at.select(at.icmp_unsigned("==", place, constant(BYTE, number, _LANES)), values, zeros)
            for number in range(len(PLACES))
        ]
        corner = loop.total(loop.product(row, 2 * layer.line), loop.product(column, 2))
        for (down, right), value in zip(PLACES, at_place, strict=True):
            pixel = loop.total(corner, layer.distance((down + 1, right + 1)))
            loop.store(value, spread, loop.total(loop.product(pixel, layer.out_channels), channel))
        for down, pair in enumerate((at_place[:2], at_place[2:])):
            pixel = loop.total(corner, down * layer.line)
            both = loop.interleaved(pair[0], pair[1], range(_LANES))
            loop.store(
                at.bitcast(both, ir.VectorType(SHORT, 2 * _LANES)),
                paired,
                loop.total(loop.product(pixel, layer.out_channels), loop.product(channel, 2)),
            )
        passed = at.or_(at.or_(at_place[0], at_place[1]), at.or_(at_place[2], at_place[3]))
        loop.store(at.fadd(loop.load(sums, channel, _LANES), loop.widened(passed)), sums, channel)


def _turn(loop: Loop, layer: _Layer, padded: Array, turned: Array) -> None:
    """Write the framed image with a channel's pixels together: squares of 16 channels and 16 pairs of pixels."""
    at = loop.builder
    with (
        loop.visit(0, layer.num_pixels, step=2 * _LANES) as first,
        loop.visit(0, layer.in_channels, step=_LANES) as channel,
    ):
        rows = []
        for pair in range(_LANES):
            both = [
                loop.load(
                    padded,
                    loop.total(loop.product(loop.total(first, 2 * pair + side), layer.in_channels), channel),
                    _LANES,
                )
                for side in (0, 1)
            ]
            rows.append(loop.interleaved(both[0], both[1], range(_LANES)))
        for number, row in enumerate(_transposed(loop, rows)):
            here = loop.total(loop.product(loop.total(channel, number), layer.num_pixels), first)
            loop.store(at.bitcast(row, ir.VectorType(SHORT, 2 * _LANES)), turned, here)


def _transposed(loop: Loop, rows: Sequence[Any]) -> list[Any]:
    """Return the columns of a square of numbers, in as many halvings as it takes: each swaps two quarters."""
    size, rows = len(rows), list(rows)
    step = size // 2
    while step:
        for first in range(size):
            if first & step:
                continue
            upper, lower = rows[first], rows[first + step]
            rows[first] = loop.shuffled(
                upper, lower, [lane - step + size if lane & step else lane for lane in range(size)]
            )
            rows[first + step] = loop.shuffled(
                upper, lower, [lane + size if lane & step else lane + step for lane in range(size)]
            )
        step //= 2
    return rows
