"""Series to score: an array, steps put together with their lengths, or Parquet shards, read in a stream."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from assay.data.array_files import explained, fill, member_names, open_member, read_array_header
from assay.data.input_batches import (
    CUT,
    PADDED,
    InputBatch,
    Inputs,
    Item,
    Tally,
    Wanted,
    gather,
    hash_file,
    read_parquet,
)
from assay.data.ragged import from_rows
from assay.data.series_files import look_over as look_over
from assay.data.shards import to_series as to_series
from assay.errors import BadExampleError, DataError

_VALUES = ("X", "x", "data", "series", "values")
_LENGTHS = "lengths"
_READ_ROWS = 64
_LENGTHS_AT_ONCE = 1024


@dataclass(frozen=True)
class _Layout:
    """How series lie in a file.

    Attributes:
        values: Name of the array of values; None in a ``.npy`` file.
        shape: Of it: ``[example, step]``, ``[example, step, channel]`` or, with lengths, ``[step(, channel)]``.
        dtype: Of its values.
        num_examples: Series there are.
        has_lengths: Whether all steps are put together.
    """

    values: str | None
    shape: tuple[int, ...]
    dtype: np.dtype
    num_examples: int
    has_lengths: bool

    @property
    def num_channels(self) -> int:
        """Channels of a step."""
        rest = self.shape[1:] if self.has_lengths else self.shape[2:]
        return rest[0] if rest else 1


def open_series_array(path: Path, wanted: Wanted) -> Inputs:
    """Open a ``.npy`` or ``.npz`` file of series.

    Args:
        path: The file: ``[example, step(, channel)]``, or in ``.npz`` all steps ``[step(, channel)]`` with ``lengths``.
        wanted: What the model takes.

    Raises:
        DataError: It holds no series, or series of other channels.
    """
    with explained(path):
        layout = _find_layout(path, wanted)
    if layout.num_channels != wanted.shape[1]:
        raise DataError(
            f"{path}: has shape {list(layout.shape)}, so {layout.num_channels} channels, and {wanted.takes} of "
            f"{wanted.shape[1]} channels{_named(wanted)}. Save the channels last, and all of them."
        )
    if not layout.num_examples:
        raise DataError(f"{path}: has shape {list(layout.shape)}, so it holds no series. Name a file that does.")
    items = _cutting(lambda tally: _read(path, layout, tally), wanted)
    return Inputs(path, layout.num_examples, ("row",), (), items)


def open_series_shards(path: Path, files: tuple[Path, ...], num_rows: int, wanted: Wanted) -> Inputs:
    """Open Parquet files with a column ``series``."""

    def series(tally: Tally) -> Iterator[tuple[np.ndarray | None, str]]:
        for name, row, part in read_parquet(files, ["series"], _READ_ROWS, tally):
            names = [f"{name}, row {row + place}" for place in range(part.num_rows)]
            yield from zip(to_series(part.column("series"), names), names, strict=True)

    return Inputs(path, num_rows, ("row",), (), _cutting(series, wanted))


def _named(wanted: Wanted) -> str:
    return f" ({', '.join(wanted.columns)})" if wanted.columns else ""


def _find_layout(path: Path, wanted: Wanted) -> _Layout:
    """Read the headers of a file."""
    if path.suffix.lower() == ".npy":
        with path.open("rb") as file:
            shape, dtype = read_array_header(path, file)
        return _check_layout(path, _Layout(None, shape, dtype, shape[0] if shape else 0, False), wanted)
    names = member_names(path)
    found = [name for name in _VALUES if name in names] or (names if len(names) == 1 else [])
    if len(found) != 1:
        raise DataError(
            f"{path}: holds the arrays {', '.join(names[:10]) or '(none)'}, and it is unclear which are the series. "
            f"Name one of them {_VALUES[0]}, and beside steps put together their {_LENGTHS}."
        )
    with open_member(path, found[0]) as file:
        shape, dtype = read_array_header(path, file)
    if _LENGTHS not in names:
        return _check_layout(path, _Layout(found[0], shape, dtype, shape[0] if shape else 0, False), wanted)
    with open_member(path, _LENGTHS) as file:
        lengths, kind = read_array_header(path, file)
    if len(lengths) != 1 or kind.kind not in "iu":
        raise DataError(f"{path}: lengths are {kind} of shape {list(lengths)}. Save whole numbers [example].")
    return _check_layout(path, _Layout(found[0], shape, dtype, lengths[0], True), wanted)


def _check_layout(path: Path, layout: _Layout, wanted: Wanted) -> _Layout:
    shape, dtype = layout.shape, layout.dtype
    is_image = dtype == np.uint8 and (len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3)))
    if is_image and not layout.has_lengths:
        raise DataError(f"{path}: holds images (uint8 of shape {list(shape)}), and {wanted.takes}. Name another file.")
    allowed = (1, 2) if layout.has_lengths else (2, 3)
    if dtype.kind not in "fiub" or len(shape) not in allowed:
        raise DataError(
            f"{path}: is {dtype} of shape {list(shape)}, and {wanted.takes}. Save numbers of [n, step, channel], or in "
            ".npz all steps X of [step, channel] with their lengths of [n]."
        )
    return layout


def _read(path: Path, layout: _Layout, tally: Tally) -> Iterator[tuple[np.ndarray, str]]:
    """Read series one by one; the file is hashed before, as its arrays need not lie in the order of reading."""
    hash_file(path, tally)
    with explained(path), ExitStack() as stack:
        file = stack.enter_context(path.open("rb") if layout.values is None else open_member(path, layout.values))
        read_array_header(path, file)
        for row, num_steps in enumerate(_lengths(path, layout, stack)):
            steps = np.empty((num_steps, layout.num_channels), layout.dtype)
            if steps.size:
                fill(file, steps.reshape(-1).view(np.uint8).data)
            yield steps, f"{path.name}, row {row}"
        if file.read(1):
            raise DataError(f"{path}: holds more values than its header or its lengths say. Correct them.")


def _lengths(path: Path, layout: _Layout, stack: ExitStack) -> Iterator[int]:
    """Steps of each series, read as they are needed."""
    if not layout.has_lengths:
        yield from (layout.shape[1] for _ in range(layout.num_examples))
        return
    file = stack.enter_context(open_member(path, _LENGTHS))
    (count,), dtype = read_array_header(path, file)
    left = layout.shape[0]
    for first in range(0, count, _LENGTHS_AT_ONCE):
        lengths = np.empty(min(_LENGTHS_AT_ONCE, count - first), dtype)
        fill(file, lengths.view(np.uint8).data)
        for length in lengths.tolist():
            left -= length
            if length < 0 or left < 0:
                raise DataError(f"{path}: lengths add up to more than the {layout.shape[0]} steps. Correct them.")
            yield length
    if left:
        raise DataError(f"{path}: lengths leave {left} of {layout.shape[0]} steps over. Correct them.")


def _cutting(
    series: Callable[[Tally], Iterator[tuple[np.ndarray | None, str]]], wanted: Wanted
) -> Callable[[int, bool, Tally], Iterator[InputBatch]]:
    """Make a reader of series; longer ones are cut, shorter ones filled up with NaN."""
    max_length = wanted.shape[0]

    def padded(rows: list[np.ndarray]) -> np.ndarray:
        ragged = from_rows(rows)
        return ragged.padded(np.arange(len(rows)), max_length, np.nan)

    def read(batch_size: int, skip_bad: bool, tally: Tally) -> Iterator[InputBatch]:
        items = (_to_item(row, *one, wanted, tally) for row, one in enumerate(series(tally)))
        return gather(items, padded, batch_size, skip_bad, "series", tally)

    return read


def _to_item(row: int, steps: np.ndarray | None, name: str, wanted: Wanted, tally: Tally) -> Item:
    if steps is None:
        return Item(BadExampleError(f"{name}: has no series"), row)
    if steps.shape[1] != wanted.shape[1]:
        return Item(BadExampleError(f"{name}: has {steps.shape[1]} channels, not {wanted.shape[1]}"), row)
    kept, reason = look_over(steps)
    if reason:
        return Item(BadExampleError(f"{name}: {reason}"), row)
    tally.changes[PADDED] += kept < len(steps)
    tally.changes[CUT] += kept > wanted.shape[0]
    # Adding 0 makes 0 of -0, as an import does; the copy lets go of the steps that are cut.
    return Item(steps[: min(kept, wanted.shape[0])].astype(np.float32) + np.float32(0), row)
