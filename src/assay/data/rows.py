"""Rows of csv, tsv, jsonl and parquet files in a stream: columns of strings, a few megabytes at a time.

Every value is read as a string, whatever the file's own types are, so that one set of rules infers what a column holds.
"""

import csv
import io
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assay.data.text_lines import MAX_CELL_BYTES, LineReader, find_encoding
from assay.errors import BadExampleError, DataError, SourceError

if TYPE_CHECKING:
    import pyarrow as pa

SEPARATED, JSON_LINES, PARQUET = (".csv", ".tsv"), (".jsonl", ".ndjson"), (".parquet",)
TABLE_SUFFIXES = (*SEPARATED, *JSON_LINES, *PARQUET)

MAX_COLUMNS = 20_000

_CHUNK_ROWS = 10_000
_CHUNK_BYTES = 4 * 2**20
_CHUNK_CELLS = 400_000
_SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_SNIFF_LINES = 50
_TOO_LARGE = "field larger than field limit"


@dataclass(frozen=True)
class Chunk:
    """Some rows in order.

    Attributes:
        numbers: Line (or, in Parquet, row) of each, from 1.
        columns: Strings of each column, null where the file has nothing; a jsonl file may lack a column here.
    """

    numbers: list[int]
    columns: "dict[str, pa.Array]"

    def column(self, name: str) -> "pa.Array":
        """Return the strings of one column, null where there is none."""
        import pyarrow as pa

        return self.columns[name] if name in self.columns else pa.nulls(len(self.numbers), pa.string())


@dataclass
class RowReader:
    """A table on disk; each call of `chunks` reads it from its beginning.

    Attributes:
        path: The file.
        skip_bad: Leave out rows that cannot be read.
        unit: What `Chunk.numbers` counts, ``line`` or ``row``.
        notes: Sentences about how the file is read.
        bad: Rows left out in the pass so far, with the reason.
        nested: Columns that hold lists, objects or bytes.
    """

    path: Path
    skip_bad: bool
    unit: str = "line"
    notes: list[str] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    nested: dict[str, None] = field(default_factory=dict)

    @property
    def num_nuls(self) -> int:
        """NUL characters removed in the pass so far."""
        return 0

    def chunks(self) -> Iterator[Chunk]:
        """Read all rows in order.

        Raises:
            DataError: The file cannot be read, or a cell is too large.
            BadExampleError: A row cannot be read and `skip_bad` is off.
        """
        raise NotImplementedError

    def place(self, number: int) -> str:
        """Say where a row is."""
        return f"{self.path}, {self.unit} {number}"

    def refuse(self, number: int, reason: str) -> None:
        """Leave a row out and list it, or refuse the file because of it.

        Raises:
            BadExampleError: `skip_bad` is off.
        """
        if not self.skip_bad:
            raise BadExampleError(
                f"{self.place(number)}: {reason}. Mend or remove the row, or leave such rows out with --skip-bad."
            )
        self.bad.append(f"{self.path.name}, {self.unit} {number}: {reason}")


