"""The loops of pooling, written for LLVM."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from assay.models import native
from assay.models.pooling_native import LANES, NOBODY


def make_code() -> native.MachineCode:
    """Make the machine code of `assay.models.pooling_native.PoolKernels`."""
    module = native.new_module("pooling")
    for kind, name in ((native.SHORT, "integers"), (native.FLOAT, "floats")):
        for way, write in (("forward", _write_forward), ("backward", _write_backward)):
            loop = native.Loop(module, f"{way}_{name}", num_values=6)
            with _each_window(loop, kind) as window:
                write(loop, window)
            loop.close()
    return native.MachineCode(str(module))


@dataclass(frozen=True)
class _Window:
    """A window of `LANES` channels.

    Attributes:
        large: The array before pooling.
        small: The array after it.
        places: The places.
        corners: Offsets into `large` of the window's numbers, in reading order.
        here: Offset into `small` and `places`.
    """

    large: native.Array
    small: native.Array
    places: native.Array
    corners: tuple[Any, ...]
    here: Any


@contextmanager
def _each_window(loop: native.Loop, kind: Any) -> Iterator[_Window]:
    """Repeat what is written in the block for all windows, `LANES` channels at a time."""
    large, small, places, height, width, channels = loop.values
    half = loop.builder.lshr
    rows, columns = half(height, native.SIZE(1)), half(width, native.SIZE(1))
    below = loop.product(width, channels)
    with (
        loop.visit(loop.first, loop.end) as image,
        loop.visit(0, rows) as row,
        loop.visit(0, columns) as column,
        loop.visit(0, channels, step=LANES) as channel,
    ):
        top = loop.product(loop.total(loop.product(image, height), loop.product(row, 2)), below)
        corner = loop.total(top, loop.product(column, 2, channels), channel)
        window = loop.total(loop.product(loop.total(loop.product(image, rows), row), columns), column)
        yield _Window(
            native.Array(large, kind),
            native.Array(small, kind),
            native.Array(places, native.BYTE),
            tuple(loop.total(corner, offset) for offset in (0, channels, below, loop.total(below, channels))),
            loop.total(loop.product(window, channels), channel),
        )


def _write_forward(loop: native.Loop, window: _Window) -> None:
    """The larger of two numbers is the second only if it is larger, or NaN, as in torch."""
    at, kind = loop.builder, window.large.kind
    is_float = kind == native.FLOAT

    def second_wins(first: Any, second: Any) -> Any:
        if not is_float:
            return at.icmp_signed(">", second, first)
        return at.or_(at.fcmp_ordered(">", second, first), at.fcmp_unordered("uno", second, second))

    upper_left, upper_right, lower_left, lower_right = (
        loop.load(window.large, corner, LANES) for corner in window.corners
    )
    is_right = second_wins(upper_left, upper_right)
    upper = at.select(is_right, upper_right, upper_left)
    upper_place = at.select(is_right, _places(1), _places(0))
    is_right = second_wins(lower_left, lower_right)
    lower = at.select(is_right, lower_right, lower_left)
    lower_place = at.select(is_right, _places(3), _places(2))
    is_lower = second_wins(upper, lower)
    largest = at.select(is_lower, lower, upper)
    place = at.select(is_lower, lower_place, upper_place)
    zeros = native.constant(kind, 0, LANES)
    passes = at.fcmp_unordered(">", largest, zeros) if is_float else at.icmp_signed(">", largest, zeros)
    loop.store(at.select(passes, largest, zeros), window.small, window.here)
    loop.store(at.select(passes, place, _places(NOBODY)), window.places, window.here)


def _write_backward(loop: native.Loop, window: _Window) -> None:
    at = loop.builder
    gradient, place = (loop.load(array, window.here, LANES) for array in (window.small, window.places))
    zeros = native.constant(window.large.kind, 0, LANES)
    for corner, offset in enumerate(window.corners):
        is_here = at.icmp_signed("==", place, _places(corner))
        loop.store(at.select(is_here, gradient, zeros), window.large, offset)


def _places(corner: int) -> Any:
    """The same place in all lanes."""
    return native.constant(native.BYTE, corner, LANES)
