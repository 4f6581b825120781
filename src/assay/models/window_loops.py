"""What loops over windows of 2x2 results of a convolution have in common, written for LLVM."""

import math
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

    Among equals the first wins. Where one is NaN, NaN is written, as by torch, and some place.

    Args:
        loop: Where it is written.
        numbers: The numbers in reading order, float32 vectors.
        pooled: Where the largest goes, as float32 or as bits of bfloat16.
        places: Where its place goes, int8.
        offset: Into both.
    """
    at, lanes = loop.builder, numbers[0].type.count
    zeros = constant(FLOAT, 0, lanes)

    def larger(first: tuple[Any, Any], second: tuple[Any, Any]) -> tuple[Any, Any]:
        wins = at.fcmp_ordered(">", second[0], first[0])
        return at.select(wins, second[0], first[0]), at.select(wins, second[1], first[1])

    upper_left, upper_right, lower_left, lower_right = (
        (value, constant(BYTE, place, lanes)) for place, value in enumerate(numbers)
    )
    largest, place = larger(larger(upper_left, upper_right), larger(lower_left, lower_right))
    is_nan = at.or_(at.fcmp_unordered("uno", *numbers[:2]), at.fcmp_unordered("uno", *numbers[2:]))
    largest = at.select(is_nan, constant(FLOAT, math.nan, lanes), largest)
    passes = at.fcmp_unordered(">", largest, zeros)
    loop.store(loop.narrowed(at.select(passes, largest, zeros), pooled.kind), pooled, offset)
    loop.store(at.select(passes, place, constant(BYTE, NOBODY, lanes)), places, offset)
