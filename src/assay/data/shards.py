"""Parquet shards in the Hugging Face layout: written deterministically, read in a stream.

Columns: ``image: struct<bytes: binary, path: string>``, ``label: int64`` and, where there is any,
``split: string`` and ``group: string``. The schema's metadata names the classes the way ``datasets`` does.
Pictures are compressed already or stored plain on purpose, so Parquet's zstd is the only compression at work.
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assay.data.sources import Example
from assay.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

MAX_SHARD_BYTES = 60_000_000
"""Content at which a shard is closed, before compression: files stay below 64 MB."""

_GROUP_BYTES = 4 * 2**20
_GROUP_ROWS = 1000
_METADATA_KEY = b"huggingface"
_READ_ROWS = 500


@dataclass(frozen=True)
class ShardInfo:
    """What the schemas of a folder of shards say.

    Attributes:
        files: Shards in reading order.
        num_examples: Rows in all of them.
        class_names: Class names in label order; empty if the schema has none.
        has_split: Whether there is a column ``split``.
        has_group: Whether there is a column ``group``.
    """

    files: tuple[Path, ...]
    num_examples: int
    class_names: tuple[str, ...]
    has_split: bool
    has_group: bool


@dataclass(frozen=True)
class Batch:
    """Some rows in order, not yet decoded.

    Attributes:
        images: JPEG or PNG bytes of each row.
        names: What to call each row in an error.
        labels: Label of each row.
        splits: Split of each row, None where there is none.
        groups: Group of each row, None where there is none.
    """

    images: list[bytes]
    names: list[str]
    labels: list[int]
    splits: list[str | None]
    groups: list[str | None]


def write_shards(
    folder: Path, examples: Iterable[Example], class_names: tuple[str, ...], *, has_splits: bool
) -> list[Path]:
    """Write examples into numbered shards; the same examples give the same bytes.

    Args:
        folder: An empty folder.
        examples: In the order to store them.
        class_names: Class names in label order.
        has_splits: Whether to write the column ``split``.

    Returns:
        The files, in order.

    Raises:
        OSError: The folder cannot be written or is full.
    """
    writer = _ShardWriter(folder, _schema(class_names, has_splits))
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
    files: list[Path] = field(default_factory=list)
    _rows: list[dict[str, Any]] = field(default_factory=list)
    _group_bytes: int = 0
    _shard_bytes: int = 0
    _file: "pq.ParquetWriter | None" = None

    def add(self, example: Example) -> None:
        size_bytes = len(example.image_bytes) + len(example.path) + 32
        if self._shard_bytes and self._shard_bytes + size_bytes > MAX_SHARD_BYTES:
            self.close()
        row: dict[str, Any] = {"image": {"bytes": example.image_bytes, "path": example.path}}
        row["label"] = example.label
        if "split" in self.schema.names:
            row["split"] = example.split
        self._rows.append(row)
        self._group_bytes += size_bytes
        self._shard_bytes += size_bytes
        if len(self._rows) == _GROUP_ROWS or self._group_bytes >= _GROUP_BYTES:
            self._flush()

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
            use_dictionary=["label", "split"],
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


def _schema(class_names: tuple[str, ...], has_splits: bool) -> "pa.Schema":
    import pyarrow as pa

    columns = [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("label", pa.int64()),
    ]
    features: dict[str, Any] = {
        "image": {"_type": "Image"},
        "label": {"names": list(class_names), "_type": "ClassLabel"},
    }
    if has_splits:
        columns.append(("split", pa.string()))
        features["split"] = {"dtype": "string", "_type": "Value"}
    metadata = json.dumps({"info": {"features": features}})
    return pa.schema(columns, metadata={_METADATA_KEY: metadata.encode()})


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
    num_examples, columns = 0, set()
    for path in files:
        try:
            with pq.ParquetFile(path) as file:
                schema, num_rows = file.schema_arrow, file.metadata.num_rows
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{path}: cannot be read as Parquet ({error}). Replace or remove it.") from error
        _check_schema(path, schema)
        found = _class_names(path, schema)
        if names is not None and found != names:
            raise DataError(f"{path}: names other classes than {files[0].name}. Give all shards the same classes.")
        names = found
        num_examples += num_rows
        columns.update(schema.names)
    return ShardInfo(files, num_examples, names or (), "split" in columns, "group" in columns)


def _check_schema(path: Path, schema: "pa.Schema") -> None:
    import pyarrow.types as kinds

    def column(name: str) -> "pa.DataType | None":
        return schema.field(name).type if name in schema.names else None

    image, label = column("image"), column("label")
    if (
        image is None
        or not kinds.is_struct(image)
        or image.get_field_index("bytes") < 0
        or not (kinds.is_binary(image.field("bytes").type) or kinds.is_large_binary(image.field("bytes").type))
    ):
        raise DataError(f"{path}: column image is {image}, not struct<bytes: binary, path: string>. Rewrite it so.")
    if label is None or not kinds.is_integer(label):
        raise DataError(f"{path}: column label is {label}, not int64. Rewrite it as class numbers from 0.")
    for name in ("split", "group"):
        kind = column(name)
        if kind is not None and not (kinds.is_string(kind) or kinds.is_large_string(kind)):
            raise DataError(f"{path}: column {name} is {kind}, not string. Rewrite it as text.")


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
        DataError: A row has no image bytes or no label, or a file breaks off.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in info.files:
        first_row = 0
        try:
            with pq.ParquetFile(path) as file:
                for part in file.iter_batches(batch_size=_READ_ROWS, use_threads=False):
                    yield _to_batch(part, path.name, first_row)
                    first_row += part.num_rows
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{path}: cannot be read beyond row {first_row} ({error}). Replace it.") from error


def _to_batch(part: "pa.RecordBatch", file_name: str, first_row: int) -> Batch:
    images = part.column("image")
    num_rows = part.num_rows
    has_path = images.type.get_field_index("path") >= 0
    paths = images.field("path").to_pylist() if has_path else [None] * num_rows
    names = [f"{file_name}, row {first_row + row}" + (f" ({path})" if path else "") for row, path in enumerate(paths)]
    data, labels = images.field("bytes").to_pylist(), part.column("label").to_pylist()
    for row, name in enumerate(names):
        if data[row] is None or labels[row] is None:
            missing = "image bytes" if data[row] is None else "label"
            raise DataError(f"{name}: has no {missing}. Every row needs both; remove or complete it.")
    return Batch(
        images=data,
        names=names,
        labels=labels,
        splits=part.column("split").to_pylist() if "split" in part.schema.names else [None] * num_rows,
        groups=part.column("group").to_pylist() if "group" in part.schema.names else [None] * num_rows,
    )
