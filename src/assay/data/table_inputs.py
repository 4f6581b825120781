"""Rows of a table to score: columns are found by the names that they had in training, and read in a stream."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from assay.data.column_facts import MISSING, ColumnFacts, trim
from assay.data.columns import Feature
from assay.data.input_batches import InputBatch, Inputs, Item, Tally, Wanted, gather, read_parquet
from assay.data.row_files import read_chunks, start_of
from assay.data.rows import Chunk, RowReader
from assay.data.tables import to_float32 as to_float32
from assay.errors import BadExampleError, DataError

if TYPE_CHECKING:
    import pyarrow as pa

_RESERVED = ("label", "split", "group", "image", "text", "series")
_NUM_LISTED = 20
_READ_ROWS = 1000


@dataclass(frozen=True)
class _Source:
    """What one input of the model is read from.

    Attributes:
        column: Column of the file.
        level: The value that it stands for, in Unicode NFC; None for a number.
    """

    column: str
    level: str | None = None


def open_table_shards(path: Path, files: tuple[Path, ...], num_rows: int, names: list[str], wanted: Wanted) -> Inputs:
    """Open Parquet files that hold all columns as float32, as an import writes them.

    Args:
        path: What was named.
        files: The files.
        num_rows: Rows in all of them.
        names: Their columns.
        wanted: What the model takes.
    """

    def items(_: bool, tally: Tally) -> Iterator[Item]:
        for name, first, part in read_parquet(files, list(wanted.columns), _READ_ROWS, tally):
            columns = [part.column(column).to_numpy(zero_copy_only=False) for column in wanted.columns]
            values = np.stack(columns, axis=1).astype(np.float32)
            bad_rows = set(np.flatnonzero(np.isinf(values).any(axis=1)).tolist())
            for place, row in enumerate(values):
                error = BadExampleError(f"{name}, row {first + place}: holds an infinite value")
                yield Item(error if place in bad_rows else row, first + place)

    return Inputs(path, num_rows, ("row",), _left_out(names, set(wanted.columns)), _stacking(items))


def open_table_rows(path: Path, readers: tuple[RowReader, ...], num_rows: int | None, wanted: Wanted) -> Inputs:
    """Open files with a table's columns.

    Args:
        path: What was named.
        readers: One for each file.
        num_rows: Rows in all files, if known.
        wanted: What the model takes.

    Raises:
        DataError: Columns that the model was trained on are missing.
    """
    start = start_of(readers[0])
    sources = find_sources(path, list(start.columns), wanted)
    features = tuple(_to_feature(name, source, start) for name, source in zip(wanted.columns, sources, strict=True))
    notes = [*readers[0].notes, *_left_out([*start.columns, *readers[0].nested], {one.column for one in sources})]
    commas = sorted({feature.column for feature in features if feature.decimal_comma})
    notes += [f"Read the comma in {column!r} as decimal comma." for column in commas]
    if readers[0].unit == "line":
        notes.append("Column row is the line in the file, from 1.")

    def items(skip_bad: bool, tally: Tally) -> Iterator[Item]:
        for reader, chunk, rows in read_chunks(readers, skip_bad, tally):
            yield from _to_items(reader, chunk, rows, features, tally)

    return Inputs(path, num_rows, ("row",), tuple(notes), _stacking(items))


def find_sources(path: Path, names: list[str], wanted: Wanted) -> tuple[_Source, ...]:
    """Find the column of each input: that of its name, or for ``colour=red`` the column ``colour``.

    Args:
        path: The file, for errors.
        names: Its columns.
        wanted: What the model takes.

    Raises:
        DataError: Columns are missing; all of them are named.
    """
    found = {column: _source_of(column, set(names)) for column in wanted.columns}
    missing = list(dict.fromkeys(column.split("=")[0] for column, source in found.items() if source is None))
    if missing:
        near = [f"{get_close_matches(name, names, 1)[0]!r}" for name in missing if get_close_matches(name, names, 1)]
        hint = f" Did you mean {', '.join(near[:3])}?" if near else ""
        raise DataError(
            f"{path}: lacks {_listed(missing)}, and {wanted.takes} with {len(wanted.columns)} columns. It has "
            f"{_listed(names)}.{hint} Name the columns as they were in training."
        )
    return tuple(source for source in found.values() if source is not None)


def _source_of(column: str, names: set[str]) -> _Source | None:
    if column in names:
        return _Source(column)
    if column.endswith("_") and column[:-1] in _RESERVED and column[:-1] in names:
        return _Source(column[:-1])  # An import renames such a column, as shards use its name.
    places = [place for place, letter in enumerate(column) if letter == "="]
    return next((_Source(column[:place], column[place + 1 :]) for place in places if column[:place] in names), None)


def _to_feature(name: str, source: _Source, start: Chunk) -> Feature:
    if source.level is not None:
        return Feature(source.column, (name,), (source.level,))
    facts = ColumnFacts(source.column)
    facts.update(start.column(source.column), start.numbers)
    return Feature(source.column, (name,), decimal_comma=facts.has_decimal_commas)


def _to_items(
    reader: RowReader, chunk: Chunk, rows: list[int], features: tuple[Feature, ...], tally: Tally
) -> Iterator[Item]:
    import pyarrow.compute as pc

    values = np.zeros((len(rows), len(features)), np.float32)
    reasons: dict[int, str] = {}
    cells = {column: trim(chunk.column(column)) for column in {feature.column for feature in features}}
    of_level = {
        feature.column: pc.utf8_normalize(cells[feature.column], "NFC") for feature in features if feature.levels
    }
    for place, feature in enumerate(features):
        if feature.levels:
            is_level = pc.equal(of_level[feature.column], feature.levels[0])
            values[:, place] = is_level.to_numpy(zero_copy_only=False)
        else:
            values[:, place] = to_float32(cells[feature.column], feature, reasons)
    for column, found in of_level.items():
        levels = [feature.levels[0] for feature in features if feature.column == column and feature.levels]
        tally.unknown_levels[column] += _count_unknown(found, levels)
    for place, row in enumerate(rows):
        reason = reasons.get(place)
        error = BadExampleError(f"{reader.place(chunk.numbers[place])}: {reason}")
        yield Item(error if reason else values[place], row)


def _count_unknown(cells: "pa.Array", levels: list[str]) -> int:
    import pyarrow as pa
    import pyarrow.compute as pc

    known = pc.is_in(cells, value_set=pa.array([*levels, *MISSING]))
    return len(cells) - int(pc.sum(known).as_py() or 0)


def _left_out(names: list[str], used: set[str]) -> tuple[str, ...]:
    others = [name for name in dict.fromkeys(names) if name not in used]
    return (f"Left out columns: {_listed(others)}.",) if others else ()


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NUM_LISTED} more" if len(names) > _NUM_LISTED else ""
    return ", ".join(repr(name) for name in names[:_NUM_LISTED]) + more


def _stacking(
    items: Callable[[bool, Tally], Iterator[Item]],
) -> Callable[[int, bool, Tally], Iterator[InputBatch]]:
    """Make a reader of rows."""

    def read(batch_size: int, skip_bad: bool, tally: Tally) -> Iterator[InputBatch]:
        return gather(items(skip_bad, tally), np.stack, batch_size, skip_bad, "rows", tally)

    return read
