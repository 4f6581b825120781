"""Parquet shards in the Hugging Face layout: written deterministically, read in a stream.

What an example holds is in the column ``image: struct<bytes: binary, path: string>``, ``text: string`` or
``series: list<list<float>>`` (steps of channels), or, in a table, in float columns under their own names. Beside it
are ``label: int64`` and, where there is any, ``split: string`` and ``group: string``. The schema's metadata names the
classes the way ``datasets`` does. Pictures are compressed already or stored plain on purpose, so Parquet's zstd is the
only compression at work.
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from assay.data.sources import Example
from assay.errors import DataError
from assay.records import IMAGE, SERIES, TABLE, TEXT

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

MAX_SHARD_BYTES = 60_000_000
"""Content at which a shard is closed, before compression: files stay below 64 MB."""

_GROUP_BYTES = 4 * 2**20
_GROUP_ROWS = 1000
_METADATA_KEY = b"huggingface"
_CHANNELS_KEY = b"assay.channels"
_READ_ROWS = 500
_OTHER_COLUMNS = ("label", "split", "group")


@dataclass(frozen=True)
class ShardInfo:
    """What the schemas of a folder of shards say.

    Attributes:
        files: Shards in reading order.
        num_examples: Rows in all of them.
        class_names: Class names in label order; empty if the schema has none.
        has_split: Whether there is a column ``split``.
        has_group: Whether there is a column ``group``.
        kind: Kind of data, one of `assay.records.KINDS`.
        columns: Names of a table's columns, or of a series' channels where they have names.
    """

    files: tuple[Path, ...]
    num_examples: int
    class_names: tuple[str, ...]
    has_split: bool
    has_group: bool
    kind: str = IMAGE
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Batch:
    """Some rows in order, not yet decoded.

    Attributes:
        contents: What each row holds: JPEG or PNG bytes, a text, a series (float32 ``[step, channel]``) or a row of a
            table (float32 ``[column]``).
        names: What to call each row in an error.
        labels: Label of each row.
        splits: Split of each row, None where there is none.
        groups: Group of each row, None where there is none.
    """

    contents: list[Any]
    names: list[str]
    labels: list[int]
    splits: list[str | None]
    groups: list[str | None]


def write_shards(
    folder: Path,
    examples: Iterable[Example],
    class_names: tuple[str, ...],
    *,
    has_splits: bool,
    has_groups: bool = False,
    kind: str = IMAGE,
    columns: tuple[str, ...] = (),
) -> list[Path]:
    """Write examples into numbered shards; the same examples give the same bytes.

    Args:
        folder: An empty folder.
        examples: In the order to store them.
        class_names: Class names in label order.
        has_splits: Whether to write the column ``split``.
        has_groups: Whether to write the column ``group``.
        kind: Kind of data.
        columns: Names of a table's columns, or of a series' channels where they have names.

    Returns:
        The files, in order.

    Raises:
        OSError: The folder cannot be written or is full.
    """
    optional = [name for name, is_there in (("split", has_splits), ("group", has_groups)) if is_there]
    writer = _ShardWriter(folder, _schema(class_names, optional, kind, columns), kind, columns)
    try:
        for example in examples:
            writer.add(example)
    finally:
        writer.close()
    return _number(writer.files)


@dataclass
class _ShardWriter:
    """Gathers rows into row groups and row groups into files."""

    folder: Path
    schema: "pa.Schema"
    kind: str
    columns: tuple[str, ...]
    files: list[Path] = field(default_factory=list)
    _rows: list[dict[str, Any]] = field(default_factory=list)
    _group_bytes: int = 0
    _shard_bytes: int = 0
    _file: "pq.ParquetWriter | None" = None

    def add(self, example: Example) -> None:
        size_bytes = _size_bytes(example) + 32
        if self._shard_bytes and self._shard_bytes + size_bytes > MAX_SHARD_BYTES:
            self.close()
        row = self._content(example)
        row["label"] = example.label
        row |= {name: getattr(example, name) for name in ("split", "group") if name in self.schema.names}
        self._rows.append(row)
        self._group_bytes += size_bytes
        self._shard_bytes += size_bytes
        if len(self._rows) == _GROUP_ROWS or self._group_bytes >= _GROUP_BYTES:
            self._flush()

    def _content(self, example: Example) -> dict[str, Any]:
        match self.kind:
            case "image":
                return {"image": {"bytes": example.content, "path": example.path}}
            case "text":
                return {"text": example.content}
            case "series":
                assert isinstance(example.content, np.ndarray)
                return {"series": example.content.tolist()}
            case _:
                assert isinstance(example.content, np.ndarray)
                values = example.content.astype(np.float64).tolist()
                missing_as_null = [None if value != value else value for value in values]
                return dict(zip(self.columns, missing_as_null, strict=True))

    def close(self) -> None:
        self._flush()
        if self._file:
            self._file.close()
        self._file, self._shard_bytes = None, 0

    def _flush(self) -> None:
        import pyarrow as pa

        rows, self._rows, self._group_bytes = self._rows, [], 0
        if rows:
            self._file = self._file or self._open_next()
            self._file.write_table(pa.Table.from_pylist(rows, schema=self.schema))

    def _open_next(self) -> "pq.ParquetWriter":
        import pyarrow.parquet as pq

        self.files.append(self.folder / f"{len(self.files):05d}.part")
        return pq.ParquetWriter(
            self.files[-1],
            self.schema,
            compression="zstd",
            use_dictionary=["label", "split", "group"],
            write_statistics=["label"],
            version="2.6",
        )


def _number(files: list[Path]) -> list[Path]:
    """Name the shards ``examples-00000-of-00003.parquet`` now that their number is known."""
    named = [path.with_name(f"examples-{number:05d}-of-{len(files):05d}.parquet") for number, path in enumerate(files)]
    for path, name in zip(files, named, strict=True):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        path.rename(name)
    return named


def _size_bytes(example: Example) -> int:
    content = example.content
    size = content.nbytes if isinstance(content, np.ndarray) else len(content)
    return size + len(example.path)


def _schema(class_names: tuple[str, ...], optional: list[str], kind: str, columns: tuple[str, ...]) -> "pa.Schema":
    import pyarrow as pa

    number = {"dtype": "float32", "_type": "Value"}
    contents: dict[str, tuple[pa.DataType, dict[str, Any]]]
    match kind:
        case "image":
            contents = {"image": (pa.struct([("bytes", pa.binary()), ("path", pa.string())]), {"_type": "Image"})}
        case "text":
            contents = {"text": (pa.string(), {"dtype": "string", "_type": "Value"})}
        case "series":
            steps = {"feature": {"feature": number, "_type": "List"}, "_type": "List"}
            contents = {"series": (pa.list_(pa.list_(pa.float32())), steps)}
        case _:
            contents = {name: (pa.float32(), number) for name in columns}
    features: dict[str, Any] = {name: feature for name, (_, feature) in contents.items()}
    features["label"] = {"names": list(class_names), "_type": "ClassLabel"}
    features |= {name: {"dtype": "string", "_type": "Value"} for name in optional}
    metadata = {_METADATA_KEY: json.dumps({"info": {"features": features}}).encode()}
    if kind == SERIES and columns:
        metadata[_CHANNELS_KEY] = json.dumps(columns).encode()
    fields = [(name, column) for name, (column, _) in contents.items()]
    return pa.schema([*fields, ("label", pa.int64()), *((name, pa.string()) for name in optional)], metadata=metadata)


def inspect_shards(folder: Path) -> ShardInfo:
    """Read the footers of all shards and check that their columns are what training can read.

    Args:
        folder: Folder with ``*.parquet``.

    Raises:
        DataError: There are no shards, one is no Parquet file, or its columns are wrong.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = tuple(sorted(folder.glob("*.parquet")))
    if not files:
        raise DataError(f"{folder}: holds no *.parquet files. Import a source: assay data import mnist5k.")
    names: tuple[str, ...] | None = None
    layout: tuple[str, tuple[str, ...]] | None = None
    num_examples, columns = 0, set()
    for path in files:
        try:
            with pq.ParquetFile(path) as file:
                schema, num_rows = file.schema_arrow, file.metadata.num_rows
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{path}: cannot be read as Parquet ({error}). Replace or remove it.") from error
        own = _find_layout(path, schema)
        if layout is not None and own != layout:
            raise DataError(f"{path}: holds other columns than {files[0].name}. Give all shards the same columns.")
        layout = own
        found = _class_names(path, schema)
        if names is not None and found != names:
            raise DataError(f"{path}: names other classes than {files[0].name}. Give all shards the same classes.")
        names = found
        num_examples += num_rows
        columns.update(schema.names)
    kind, own_columns = layout or (IMAGE, ())
    return ShardInfo(files, num_examples, names or (), "split" in columns, "group" in columns, kind, own_columns)


