"""What loops over windows of 2x2 results of a convolution have in common, written for LLVM."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from assay.models.native import BYTE, FLOAT, Array, Loop, constant
from assay.models.pooling_native import NOBODY

KERNEL = tuple(product(range(3), range(3)))
"""Row and column of each of a kernel's nine weights."""

PLACES = tuple(product(range(2), range(2)))
"""Row and column of each of a window's four numbers."""


@dataclass(frozen=True)
class Layer:
    """Sizes of a 3x3 convolution that is pooled, known when its code is made.

    Attributes:
        height: Height of the input.
        width: Its width.
        in_channels: Its channels.
        out_channels: Channels of the output.
    """

    height: int
    width: int
    in_channels: int
    out_channels: int

    @property
    def rows(self) -> int:
        """Rows of windows."""
        return self.height // 2

    @property
    def columns(self) -> int:
        """Windows in a row."""
        return self.width // 2

    @property
    def num_windows(self) -> int:
        """Windows of an image."""
        return self.rows * self.columns

    @property
    def num_inputs(self) -> int:
        """Numbers of an image."""
        return self.height * self.width * self.in_channels

    @property
    def num_outputs(self) -> int:
        """Numbers of what comes of it."""
        return self.num_windows * self.out_channels


def keep_largest(loop: Loop, numbers: Sequence[Any], pooled: Array, places: Array, offset: Any) -> None:
    """Write the largest of a window's numbers if it is positive, else 0, and its place or `NOBODY`.

    Among equals the first wins; NaN is larger than any number, as in torch.

    Args:
        loop: Where it is written.
        numbers: The numbers in reading order, float32 vectors.
        pooled: Where the largest goes, as float32 or as bits of bfloat16.
        places: Where its place goes, int8.
        offset: Into both.
    """
    at, lanes = loop.builder, numbers[0].type.count
    zeros = constant(FLOAT, 0, lanes)
    largest, place = numbers[0], constant(BYTE, 0, lanes)
    for number, value in enumerate(numbers[1:], start=1):
        wins = at.or_(at.fcmp_ordered(">", value, largest), at.fcmp_unordered("uno", value, value))
        largest, place = at.select(wins, value, largest), at.select(wins, constant(BYTE, number, lanes), place)
    passes = at.fcmp_unordered(">", largest, zeros)
    loop.store(loop.narrowed(at.select(passes, largest, zeros), pooled.kind), pooled, offset)
    loop.store(at.select(passes, place, constant(BYTE, NOBODY, lanes)), places, offset)
