"""Arrays in ``.npy`` and ``.npz`` files, read in a stream; images in them."""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from assay.data.input_batches import BLOCK_BYTES, TO_COLOUR, TO_GREY, InputBatch, Tally, hash_file
from assay.errors import DataError

Shape = tuple[int, int, int]

_GREY_AND_COLOUR = (1, 3)
_ARRAY_ERRORS = (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


def count_images(path: Path, takes: str) -> int:
    """Read the header of an array of images; return how many there are.

    Args:
        path: A ``.npy`` or ``.npz`` file.
        takes: Which model takes what, for errors.

    Raises:
        DataError: It is no such array, or empty.
    """
    with explained(path), _image_stream(path) as file:
        return _read_header(path, file, takes)[0][0]


def read_images(path: Path, wanted: Shape, batch_size: int, tally: Tally) -> Iterator[InputBatch]:
    """Read an array of images batch by batch; a memory map would count as this process's memory.

    Args:
        path: A ``.npy`` or ``.npz`` file.
        wanted: Height, width, channels (1 or 3) of the results.
        batch_size: Images in a batch.
        tally: Counts them, and hashes the file's bytes.

    Raises:
        DataError: The images have another shape, or the file breaks off.
    """
    is_plain = path.suffix.lower() == ".npy"
    if not is_plain:
        hash_file(path, tally)
    with explained(path), _image_stream(path) as file:
        shape, header_bytes = _read_header(path, file, "the model takes images")
        if change := _fit(path, shape, wanted):
            tally.changes[change] = shape[0]
        file.seek(0)
        header = file.read(header_bytes)
        if is_plain:
            tally.sha256.update(header)
        for first in range(0, shape[0], batch_size):
            count = min(batch_size, shape[0] - first)
            raw = np.zeros((batch_size, *shape[1:]), np.uint8)
            content = raw[:count].data.cast("B")
            fill(file, content)
            if is_plain:
                tally.sha256.update(content)
            tally.num_read += count
            yield InputBatch(_convert(raw, wanted), list(range(first, first + count)), [None] * count)
        while block := file.read(BLOCK_BYTES):
            if is_plain:
                tally.sha256.update(block)


def _image_stream(path: Path) -> IO[bytes]:
    """The bytes of a ``.npy`` file, or of the only array (or the one named ``images``) in a ``.npz`` file."""
    if path.suffix.lower() == ".npy":
        return path.open("rb")
    names = member_names(path)
    if len(names) != 1 and "images" not in names:
        raise DataError(
            f"{path}: holds the arrays {', '.join(names) or '(none)'}, and none is called images. Save the images "
            "under that name, or alone."
        )
    return open_member(path, names[0] if len(names) == 1 else "images")


def member_names(path: Path) -> list[str]:
    """Names of the arrays in a ``.npz`` file."""
    with zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def open_member(path: Path, name: str) -> IO[bytes]:
    """Open one array of a ``.npz`` file."""
    with zipfile.ZipFile(path) as archive:
        # The member keeps the file open.
        return archive.open(f"{name}.npy")


def read_array_header(path: Path, file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Read a ``.npy`` header; the file stands behind it then.

    Returns:
        Shape and type.

    Raises:
        DataError: The array is laid out column by column.

    Source: NEP 1, "A simple file format for NumPy arrays", format versions 1.0 and 2.0.
    """
    version = np.lib.format.read_magic(file)
    if version > (2, 0):
        raise ValueError(f"format version {version}")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read(file)
    if is_fortran and len(shape) > 1:
        raise DataError(f"{path}: is stored column by column. Save numpy.ascontiguousarray(array) instead.")
    return shape, dtype


def _read_header(path: Path, file: IO[bytes], takes: str) -> tuple[tuple[int, ...], int]:
    """Read the header of an array of images; return the shape and the header's length in bytes."""
    shape, dtype = read_array_header(path, file)
    if dtype != np.uint8 or len(shape) not in (3, 4):
        raise DataError(
            f"{path}: is {dtype} of shape {list(shape)}, not uint8 of [n, height, width] or [n, height, width, "
            f"channel], and {takes}. Save pixels 0..255 so."
        )
    if 0 in shape:
        raise DataError(f"{path}: has shape {list(shape)}, so it holds no images. Name a file that does.")
    return shape, file.tell()


def _fit(path: Path, shape: tuple[int, ...], wanted: Shape) -> str:
    """Compare an array's images with what the model takes; return how their channels are changed."""
    height, width, num_channels = wanted
    found = shape[3] if len(shape) == 4 else 1
    if shape[1:3] != (height, width) or found not in _GREY_AND_COLOUR:
        hint = ""
        if len(shape) == 4 and (shape[2], shape[3]) == (height, width) and shape[1] in _GREY_AND_COLOUR:
            hint = " Channels come last here: save array.transpose(0, 2, 3, 1)."
        raise DataError(
            f"{path}: has shape {list(shape)}; the model takes [n, {height}, {width}, {num_channels}] (height, width, "
            f"channels), or grey where it takes colour and the other way round.{hint or ' Resize the images.'}"
        )
    if found == num_channels:
        return ""
    return TO_COLOUR if num_channels == 3 else TO_GREY


def fill(file: IO[bytes], content: memoryview) -> None:
    """Read bytes until `content` is full.

    Raises:
        ValueError: The file ends before.
    """
    while len(content):
        count = file.readinto(content)  # type: ignore[attr-defined]
        if not count:
            raise ValueError(f"it breaks off {len(content)} bytes before the end of a batch")
        content = content[count:]


def _convert(raw: np.ndarray, wanted: Shape) -> np.ndarray:
    """Give images ``[batch, height, width(, channel)]`` the wanted channels, with Pillow's weights for grey."""
    batch, (height, width, num_channels) = len(raw), wanted
    images = raw.reshape(batch, height, width, -1)
    if images.shape[-1] == num_channels:
        return images
    if num_channels == 3:
        return np.repeat(images, 3, axis=-1)
    from PIL import Image

    grey = Image.fromarray(images.reshape(batch * height, width, 3)).convert("L")
    return np.array(grey, np.uint8).reshape(batch, height, width, 1)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Give errors of reading an array the file's name."""
    try:
        yield
    except _ARRAY_ERRORS as error:
        raise DataError(f"{path}: cannot be read as an array ({error}). Replace it.") from error