def _find_layout(path: Path, schema: "pa.Schema") -> tuple[str, tuple[str, ...]]:
    """Find out what kind of data a shard holds, and the names of its columns or channels."""
    import pyarrow.types as kinds

    def column(name: str) -> "pa.DataType | None":
        return schema.field(name).type if name in schema.names else None

    image, text, series, label = (column(name) for name in ("image", "text", "series", "label"))
    layout: tuple[str, tuple[str, ...]]
    if text is not None and kinds.is_string(text):
        layout = TEXT, ()
    elif series is not None and kinds.is_list(series) and kinds.is_list(series.value_type):
        layout = SERIES, tuple(json.loads((schema.metadata or {}).get(_CHANNELS_KEY, b"[]")))
    elif image is None and (numbers := _number_columns(schema)):
        layout = TABLE, numbers
    elif (
        image is None
        or not kinds.is_struct(image)
        or image.get_field_index("bytes") < 0
        or not (kinds.is_binary(image.field("bytes").type) or kinds.is_large_binary(image.field("bytes").type))
    ):
        raise DataError(f"{path}: column image is {image}, not struct<bytes: binary, path: string>. Rewrite it so.")
    else:
        layout = IMAGE, ()
    if label is None or not kinds.is_integer(label):
        raise DataError(f"{path}: column label is {label}, not int64. Rewrite it as class numbers from 0.")
    for name in ("split", "group"):
        kind = column(name)
        if kind is not None and not (kinds.is_string(kind) or kinds.is_large_string(kind)):
            raise DataError(f"{path}: column {name} is {kind}, not string. Rewrite it as text.")
    return layout