def open_rows(path: Path, *, encoding: str | None = None, separator: str | None = None, skip_bad: bool) -> RowReader:
    """Open a table by its suffix.

    Args:
        path: A csv, tsv, jsonl (ndjson) or parquet file.
        encoding: Of a file of text; None to find out.
        separator: Between the fields of a csv or tsv file; None to find out.
        skip_bad: Leave out rows that cannot be read.

    Raises:
        SourceError: The file is missing, empty or of another kind, or an option does not go with it.
        DataError: Its first lines cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix not in TABLE_SUFFIXES:
        raise SourceError(
            f"{path}: {'is a folder' if path.is_dir() else f'has suffix {suffix!r}'}. A table is one file with suffix "
            f"{', '.join(TABLE_SUFFIXES)}; save it as one of these."
        )
    given = {"encoding": encoding and suffix in PARQUET, "separator": separator and suffix not in SEPARATED}
    for option in (option for option, is_wrong in given.items() if is_wrong):
        raise SourceError(f"{option}: does not go with a {suffix} file. Leave it out.")
    if suffix in PARQUET:
        return _ParquetRows(path, skip_bad, unit="row")
    found = find_encoding(path, encoding)
    if suffix in JSON_LINES:
        reader: _JsonRows | _SeparatedRows = _JsonRows(path, skip_bad, lines=LineReader(path, found))
    else:
        lines = LineReader(path, found)
        reader = _SeparatedRows(path, skip_bad, lines=lines, separator=_find_separator(path, lines, separator))
        if reader.separator != {".csv": ",", ".tsv": "\t"}[suffix]:
            reader.notes.append(f"Read the {_SEPARATORS.get(reader.separator, reader.separator)} as separator.")
    if not found.startswith("utf-8"):
        reader.notes.append(f"Read the file as {found.upper()}.")
    return reader


def check_names(path: Path, names: list[str]) -> list[str]:
    """Clean the names of a table's columns and refuse what cannot be told apart.

    Raises:
        SourceError: A name occurs twice, cannot be stored, all names are numbers, or there are too many.
    """
    cleaned = [unicodedata.normalize("NFC", name.strip()) for name in names]
    if len(cleaned) > MAX_COLUMNS:
        raise SourceError(f"{path}: has {len(cleaned)} columns; at most {MAX_COLUMNS} are read. Is it transposed?")
    if cleaned and all(_is_number(name) for name in cleaned):
        raise SourceError(
            f"{path}: the first line holds numbers ({', '.join(cleaned[:3])}), not names. Add a line of column names."
        )
    named = [name or (f"column {number}" if number > 1 else "row number") for number, name in enumerate(cleaned, 1)]
    for name, count in Counter(named).items():
        if count > 1:
            raise SourceError(f"{path}: has {count} columns named {name!r}. Give each column a name of its own.")
        if not name.isprintable() or any(0xD800 <= ord(letter) <= 0xDFFF for letter in name):
            raise SourceError(f"{path}: the column name {name[:40]!r} has letters that cannot be stored. Rename it.")
    return named


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@dataclass
class _Feed:
    """Hands lines to the csv module and remembers those of the row at hand."""

    lines: Iterator[str]
    pending: list[str] = field(default_factory=list)

    def __iter__(self) -> "_Feed":
        return self

    def __next__(self) -> str:
        line = next(self.lines)
        self.pending.append(line)
        if len(line) > MAX_CELL_BYTES:
            raise csv.Error(_TOO_LARGE)
        return line


@dataclass
class _SeparatedRows(RowReader):
    """Rows of a csv or tsv file."""

    lines: LineReader = field(kw_only=True)
    separator: str = field(kw_only=True)

    @property
    def num_nuls(self) -> int:
        return self.lines.num_nuls

    def chunks(self) -> Iterator[Chunk]:
        import pyarrow as pa

        self.bad.clear()
        rows = self._rows()
        _, header = next(rows, (0, []))
        names = check_names(self.path, header)
        yield Chunk([], {name: pa.array([], pa.string()) for name in names})  # A header alone has names, too.
        max_rows = max(1, min(_CHUNK_ROWS, _CHUNK_CELLS // max(1, len(names))))
        numbers: list[int] = []
        block: list[list[str]] = []
        num_chars = 0

        def chunk() -> Chunk:
            columns = (pa.array(values, pa.string()) for values in zip(*block, strict=True))
            return Chunk(numbers, dict(zip(names, columns, strict=True)))

        for number, row in rows:
            if len(row) != len(names):
                self.refuse(number, f"has {len(row)} fields, the header has {len(names)} (starts {_start(row)})")
                continue
            numbers.append(number)
            block.append(row)
            num_chars += sum(map(len, row))
            if len(block) == max_rows or num_chars > _CHUNK_BYTES:
                yield chunk()
                numbers, block, num_chars = [], [], 0
        if block:
            yield chunk()

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """Read fields row by row, the header first; empty lines are passed over."""
        feed = _Feed(self.lines.lines())
        reader = csv.reader(feed, delimiter=self.separator, strict=True)
        names: list[str] = []
        with _large_fields():
            while True:
                feed.pending.clear()
                number = reader.line_num + 1
                try:
                    row = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    self._explain(str(error), number, feed.pending, names)
                    continue
                if row:
                    names = names or row
                    yield number, row

    def _explain(self, error: str, number: int, pending: list[str], names: list[str]) -> None:
        """Turn the csv module's error into one that names line and column."""
        if not error.startswith((_TOO_LARGE, "unexpected end")):
            self.refuse(number, f"cannot be read ({error})")
            return
        start = io.StringIO("".join(pending)[:MAX_CELL_BYTES], newline="")
        fields = next(csv.reader(start, delimiter=self.separator), [""])
        column = repr(names[len(fields) - 1]) if 0 < len(fields) <= len(names) else str(len(fields))
        if error.startswith(_TOO_LARGE):
            raise DataError(
                f"{self.place(number)}, column {column}: the cell is larger than {MAX_CELL_BYTES // 2**20} MiB, or a "
                "quote is not closed. Shorten the cell, or close the quote."
            )
        raise DataError(
            f"{self.place(number)}, column {column}: a quote is opened and not closed before the end of the file. "
            "Close it, or double a quote that belongs to the text."
        )


