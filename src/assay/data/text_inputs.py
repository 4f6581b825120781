"""Texts to score: lines of a file, a folder of files, or a column of a table, read in a stream.

Texts become the token numbers that training would have made of them.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from assay.data.class_folders import ClassFile
from assay.data.column_facts import ColumnFacts
from assay.data.input_batches import (
    BLANK_LINE,
    CUT,
    NUL,
    InputBatch,
    Inputs,
    Item,
    Tally,
    Wanted,
    gather,
    hash_file,
    shown_name,
    walk_files,
)
from assay.data.ragged import from_rows
from assay.data.row_files import read_chunks, start_of
from assay.data.rows import Chunk, RowReader
from assay.data.text_folder import TEXT_SUFFIXES, read_text
from assay.data.text_lines import MAX_CELL_BYTES, LineReader, clean_text, find_encoding
from assay.data.tokenizer import PAD_ID, TextEncoder
from assay.errors import BadExampleError, DataError

_BLOCK_TEXTS = 64
_BLOCK_CHARS = 1 << 20
_WHAT = "text file"


@dataclass(frozen=True)
class _Text:
    """A text that was read, or why it cannot be scored."""

    text: str | BadExampleError
    row: int
    path: str | None = None


def open_text_file(path: Path, wanted: Wanted) -> Inputs:
    """Open a ``.txt`` file: each line is a text, empty ones are passed over.

    Raises:
        DataError: It is empty or no text.
    """
    lines = LineReader(path, find_encoding(path, None))
    notes = ["Each line is a text, and column row is its number, from 1. For one text a file, name a folder of files."]
    if not lines.encoding.startswith("utf-8"):
        notes.append(f"Read the file as {lines.encoding.upper()}.")
    return Inputs(path, None, ("row",), tuple(notes), _encoding(lambda _, tally: _lines(lines, tally), wanted))


def open_text_folder(folder: Path, wanted: Wanted) -> Inputs:
    """Open a folder of ``.txt`` files: each file is a text.

    Raises:
        DataError: There is none in it.
    """
    left_out: Counter[str] = Counter()
    num_examples = sum(1 for _ in walk_files(folder, "", TEXT_SUFFIXES, _WHAT, left_out))
    notes = tuple(f"Left out {count} x {reason}." for reason, count in sorted(left_out.items()))
    if not num_examples:
        found = f" ({' '.join(notes)})" if notes else ""
        raise DataError(
            f"{folder}: holds no .txt file and no *.parquet file{found}, and {wanted.takes}. Name another folder."
        )
    return Inputs(folder, num_examples, ("path",), notes, _encoding(lambda _, tally: _files(folder, tally), wanted))


def open_text_rows(
    path: Path, readers: tuple[RowReader, ...], num_rows: int | None, text_column: str | None, wanted: Wanted
) -> Inputs:
    """Open a column of texts.

    Args:
        path: What was named.
        readers: One for each file.
        num_rows: Rows in all files, if known.
        text_column: The column, or None to find out.
        wanted: What the model takes.

    Raises:
        DataError: It is unclear which column holds the texts.
    """
    start = start_of(readers[0])
    column = text_column or _find_text(readers[0], start, wanted)
    if column not in start.columns:
        raise DataError(f"{path}: has no column {column!r} of texts. It has {_listed(list(start.columns))}.")
    notes = list(readers[0].notes)
    if text_column is None:
        notes.append(f"Took column {column!r} as text.")
    if readers[0].unit == "line":
        notes.append("Column row is the line in the file, from 1.")

    def texts(skip_bad: bool, tally: Tally) -> Iterator[_Text]:
        for reader, chunk, rows in read_chunks(readers, skip_bad, tally):
            for row, number, text in zip(rows, chunk.numbers, chunk.column(column).to_pylist(), strict=True):
                yield _check(clean_text(text or "") if reader.unit == "line" else text or "", row, reader, number)

    return Inputs(path, num_rows, ("row",), tuple(notes), _encoding(texts, wanted))


def _check(text: str, row: int, reader: RowReader, number: int) -> _Text:
    return _Text(text if text.strip() else BadExampleError(f"{reader.place(number)}: has an empty text"), row)


def _find_text(reader: RowReader, start: Chunk, wanted: Wanted) -> str:
    """The column named text, or the only one that holds text."""
    if "text" in start.columns:
        return "text"
    found = []
    for name, cells in start.columns.items():
        facts = ColumnFacts(name, reader.unit)
        facts.update(cells, start.numbers)
        if facts.num_there and not facts.is_numeric and not facts.is_dates:
            found.append(name)
    if len(found) == 1:
        return found[0]
    state = f"{_listed(found)} all hold text" if found else f"none of {_listed(list(start.columns))} holds text"
    raise DataError(f"{reader.path}: {state}, and {wanted.takes}. Say which column holds them: --text-column NAME.")


def _listed(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _lines(lines: LineReader, tally: Tally) -> Iterator[_Text]:
    hash_file(lines.path, tally)
    for number, line in enumerate(lines.lines(), 1):
        if len(line) > MAX_CELL_BYTES:
            raise DataError(f"{lines.path}, line {number}: is larger than {MAX_CELL_BYTES // 2**20} MiB. Shorten it.")
        text = clean_text(line.rstrip("\r\n"))
        if text.strip():
            yield _Text(text, number)
        else:
            tally.changes[BLANK_LINE] += 1
    tally.changes[NUL] += lines.num_nuls


def _files(folder: Path, tally: Tally) -> Iterator[_Text]:
    for row, name in enumerate(walk_files(folder, "", TEXT_SUFFIXES, _WHAT, Counter())):
        place, shown = folder / name, shown_name(name)
        try:
            hash_file(place, tally)
            text: str | BadExampleError = read_text(
                ClassFile(os.fspath(place), shown, 0, None, place.stat().st_size), None
            )
        except BadExampleError as error:
            text = error
        except OSError as error:
            text = BadExampleError(f"{shown}: cannot be read ({error.strerror})")
        yield _Text(text, row, shown)


def _encoding(
    texts: Callable[[bool, Tally], Iterator[_Text]], wanted: Wanted
) -> Callable[[int, bool, Tally], Iterator[InputBatch]]:
    """Make a reader of texts."""
    max_length = wanted.shape[0]

    def padded(tokens: list[np.ndarray]) -> np.ndarray:
        rows = from_rows(tokens)
        return rows.padded(np.arange(len(rows)), max_length, PAD_ID).astype(np.int64)

    def read(batch_size: int, skip_bad: bool, tally: Tally) -> Iterator[InputBatch]:
        encoder = TextEncoder(wanted.tokenizer)
        items = (
            item for block in _blocks(texts(skip_bad, tally)) for item in _encode(block, encoder, max_length, tally)
        )
        return gather(items, padded, batch_size, skip_bad, "texts", tally)

    return read


def _blocks(texts: Iterator[_Text]) -> Iterator[list[_Text]]:
    """Cut the stream where enough texts or characters are together."""
    block: list[_Text] = []
    num_chars = 0
    for text in texts:
        block.append(text)
        num_chars += len(text.text) if isinstance(text.text, str) else 0
        if len(block) == _BLOCK_TEXTS or num_chars >= _BLOCK_CHARS:
            yield block
            block, num_chars = [], 0
    if block:
        yield block


def _encode(block: list[_Text], encoder: TextEncoder, max_length: int, tally: Tally) -> Iterator[Item]:
    sound = [one.text for one in block if isinstance(one.text, str)]
    tokens: Iterator[np.ndarray] = iter(())
    if sound:
        encoded = encoder.encode(sound, max_length)
        tokens = (encoded.row(place) for place in range(len(sound)))
        tally.changes[CUT] += _count_longer(
            [text for place, text in enumerate(sound) if len(encoded.row(place)) == max_length], encoder, max_length
        )
    for one in block:
        yield Item(one.text if isinstance(one.text, BadExampleError) else next(tokens), one.row, one.path)


def _count_longer(full: list[str], encoder: TextEncoder, max_length: int) -> int:
    """How many of the texts that have all tokens there may be would have more."""
    if not full:
        return 0
    longer = encoder.encode(full, max_length + 1)
    return int((longer.lengths(np.arange(len(full))) > max_length).sum())