def _number_columns(schema: "pa.Schema") -> tuple[str, ...]:
    """Columns of a table: all but label, split and group, if all of them are float32."""
    import pyarrow.types as kinds

    fields = [field for field in schema if field.name not in _OTHER_COLUMNS]
    return tuple(field.name for field in fields) if all(kinds.is_float32(field.type) for field in fields) else ()


def _class_names(path: Path, schema: "pa.Schema") -> tuple[str, ...]:
    text = (schema.metadata or {}).get(_METADATA_KEY)
    if text is None:
        return ()
    try:
        return tuple(json.loads(text)["info"]["features"]["label"]["names"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: its 'huggingface' metadata names no classes ({error!r}). Write label as ClassLabel."
        ) from error


def read_batches(info: ShardInfo) -> Iterator[Batch]:
    """Read all rows of all shards in order, a few hundred at a time.

    Raises:
        DataError: A row holds nothing or has no label, or a file breaks off.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in info.files:
        first_row = 0
        try:
            with pq.ParquetFile(path) as file:
                for part in file.iter_batches(batch_size=_READ_ROWS, use_threads=False):
                    yield _to_batch(part, info, path.name, first_row)
                    first_row += part.num_rows
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{path}: cannot be read beyond row {first_row} ({error}). Replace it.") from error


def _to_batch(part: "pa.RecordBatch", info: ShardInfo, file_name: str, first_row: int) -> Batch:
    num_rows = part.num_rows
    names = [f"{file_name}, row {first_row + row}" for row in range(num_rows)]
    match info.kind:
        case "image":
            images = part.column("image")
            if images.type.get_field_index("path") >= 0:
                paths = images.field("path").to_pylist()
                names = [f"{name} ({path})" if path else name for name, path in zip(names, paths, strict=True)]
            contents, what = images.field("bytes").to_pylist(), "image bytes"
        case "text":
            contents, what = part.column("text").to_pylist(), "text"
        case "series":
            contents, what = to_series(part.column("series"), names), "series"
        case _:
            columns = [part.column(name).to_numpy(zero_copy_only=False) for name in info.columns]
            contents, what = list(np.stack(columns, axis=1).astype(np.float32)), "values"
    labels = part.column("label").to_pylist()
    for row, name in enumerate(names):
        if contents[row] is None or labels[row] is None:
            missing = what if contents[row] is None else "label"
            raise DataError(f"{name}: has no {missing}. Every row needs both; remove or complete it.")
    return Batch(
        contents=contents,
        names=names,
        labels=labels,
        splits=part.column("split").to_pylist() if "split" in part.schema.names else [None] * num_rows,
        groups=part.column("group").to_pylist() if "group" in part.schema.names else [None] * num_rows,
    )


def to_series(column: "pa.ListArray", names: list[str]) -> list[np.ndarray | None]:
    """Cut a column of lists of lists into arrays, float32 ``[step, channel]``."""
    flat = column.flatten()
    widths = np.diff(flat.offsets.to_numpy())
    values = flat.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    ends = np.cumsum(widths)
    steps = np.diff(column.offsets.to_numpy())
    is_there = np.asarray(column.is_valid())
    series: list[np.ndarray | None] = []
    step = 0
    for name, count, there in zip(names, steps.tolist(), is_there.tolist(), strict=True):
        own = widths[step : step + count]
        if there and (count == 0 or (own != own[0]).any() or own[0] == 0):
            raise DataError(f"{name}: its series has steps of different widths, or none. Give each all channels.")
        start = ends[step - 1] if step else 0
        end = ends[step + count - 1] if step + count else 0
        series.append(values[start:end].reshape(count, -1) if there else None)
        step += count
    return series