def _start(row: list[str]) -> str:
    return repr(row[0][:40])


@contextmanager
def _large_fields() -> Iterator[None]:
    """Let the csv module read cells up to `MAX_CELL_BYTES`; its own limit is 128 KiB, for the whole process."""
    before = csv.field_size_limit(MAX_CELL_BYTES)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _find_separator(path: Path, lines: LineReader, given: str | None) -> str:
    """Say what separates fields: the one that divides the first lines into the most fields, equally many each."""
    if given is not None:
        separator = {"\\t": "\t", "tab": "\t"}.get(given, given)
        if len(separator) != 1 or separator in '"\r\n':
            raise SourceError(f"separator={given!r}: must be one character. Write e.g. ';' or tab.")
        return separator
    if path.suffix.lower() == ".tsv":
        return "\t"
    start = [line for line, _ in zip(lines.lines(), range(_SNIFF_LINES), strict=False) if len(line) <= MAX_CELL_BYTES]
    scores = {separator: _score(start, separator) for separator in _SEPARATORS}
    return max(scores, key=lambda separator: scores[separator])


def _score(lines: list[str], separator: str) -> tuple[float, int]:
    """Share of rows with as many fields as the header, 0 for a single field; and that number of fields."""
    with _large_fields():
        widths = [len(row) for row in csv.reader(lines, delimiter=separator) if row]
    if not widths or widths[0] == 1:
        return 0.0, 0
    return widths.count(widths[0]) / len(widths), widths[0]


