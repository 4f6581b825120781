"""What is scored, batch by batch, and what was met on the way; the same for all kinds of data."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from assay.errors import BadExampleError, DataError
from assay.records import IMAGE, SERIES, TABLE, TEXT

NUM_BAD_KEPT = 1000
"""Skipped examples whose names are kept; beyond that they are only counted."""

BLOCK_BYTES = 1 << 20
"""What is read of a file at a time."""

RESIZED, TO_GREY, TO_COLOUR = "resized", "colour to grey", "grey to colour"
CUT, PADDED, BLANK_LINE, NUL = "cut", "padded", "blank line", "NUL"
"""What reading may have done to an example, besides the traits of `assay.data.images.Probe`."""

NOUNS = {IMAGE: ("image", "images"), TEXT: ("text", "texts"), SERIES: ("series", "series"), TABLE: ("row", "rows")}
"""Kind of data -> what one example is called, and several."""


@dataclass(frozen=True)
class Wanted:
    """What a model takes, as far as reading its input goes.

    Attributes:
        name: What to call the model in an error, e.g. ``pets version 2``.
        kind: Kind of data, one of `assay.records.KINDS`.
        shape: Of one input. Images: height, width, channels. Text: tokens at most. Series: steps at most, channels.
            Tables: columns.
        columns: Names of a table's columns or of a series' channels, in order; empty where they have none.
        tokenizer: The tokenizer as JSON; empty where there is no text.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    columns: tuple[str, ...] = ()
    tokenizer: str = ""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width, channels of an image."""
        height, width, channels = self.shape
        return height, width, channels

    @property
    def takes(self) -> str:
        """The model and what it takes, in words."""
        return f"{self.name} takes {NOUNS[self.kind][1] if self.kind != TABLE else 'rows of a table'}"


@dataclass(frozen=True)
class InputBatch:
    """Some examples in order.

    Attributes:
        inputs: Always a full batch; what stands beyond the names means nothing. Images: uint8 ``[batch, height, width,
            channel]``. Text: int64 ``[batch, token]``. Series: float32 ``[batch, step, channel]``. Tables: float32
            ``[batch, column]``. Texts and series are filled up to the length of the model's longest.
        rows: Place of each example in the input, from 0, or its line, from 1; one that was skipped leaves a gap.
        paths: Its path within the input; None where it has none.
    """

    inputs: np.ndarray
    rows: list[int]
    paths: list[str | None]

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, position: int) -> str:
        """What to call an example in an error."""
        path, row = self.paths[position], f"row {self.rows[position]}"
        return path if path is not None else row


@dataclass
class Tally:
    """What was met while reading; filled by it.

    Attributes:
        sha256: Over all bytes of the input in the order of reading.
        num_read: Examples read, the skipped ones included.
        num_bad: Examples skipped because they cannot be read.
        bad_examples: The first `NUM_BAD_KEPT` of them, with the reason.
        changes: What was done to examples -> to how many.
        unknown_levels: Column -> cells whose value no feature stands for.
    """

    sha256: Any = field(default_factory=hashlib.sha256)
    num_read: int = 0
    num_bad: int = 0
    bad_examples: list[str] = field(default_factory=list)
    changes: Counter[str] = field(default_factory=Counter)
    unknown_levels: Counter[str] = field(default_factory=Counter)

    def count(self, error: BadExampleError | None, skip_bad: bool, noun: str) -> bool:
        """Count an example, and say whether it can be scored.

        Args:
            error: Why it cannot, if so.
            skip_bad: Leave out one that cannot.
            noun: What several of them are called.

        Raises:
            BadExampleError: It cannot, and `skip_bad` is off.
        """
        self.num_read += 1
        if error is None:
            return True
        if not skip_bad:
            raise BadExampleError(f"{error}. Replace or remove it, or leave such {noun} out with --skip-bad.")
        self.skip(str(error))
        return False

    def skip(self, reason: str) -> None:
        """List an example that was left out."""
        self.num_bad += 1
        if self.num_bad <= NUM_BAD_KEPT:
            self.bad_examples.append(reason)

    def notes(self, wanted: Wanted) -> tuple[str, ...]:
        """Say what was done to examples so that they fit the model."""
        shape, (one, many) = wanted.shape, NOUNS[wanted.kind]
        unit = "tokens" if wanted.kind == TEXT else "steps"
        sentences = {
            RESIZED: "Resized {} to "
            + "x".join(map(str, shape[:2]))
            + " (height x width, bicubic), as an import does.",
            TO_GREY: "Converted {} from colour to grey, since the model takes grey.",
            TO_COLOUR: "Gave {} of grey three equal channels, since the model takes colour.",
            "orientation": "Turned {} upright as their EXIF orientation says.",
            "transparency": "Laid {} with transparency over white.",
            "16 bits": "Rounded {} from 16 to 8 bits.",
            "CMYK": "Converted {} from CMYK without a colour profile.",
            CUT: "Cut {} " + f"at the end to the {shape[0]:,} {unit} that the model reads.",
            PADDED: "Cut padding (steps of NaN only) off the end of {}.",
        }
        counts = ((sentence, self.changes[name]) for name, sentence in sentences.items())
        notes = [text.format(f"1 {one}" if count == 1 else f"{count:,} {many}") for text, count in counts if count]
        for what, text in ((BLANK_LINE, "Passed over {} empty lines."), (NUL, "Removed {} NUL characters.")):
            if self.changes[what]:
                notes.append(text.format(f"{self.changes[what]:,}"))
        for column, count in sorted(self.unknown_levels.items()):
            notes.append(f"{count:,} values in {column!r} are none of those in training; no feature stands for them.")
        return tuple(notes)


@dataclass(frozen=True)
class Inputs:
    """An input that was found and is not read yet.

    Attributes:
        path: The file or folder.
        num_examples: Examples in it, those that turn out unreadable included; None where only reading tells.
        id_columns: What says which example an answer is of: ``row``, ``path`` or both.
        notes: Sentences about how it is read and what was left out.
        read: Reads it: the number of examples of a batch, whether to skip bad ones, and a tally to fill. Raises
            `DataError` where the input does not fit, or breaks off.
    """

    path: Path
    num_examples: int | None
    id_columns: tuple[str, ...]
    notes: tuple[str, ...]
    read: Callable[[int, bool, Tally], Iterator[InputBatch]]


@dataclass(frozen=True)
class Item:
    """One example on its way into a batch.

    Attributes:
        content: What the model takes, or why there is none.
        row: Its place in the input.
        path: Its path within the input; None where it has none.
    """

    content: np.ndarray | BadExampleError
    row: int
    path: str | None = None


def gather(
    items: Iterator[Item],
    put_together: Callable[[list[np.ndarray]], np.ndarray],
    batch_size: int,
    skip_bad: bool,
    noun: str,
    tally: Tally,
) -> Iterator[InputBatch]:
    """Gather examples into full batches; the last one is filled up with its last example.

    Args:
        items: Read as they are needed.
        put_together: Makes one array ``[example, ...]`` of some examples.
        batch_size: Examples of a batch.
        skip_bad: Leave out and list examples that cannot be read.
        noun: What several examples are called.
        tally: Counts them.

    Raises:
        BadExampleError: An example cannot be read and `skip_bad` is off.
    """
    contents: list[np.ndarray] = []
    rows: list[int] = []
    paths: list[str | None] = []

    def batch() -> InputBatch:
        places = np.minimum(np.arange(batch_size), len(rows) - 1)
        return InputBatch(put_together(contents)[places], rows, paths)

    for item in items:
        is_bad = isinstance(item.content, BadExampleError)
        if not tally.count(item.content if isinstance(item.content, BadExampleError) else None, skip_bad, noun):
            continue
        assert not is_bad and isinstance(item.content, np.ndarray)
        contents.append(item.content)
        rows.append(item.row)
        paths.append(item.path)
        if len(rows) == batch_size:
            yield batch()
            contents, rows, paths = [], [], []
    if rows:
        yield batch()


def hash_file(path: Path, tally: Tally) -> None:
    """Hash all bytes of a file into a tally.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            tally.sha256.update(block)


