"""Csv, tsv, jsonl and Parquet files as input to be scored: chunks in order, every byte hashed, bad rows counted."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

from assay.data.input_batches import NUL, Tally, hash_file
from assay.data.rows import PARQUET, Chunk, RowReader, open_rows
from assay.errors import DataError


def open_files(files: tuple[Path, ...]) -> tuple[RowReader, ...]:
    """Open tables by their suffixes.

    Raises:
        DataError: One is missing, empty, or its first lines cannot be read.
    """
    # A bad row among the first ones is met again, and then refused or counted, when all are read.
    return tuple(open_rows(path, skip_bad=True) for path in files)


def start_of(reader: RowReader) -> Chunk:
    """Read the first rows of a table.

    Raises:
        DataError: There is no row.
    """
    chunks = reader.chunks()
    start = next((chunk for chunk in chunks if chunk.numbers), None)
    if start is None:
        found = f" that can be read. The first: {reader.bad[0]}" if reader.bad else ""
        raise DataError(f"{reader.path}: holds no rows{found}. Name a file that does.")
    chunks.close()  # type: ignore[attr-defined]
    return start


def read_chunks(
    readers: tuple[RowReader, ...], skip_bad: bool, tally: Tally
) -> Iterator[tuple[RowReader, Chunk, list[int]]]:
    """Read all rows of some tables in order, after hashing each file.

    Args:
        readers: One for each file, from `open_files`.
        skip_bad: Leave out and count rows that cannot be read.
        tally: Hashes the bytes, counts the rows left out.

    Yields:
        The reader, a chunk, and for each of its rows its place: the line, from 1; in Parquet the row over all files,
        from 0.

    Raises:
        DataError: A file cannot be read.
        BadExampleError: A row cannot be read and `skip_bad` is off.
    """
    first = 0
    for opened in readers:
        reader = replace(opened, skip_bad=skip_bad, bad=[])
        hash_file(reader.path, tally)
        last = 0
        for chunk in chain(reader.chunks(), (None,)):
            for reason in reader.bad:
                tally.num_read += 1
                tally.skip(reason)
            reader.bad.clear()
            if chunk is not None and chunk.numbers:
                last = chunk.numbers[-1]
                is_parquet = reader.path.suffix.lower() in PARQUET
                yield reader, chunk, [first + number - 1 for number in chunk.numbers] if is_parquet else chunk.numbers
        first += last
        tally.changes[NUL] += reader.num_nuls
