"""Convolution, pooling and ReLU of `assay.models.pooled_conv` in less than half of the multiplications, for LLVM.

What a window of 2x2 results needs is a patch of 4x4 pixels. In Winograd's form its 36 multiplications for each pair of
channels are 16::

    V = B^T d B        d = the patch of one input channel            U = G g G^T        g = the 3x3 weights
    Y = A^T [sum over the input channels of U * V] A                 Y = the window, its largest number is pooled

          [1  0 -1  0]          [ 1    0    0 ]          [1  1  1  0]
    B^T = [0  1  1  0]      G = [1/2  1/2  1/2]    A^T = [0  1 -1 -1]
          [0 -1  1  0]          [1/2 -1/2  1/2]
          [0  1  0 -1]          [ 0    0    1 ]

U and V are rounded to bfloat16, in which they are multiplied, and summed in float32.

Source:
    Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR 2016, section 4.1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
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
    has_brain_float_products,
    new_module,
)
from assay.models.window_loops import Layer, keep_largest

_LANES = 16
_MOST_SUMS = 24
"""Vectors of sums that are in registers at once, of 32."""

_G = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]])
_BOTH_WAYS = torch.kron(_G, _G)
"""What makes of nine weights, end to end, the sixteen numbers of ``U``."""


class WinogradLoops:
    """Machine code for layers of one shape, whose arrays are bfloat16.

    Args:
        height: Height of the input.
        width: Its width.
        in_channels: Its channels, a multiple of 16.
        out_channels: Channels of the output, a multiple of 16.

    Raises:
        RuntimeError: The processor does not multiply bfloat16; or LLVM cannot.
    """

    def __init__(self, height: int, width: int, in_channels: int, out_channels: int) -> None:
        if not has_brain_float_products():
            raise RuntimeError("the processor does not multiply bfloat16")
        self._layer = layer = _Layer(height, width, in_channels, out_channels)
        module = new_module("winograd")
        _write(module, layer)
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
        padded = features.new_zeros((num_shares, layer.padded_size))
        patches = features.new_empty((num_shares, layer.patches_size))
        products = torch.empty((num_shares, layer.products_size))
        arrays = (features, layer.transformed(weight), bias.float(), padded, patches, products, pooled, places)
        self._code.run("forward", len(features), [array.data_ptr() for array in arrays])
        return pooled, places


@dataclass(frozen=True)
class _Layer(Layer):
    """Sizes, known when the code is made."""

    @property
    def padded_row(self) -> int:
        return (self.width + 2) * self.in_channels

    @property
    def padded_size(self) -> int:
        """Numbers of an image with a frame of zeros, ``[height + 2, width + 2, channel]``."""
        return (self.height + 2) * self.padded_row

    @property
    def block(self) -> int:
        """Output channels of which a window's sums are in registers at once."""
        return next(size for size in (64, 32, 16) if self.out_channels % size == 0)

    @property
    def num_blocks(self) -> int:
        return self.out_channels // self.block

    @property
    def spans(self) -> Sequence[int]:
        """Into how many windows each the row of windows is cut, so that their sums are in registers at once."""
        number = -(-self.columns // (_MOST_SUMS * _LANES // self.block))
        return [self.columns // number + (place < self.columns % number) for place in range(number)]

    @property
    def patches_size(self) -> int:
        """Numbers of a row's transformed patches, ``[place, column, channel]``."""
        return 16 * self.columns * self.in_channels

    @property
    def products_size(self) -> int:
        """Numbers of the products of a span and a block, ``[place, window, output channel]``."""
        return 16 * max(self.spans) * self.block

    def transformed(self, weight: Tensor) -> Tensor:
        """Return weights as the loops want them, bfloat16 ``[place, block, pair of inputs, output, input of pair]``."""
        # Brought into order pair by pair, and before nine numbers become sixteen: there is less to move.
        pairs = weight.permute(2, 3, 0, 1).clone(memory_format=torch.contiguous_format).view(torch.int32)
        in_order = pairs.view(9, self.num_blocks, self.block, self.in_channels // 2).transpose(2, 3).contiguous()
        return (_BOTH_WAYS @ in_order.view(torch.bfloat16).view(9, -1).float()).bfloat16()


@dataclass(frozen=True)
class _Arrays:
    """Arrays of a job: of the image that is visited, the weights, and the room of this share."""

    features: Array
    weights: Array
    biases: Array
    padded: Array
    patches: Array
    products: Array
    pooled: Array
    places: Array


def _write(module: Any, layer: _Layer) -> None:
    loop = Loop(module, "forward", num_values=8)
    features, weights, biases, padded, patches, products, pooled, places = loop.values
    with loop.visit(loop.first, loop.end) as image:
        arrays = _Arrays(
            features=loop.part(Array(features, SHORT), image, layer.num_inputs),
            weights=Array(weights, WORD),
            biases=Array(biases, FLOAT),
            padded=loop.part(Array(padded, SHORT), loop.share, layer.padded_size),
            patches=loop.part(Array(patches, SHORT), loop.share, layer.patches_size),
            products=loop.part(Array(products, FLOAT), loop.share, layer.products_size),
            pooled=loop.part(Array(pooled, SHORT), image, layer.num_outputs),
            places=loop.part(Array(places, BYTE), image, layer.num_outputs),
        )
        _pad(loop, layer, arrays)
        with loop.visit(0, layer.rows) as row:
            _transform(loop, layer, arrays, row)
            first = 0
            for span in layer.spans:
                with loop.visit(0, layer.num_blocks) as block:
                    _multiply(loop, layer, arrays, block, first, span)
                    _pool(loop, layer, arrays, row, block, first, span)
                first += span
    loop.close()


def _pad(loop: Loop, layer: _Layer, arrays: _Arrays) -> None:
    """Write the image into the padded one, whose frame is zero."""
    length = layer.width * layer.in_channels
    with loop.visit(0, layer.height) as row, loop.visit(0, length, step=_LANES) as place:
        values = loop.load(arrays.features, loop.total(loop.product(row, length), place), _LANES)
        inside = loop.total(loop.product(loop.total(row, 1), layer.padded_row), layer.in_channels, place)
        loop.store(values, arrays.padded, inside)


def _transform(loop: Loop, layer: _Layer, arrays: _Arrays, row: Any) -> None:
    """Write the transformed patches of a row of windows, ``V``."""
    with loop.visit(0, layer.columns) as column, loop.visit(0, layer.in_channels, step=_LANES) as channel:
        corner = loop.total(
            loop.product(row, 2 * layer.padded_row), loop.product(column, 2 * layer.in_channels), channel
        )
        patch = [
            [
                loop.widened(
                    loop.load(
                        arrays.padded, loop.total(corner, down * layer.padded_row + right * layer.in_channels), _LANES
                    )
                )
                for right in range(4)
            ]
            for down in range(4)
        ]
        numbers = [number for line in _both_ways(loop, patch, _of_patch) for number in line]
        for place, number in enumerate(numbers):
            here = loop.total(loop.product(loop.total(place * layer.columns, column), layer.in_channels), channel)
            loop.store(loop.converted(number), arrays.patches, here)


def _multiply(loop: Loop, layer: _Layer, arrays: _Arrays, block: Any, first: int, span: int) -> None:
    """Write ``sum over the input channels of U * V`` of some windows of the row and a block of output channels."""
    at, num_pairs = loop.builder, layer.in_channels // 2
    zeros = constant(FLOAT, 0, _LANES)
    vectors = range(0, layer.block, _LANES)
    with loop.visit(0, 16) as place:
        sums = [[loop.variable(zeros.type, zeros) for _ in vectors] for _ in range(span)]
        weights = loop.part(
            arrays.weights, loop.total(loop.product(place, layer.num_blocks), block), num_pairs * layer.block
        )
        pairs = loop.part(
            Array(arrays.patches.address, WORD), loop.total(loop.product(place, layer.columns), first), num_pairs
        )
        with loop.visit(0, num_pairs) as pair:
            factors = [loop.load(weights, loop.total(loop.product(pair, layer.block), v), _LANES) for v in vectors]
            for window, totals in enumerate(sums):
                pixels = loop.everywhere(loop.load(pairs, loop.total(window * num_pairs, pair)), _LANES)
                for factor, total in zip(factors, totals, strict=True):
                    at.store(loop.add_pairs(factor, pixels, at.load(total)), total)
        for window, totals in enumerate(sums):
            for vector, total in zip(vectors, totals, strict=True):
                here = loop.total(loop.product(loop.total(loop.product(place, span), window), layer.block), vector)
                loop.store(at.load(total), arrays.products, here)


def _pool(loop: Loop, layer: _Layer, arrays: _Arrays, row: Any, block: Any, first: int, span: int) -> None:
    """Transform the products into the numbers of each window, ``Y``, and keep the largest."""
    at = loop.builder
    with loop.visit(0, span) as window, loop.visit(0, layer.block, step=_LANES) as vector:
        products = [
            [
                loop.load(
                    arrays.products,
                    loop.total(loop.product(loop.total((4 * down + right) * span, window), layer.block), vector),
                    _LANES,
                )
                for right in range(4)
            ]
            for down in range(4)
        ]
        channel = loop.total(loop.product(block, layer.block), vector)
        bias = loop.load(arrays.biases, channel, _LANES)
        numbers = [at.fadd(number, bias) for line in _both_ways(loop, products, _of_products) for number in line]
        column = loop.total(first, window)
        here = loop.product(loop.total(loop.product(row, layer.columns), column), layer.out_channels)
        keep_largest(loop, numbers, arrays.pooled, arrays.places, loop.total(here, channel))


def _of_patch(loop: Loop, column: Sequence[Any]) -> list[Any]:
    """Multiply by ``B^T``."""
    at = loop.builder
    first, second, third, fourth = column
    return [at.fsub(first, third), at.fadd(second, third), at.fsub(third, second), at.fsub(second, fourth)]


def _of_products(loop: Loop, column: Sequence[Any]) -> list[Any]:
    """Multiply by ``A^T``."""
    at = loop.builder
    first, second, third, fourth = column
    return [at.fadd(at.fadd(first, second), third), at.fsub(at.fsub(second, third), fourth)]


def _both_ways(loop: Loop, square: Sequence[Sequence[Any]], multiply: Any) -> list[list[Any]]:
    """Multiply a square by a matrix from the left, and from the right by its transpose."""
    columns = [multiply(loop, [line[place] for line in square]) for place in range(len(square))]
    return [multiply(loop, line) for line in zip(*columns, strict=True)]