@dataclass
class _JsonRows(RowReader):
    """Rows of a file with one JSON object a line."""

    lines: LineReader = field(kw_only=True)

    @property
    def num_nuls(self) -> int:
        return self.lines.num_nuls

    def chunks(self) -> Iterator[Chunk]:
        self.bad.clear()
        names: dict[str, None] = {}
        numbers: list[int] = []
        block: list[dict[str, str | None]] = []
        num_chars = 0
        for number, line in enumerate(self.lines.lines(), 1):
            row = self._parse(number, line)
            if row is None:
                continue
            names.update(dict.fromkeys(row))
            numbers.append(number)
            block.append(row)
            num_chars += len(line)
            if len(block) * len(names) >= _CHUNK_CELLS or len(block) == _CHUNK_ROWS or num_chars > _CHUNK_BYTES:
                yield self._chunk(numbers, block, names)
                numbers, block, num_chars = [], [], 0
        if block:
            yield self._chunk(numbers, block, names)

    def _chunk(self, numbers: list[int], block: list[dict[str, str | None]], names: dict[str, None]) -> Chunk:
        import pyarrow as pa

        check_names(self.path, list(names))
        columns = {name: pa.array([row.get(name) for row in block], pa.string()) for name in names}
        return Chunk(numbers, columns)

    def _parse(self, number: int, line: str) -> dict[str, str | None] | None:
        if len(line) > MAX_CELL_BYTES:
            keys = re.findall(r'"([^"\\]{1,100})"\s*:', line[: len(line) // 2])
            raise DataError(
                f"{self.place(number)}, column {keys[-1] if keys else '?'!r}: the line is larger than "
                f"{MAX_CELL_BYTES // 2**20} MiB. Shorten it."
            )
        if not line.strip():
            return None
        if number == 1 and line.lstrip().startswith("["):
            raise SourceError(f"{self.path}: is one JSON array. Write one object a line: jq -c '.[]' FILE > new.jsonl")
        try:
            row = json.loads(line)
            if isinstance(row, dict):
                return {str(name).strip(): self._text(str(name), value) for name, value in row.items()}
            self.refuse(number, f"is no JSON object but {line.strip()[:40]!r}")
        except (ValueError, RecursionError) as error:  # UnicodeError, for half a surrogate pair, is a ValueError.
            self.refuse(number, f"is no JSON object ({str(error)[:100]})")
        return None

    def _text(self, name: str, value: Any) -> str | None:
        match value:
            case str():
                value.encode()
                return value
            case None:
                return None
            case bool():
                return "true" if value else "false"
            case int() | float():
                return repr(value)
            case _:
                self.nested[name.strip()] = None
                return None


@dataclass
class _ParquetRows(RowReader):
    """Rows of a Parquet file."""

    def chunks(self) -> Iterator[Chunk]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        number = 1
        try:
            if not self.path.is_file():
                raise SourceError(f"{self.path}: does not exist. Name a file.")
            with pq.ParquetFile(self.path, buffer_size=2**20) as file:
                names = check_names(self.path, file.schema_arrow.names)
                flat = [place for place, column in enumerate(file.schema_arrow) if self._is_flat(column)]
                for part in file.iter_batches(self._batch_rows(file), use_threads=False):
                    columns = {names[place]: self._strings(part.column(place), number, names[place]) for place in flat}
                    yield Chunk(list(range(number, number + part.num_rows)), columns)
                    number += part.num_rows
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{self.path}: cannot be read as Parquet beyond row {number} ({error}). Replace it."
            ) from error

    @staticmethod
    def _batch_rows(file: Any) -> int:
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        size_bytes = sum(int(group.total_byte_size) for group in groups)
        return max(1, min(_CHUNK_ROWS, _CHUNK_BYTES * max(1, int(file.metadata.num_rows)) // max(1, size_bytes)))

    def _is_flat(self, column: "pa.Field") -> bool:
        import pyarrow.types as kinds

        kind = column.type.value_type if kinds.is_dictionary(column.type) else column.type
        if column.name == "image" and kinds.is_struct(kind):
            raise SourceError(
                f"{self.path}: its column image holds pictures, so it is a shard and no table. Put it into data/ and "
                "run: assay data add."
            )
        if kinds.is_nested(kind) or kinds.is_binary(kind) or kinds.is_large_binary(kind):
            self.nested[column.name.strip()] = None
            return False
        return True

    def _strings(self, values: "pa.Array", first: int, name: str) -> "pa.Array":
        import pyarrow as pa
        import pyarrow.compute as pc

        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        strings = values.cast(pa.string())
        if len(strings) and (pc.max(pc.binary_length(strings)).as_py() or 0) > MAX_CELL_BYTES:
            row = first + pc.index(pc.greater(pc.binary_length(strings), MAX_CELL_BYTES), True).as_py()
            raise DataError(
                f"{self.place(row)}, column {name!r}: the cell is larger than {MAX_CELL_BYTES // 2**20} MiB. "
                "Shorten it."
            )
        return strings
