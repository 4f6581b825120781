"""Pictures to score: an image, a folder of images, Parquet shards or an array, read in a stream.

Whatever its size, an input takes the memory of a few batches. Pictures become the pixels that an import would have
made of them, and every byte goes into one SHA-256 in the order of reading.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from assay.data.array_files import count_images, read_images
from assay.data.decoding import BLOCK_BYTES, InputBatch, Picture, Shape, Tally, decode_in_order, hash_file
from assay.data.image_folder import IMAGE_SUFFIXES
from assay.data.images import read_file
from assay.errors import BadExampleError, DataError

if TYPE_CHECKING:
    import pyarrow as pa

IMAGES, SHARDS, ARRAY = "images", "shards", "array"
"""Kinds of input."""

_READ_ROWS = 64


@dataclass(frozen=True)
class Inputs:
    """An input that was found and is not read yet.

    Attributes:
        path: The file or folder.
        kind: `IMAGES`, `SHARDS` or `ARRAY`.
        num_examples: Pictures in it, those that turn out unreadable included.
        notes: Sentences about what was left out.
        read: Reads it: the shape (height, width, channels) and number of pictures of a batch, whether to skip bad
            ones, and a tally to fill. Raises `DataError` where the input does not fit, or breaks off.
    """

    path: Path
    kind: str
    num_examples: int
    notes: tuple[str, ...]
    read: Callable[[Shape, int, bool, Tally], Iterator[InputBatch]]


def open_inputs(path: Path) -> Inputs:
    """Find out what an input is and how much is in it.

    Args:
        path: An image, a folder of images (and of folders of them), a Parquet file, a folder of Parquet shards, or a
            ``.npy`` or ``.npz`` file of images.

    Raises:
        DataError: It is missing, empty or none of these.
    """
    if path.is_dir():
        shards = tuple(sorted(path.glob("*.parquet")))
        if shards and any(child.suffix.lower() in IMAGE_SUFFIXES for child in path.iterdir()):
            raise DataError(f"{path}: holds both images and *.parquet files. Name one of them, or part them.")
        return _open_shards(path, shards) if shards else _open_folder(path)
    if not path.is_file():
        raise DataError(f"{path}: {'is no file' if path.exists() else 'does not exist'}. Name a file or a folder.")
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return Inputs(path, IMAGES, 1, (), _decoding(lambda tally: _read_images(path.parent, [path.name], tally), True))
    if suffix == ".parquet":
        return _open_shards(path, (path,))
    if suffix in (".npy", ".npz"):
        return Inputs(path, ARRAY, count_images(path), (), lambda *wanted: _read_array(path, *wanted))
    raise DataError(
        f"{path}: is none of the files that can be scored. Name a JPEG or PNG image, a Parquet file, a .npy or .npz "
        "array, or a folder of images or shards."
    )


def _decoding(
    pictures: Callable[[Tally], Iterator[Picture]], resize: bool
) -> Callable[[Shape, int, bool, Tally], Iterator[InputBatch]]:
    """Make a reader of pictures that have to be decoded."""

    def read(shape: Shape, batch_size: int, skip_bad: bool, tally: Tally) -> Iterator[InputBatch]:
        batch = InputBatch(np.zeros((batch_size, *shape), np.uint8), [], [])
        for decoded in decode_in_order(pictures(tally), shape, resize=resize):
            if not tally.count(decoded, skip_bad):
                continue
            batch.images[len(batch)] = decoded.pixels
            batch.rows.append(decoded.row)
            batch.paths.append(decoded.path)
            if len(batch) == batch_size:
                yield batch
                batch = InputBatch(np.zeros((batch_size, *shape), np.uint8), [], [])
        if len(batch):
            yield batch

    return read


def _open_folder(folder: Path) -> Inputs:
    left_out: Counter[str] = Counter()
    num_examples = sum(1 for _ in _walk(folder, "", left_out))
    notes = tuple(f"Left out {count} x {reason}." for reason, count in sorted(left_out.items()))
    if not num_examples:
        found = f" ({' '.join(notes)})" if notes else ""
        raise DataError(f"{folder}: holds no JPEG or PNG image and no *.parquet file{found}. Name another folder.")
    read = _decoding(lambda tally: _read_images(folder, _walk(folder, "", Counter()), tally), True)
    return Inputs(folder, IMAGES, num_examples, notes, read)


def _walk(root: Path, below: str, left_out: Counter[str]) -> Iterator[str]:
    """Names of the images in a folder and below, in the order of the sorted list, without having that list.

    Args:
        root: The folder.
        below: Folder within it, with its ``/``.
        left_out: Counts what is no image.

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
            yield from _walk(root, below + name, left_out)
        elif os.path.splitext(name)[1].lower() not in IMAGE_SUFFIXES:
            left_out[f"file that is no JPEG or PNG ({os.path.splitext(name)[1].lower() or 'no suffix'})"] += 1
        elif is_file or not os.path.exists(root / below / name):
            yield below + name
        else:
            left_out["image name that is no file"] += 1


