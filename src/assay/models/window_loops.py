"""What loops over windows of four float32 numbers have in common, written for LLVM."""

from collections.abc import Sequence
from typing import Any

from assay.models.native import BYTE, FLOAT, Array, Loop, constant
from assay.models.pooling_native import NOBODY


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