def walk_files(root: Path, below: str, suffixes: tuple[str, ...], what: str, left_out: Counter[str]) -> Iterator[str]:
    """Names of some files in a folder and below, in the order of the sorted list, without having that list.

    Args:
        root: The folder.
        below: Folder within it, with its ``/``.
        suffixes: Suffixes of the files that are wanted, in lower case.
        what: What such a file is, e.g. ``JPEG or PNG``.
        left_out: Counts what is no such file.

    Raises:
        DataError: A folder cannot be read.
    """
    try:
        with os.scandir(root / below) as found:
            entries = [(entry.name + "/" * entry.is_dir(follow_symlinks=False), entry.is_file()) for entry in found]
    except OSError as error:
        raise DataError(f"{root / below}: cannot be read ({error.strerror}). Make it readable.") from error
    for name, is_file in sorted(entries):
        if name.startswith((".", "__MACOSX")):
            left_out["hidden file or folder"] += 1
        elif name.endswith("/"):
            yield from walk_files(root, below + name, suffixes, what, left_out)
        elif os.path.splitext(name)[1].lower() not in suffixes:
            left_out[f"file that is no {what} ({os.path.splitext(name)[1].lower() or 'no suffix'})"] += 1
        elif is_file or not os.path.exists(root / below / name):
            yield below + name
        else:
            left_out[f"name of a {what} that is no file"] += 1


def shown_name(name: str) -> str:
    """Return a file's name with what is no UTF-8 in it made readable."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def read_parquet(files: tuple[Path, ...], columns: list[str], num_rows: int, tally: Tally) -> Iterator[Any]:
    """Read some columns of Parquet files in order, after hashing each file.

    Args:
        files: The files.
        columns: Names of the columns.
        num_rows: Rows to read at a time.
        tally: Hashes the bytes.

    Yields:
        File name, number of the first row over all files, and a `pyarrow.RecordBatch`.

    Raises:
        DataError: A file breaks off.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 0
    for path in files:
        try:
            hash_file(path, tally)
            with pq.ParquetFile(path, buffer_size=BLOCK_BYTES) as file:
                for part in file.iter_batches(batch_size=num_rows, columns=columns, use_threads=False):
                    yield path.name, row, part
                    row += part.num_rows
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{path}: cannot be read beyond row {row} ({error}). Replace it.") from error