def _read_images(folder: Path, names: Iterator[str] | list[str], tally: Tally) -> Iterator[Picture]:
    for row, name in enumerate(names):
        shown = os.fsencode(name).decode("utf-8", "backslashreplace")
        try:
            data: bytes | BadExampleError = read_file(os.path.join(folder, name), shown)
        except BadExampleError as error:
            data = error
        else:
            tally.sha256.update(data)
        yield Picture(data, shown, row, shown)


def _open_shards(path: Path, files: tuple[Path, ...]) -> Inputs:
    num_examples = sum(_check_shard(file) for file in files)
    if not num_examples:
        raise DataError(f"{path}: holds no rows. Name a file or folder that holds examples.")
    return Inputs(path, SHARDS, num_examples, (), _decoding(lambda tally: _read_shards(files, tally), False))


def _check_shard(path: Path) -> int:
    """Read a footer; return the number of rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import pyarrow.types as kinds

    try:
        with pq.ParquetFile(path) as file:
            schema, num_rows = file.schema_arrow, int(file.metadata.num_rows)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({error}). Replace or remove it.") from error
    image = schema.field("image").type if "image" in schema.names else pa.null()
    data = image.field("bytes").type if kinds.is_struct(image) and image.get_field_index("bytes") >= 0 else None
    if data is None or not (kinds.is_binary(data) or kinds.is_large_binary(data)):
        raise DataError(f"{path}: column image is {image}, not struct<bytes: binary, path: string>. Rewrite it so.")
    return num_rows


def _read_shards(files: tuple[Path, ...], tally: Tally) -> Iterator[Picture]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 0
    for path in files:
        try:
            hash_file(path, tally)
            with pq.ParquetFile(path, buffer_size=BLOCK_BYTES) as file:
                for part in file.iter_batches(batch_size=_READ_ROWS, columns=["image"], use_threads=False):
                    yield from _pictures(part.column("image"), path.name, row)
                    row += part.num_rows
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{path}: cannot be read beyond row {row} ({error}). Replace it.") from error


def _pictures(images: "pa.StructArray", file_name: str, first_row: int) -> Iterator[Picture]:
    has_path = images.type.get_field_index("path") >= 0
    paths = images.field("path").to_pylist() if has_path else [None] * len(images)
    for row, (data, path) in enumerate(zip(images.field("bytes").to_pylist(), paths, strict=True), first_row):
        name = f"{file_name}, row {row}" + (f" ({path})" if path else "")
        yield Picture(BadExampleError(f"{name}: has no image bytes") if data is None else data, name, row, path)


def _read_array(path: Path, shape: Shape, batch_size: int, skip_bad: bool, tally: Tally) -> Iterator[InputBatch]:
    """There are no bad images in an array: it fits as a whole or not at all."""
    del skip_bad
    return read_images(path, shape, batch_size, tally)
