"""Pictures to score: an image, a folder of images, Parquet shards or an array, read in a stream.

Pictures become the pixels that an import would have made of them.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from assay.data.array_files import count_images, read_images
from assay.data.decoding import Picture, decode_in_order
from assay.data.image_folder import IMAGE_SUFFIXES
from assay.data.images import read_file
from assay.data.input_batches import InputBatch, Inputs, Tally, Wanted, read_parquet, shown_name, walk_files
from assay.errors import BadExampleError, DataError

if TYPE_CHECKING:
    import pyarrow as pa

_READ_ROWS = 64
_WHAT = "JPEG or PNG"


def open_image(path: Path, wanted: Wanted) -> Inputs:
    """Open one image file."""
    read = _decoding(lambda tally: _read_images(path.parent, [path.name], tally), wanted, resize=True)
    return Inputs(path, 1, ("path",), (), read)


def open_image_folder(folder: Path, wanted: Wanted) -> Inputs:
    """Open a folder of images.

    Raises:
        DataError: There is none in it.
    """
    left_out: Counter[str] = Counter()
    num_examples = sum(1 for _ in walk_files(folder, "", IMAGE_SUFFIXES, _WHAT, left_out))
    notes = tuple(f"Left out {count} x {reason}." for reason, count in sorted(left_out.items()))
    if not num_examples:
        found = f" ({' '.join(notes)})" if notes else ""
        raise DataError(
            f"{folder}: holds no JPEG or PNG image and no *.parquet file{found}, and {wanted.takes}. "
            "Name another folder."
        )

    def pictures(tally: Tally) -> Iterator[Picture]:
        return _read_images(folder, walk_files(folder, "", IMAGE_SUFFIXES, _WHAT, Counter()), tally)

    return Inputs(folder, num_examples, ("path",), notes, _decoding(pictures, wanted, resize=True))


def open_image_shards(path: Path, files: tuple[Path, ...], num_rows: int, wanted: Wanted) -> Inputs:
    """Open Parquet files with a column ``image``."""
    read = _decoding(lambda tally: _read_shards(files, tally), wanted, resize=False)
    return Inputs(path, num_rows, ("row", "path"), (), read)


def open_image_array(path: Path, wanted: Wanted) -> Inputs:
    """Open a ``.npy`` or ``.npz`` file of images.

    Raises:
        DataError: It holds no images.
    """

    def read(batch_size: int, skip_bad: bool, tally: Tally) -> Iterator[InputBatch]:
        del skip_bad  # An array fits as a whole or not at all.
        return read_images(path, wanted.image_shape, batch_size, tally)

    return Inputs(path, count_images(path, wanted.takes), ("row",), (), read)


def _decoding(
    pictures: Callable[[Tally], Iterator[Picture]], wanted: Wanted, *, resize: bool
) -> Callable[[int, bool, Tally], Iterator[InputBatch]]:
    """Make a reader of pictures that have to be decoded."""
    shape = wanted.image_shape

    def read(batch_size: int, skip_bad: bool, tally: Tally) -> Iterator[InputBatch]:
        batch = InputBatch(np.zeros((batch_size, *shape), np.uint8), [], [])
        for decoded in decode_in_order(pictures(tally), shape, resize=resize):
            tally.changes.update(decoded.changes)
            if not tally.count(decoded.error, skip_bad, "pictures"):
                continue
            batch.inputs[len(batch)] = decoded.pixels
            batch.rows.append(decoded.row)
            batch.paths.append(decoded.path)
            if len(batch) == batch_size:
                yield batch
                batch = InputBatch(np.zeros((batch_size, *shape), np.uint8), [], [])
        if len(batch):
            yield batch

    return read


def _read_images(folder: Path, names: Iterator[str] | list[str], tally: Tally) -> Iterator[Picture]:
    for row, name in enumerate(names):
        shown = shown_name(name)
        try:
            data: bytes | BadExampleError = read_file(os.path.join(folder, name), shown)
        except BadExampleError as error:
            data = error
        else:
            tally.sha256.update(data)
        yield Picture(data, shown, row, shown)


def _read_shards(files: tuple[Path, ...], tally: Tally) -> Iterator[Picture]:
    for name, row, part in read_parquet(files, ["image"], _READ_ROWS, tally):
        yield from _pictures(part.column("image"), name, row)


def _pictures(images: "pa.StructArray", file_name: str, first_row: int) -> Iterator[Picture]:
    has_path = images.type.get_field_index("path") >= 0
    paths = images.field("path").to_pylist() if has_path else [None] * len(images)
    for row, (data, path) in enumerate(zip(images.field("bytes").to_pylist(), paths, strict=True), first_row):
        name = f"{file_name}, row {row}" + (f" ({path})" if path else "")
        yield Picture(BadExampleError(f"{name}: has no image bytes") if data is None else data, name, row, path)
