"""One image at a time: probe its header, decode it, encode it the same way everywhere.

A decoded image is uint8 ``[height, width, channel]`` with one channel (grey) or three (RGB): orientation
applied, transparency laid over white, 16 bits rounded to 8, CMYK converted.
"""

import io
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from assay.errors import BadExampleError

if TYPE_CHECKING:
    from PIL import Image

MAX_FILE_BYTES = 256 * 2**20
"""A file larger than this is not read into memory."""

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_ORIENTATION_TAG = 0x0112
# Pillow raises all of these on malformed files; MemoryError and programming errors of ours stay visible.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError)


@dataclass(frozen=True)
class Probe:
    """What an image's header says.

    Attributes:
        height: Pixels, after orientation is applied.
        width: Pixels, after orientation is applied.
        is_grey: Whether one channel holds the picture.
        traits: What decoding will change: ``orientation``, ``transparency``, ``16 bits``, ``CMYK``.
    """

    height: int
    width: int
    is_grey: bool
    traits: frozenset[str]


@contextmanager
def bombs_refused() -> Iterator[None]:
    """Turn Pillow's warning about a decompression bomb into the refusal of that image."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def probe_image(file: BinaryIO, name: str) -> Probe:
    """Read an image's header.

    Args:
        file: The open file.
        name: What to call it in an error.

    Raises:
        BadExampleError: It is no JPEG or PNG, or it has more pixels than is safe to decode.
    """
    with _explained(name):
        image = _open(file)
        orientation = _orientation(image)
        width, height = image.size if orientation < 5 else image.size[::-1]
        traits = {
            "orientation": orientation != 1,
            "transparency": _has_alpha(image),
            "16 bits": image.mode.startswith("I;16"),
            "CMYK": image.mode == "CMYK",
        }
        return Probe(height, width, _is_grey(image), frozenset(trait for trait, present in traits.items() if present))


def decode_image(data: bytes, shape: tuple[int, int, int], name: str, *, resize: bool = False) -> np.ndarray:
    """Decode a JPEG or PNG.

    Args:
        data: The file's bytes.
        shape: Height, width and channels (1 or 3) of the result.
        name: What to call it in an error.
        resize: Resize to `shape` (bicubic); without it, another size is an error.

    Returns:
        uint8 array of `shape`.

    Raises:
        BadExampleError: It cannot be decoded, or has another size.
    """
    return _decode(data, shape, name, resize)[0]


def fit_image(data: bytes, shape: tuple[int, int, int], name: str) -> tuple[bytes, np.ndarray]:
    """Decode an image to `shape`, and keep its bytes where they say exactly that already.

    Args:
        data: The file's bytes.
        shape: Height, width and channels (1 or 3) of the result.
        name: What to call it in an error.

    Returns:
        Image bytes of that shape (the file's own, or a new PNG) and their uint8 pixels.

    Raises:
        BadExampleError: It cannot be decoded.
    """
    pixels, is_same = _decode(data, shape, name, resize=True)
    return (data if is_same else encode_png(pixels)), pixels


def encode_png(pixels: np.ndarray) -> bytes:
    """Write a PNG without compression, byte for byte the same whatever zlib is installed.

    Args:
        pixels: uint8 ``[height, width, channel]`` with one or three channels.

    Source: PNG (Portable Network Graphics) Specification, third edition, sections 5.3, 9.2, 11.2; RFC 1950 and
        RFC 1951 section 3.2.4 (stored blocks).
    """
    height, width, num_channels = pixels.shape
    lines = np.zeros((height, 1 + width * num_channels), np.uint8)
    lines[:, 1:] = pixels.reshape(height, -1)
    raw = lines.tobytes()
    starts = range(0, len(raw), 65535)
    blocks = [_stored_block(raw[start : start + 65535], start + 65535 >= len(raw)) for start in starts]
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if num_channels == 3 else 0, 0, 0, 0)
    body = b"\x78\x01" + b"".join(blocks) + struct.pack(">I", zlib.adler32(raw))
    return _PNG_SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def read_file(path: str, name: str) -> bytes:
    """Read an image file that is small enough to be one.

    Raises:
        BadExampleError: It cannot be read, is empty, or is larger than `MAX_FILE_BYTES`.
    """
    try:
        size_bytes = os.path.getsize(path)
        if 0 < size_bytes <= MAX_FILE_BYTES:
            with open(path, "rb") as file:
                return file.read()
    except OSError as error:
        raise BadExampleError(f"{name}: cannot be read ({error.strerror})") from error
    raise BadExampleError(f"{name}: {'is empty' if size_bytes == 0 else f'has {size_bytes:,} bytes'}")


def _stored_block(part: bytes, is_last: bool) -> bytes:
    return struct.pack("<BHH", is_last, len(part), len(part) ^ 0xFFFF) + part


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _decode(data: bytes, shape: tuple[int, int, int], name: str, resize: bool) -> tuple[np.ndarray, bool]:
    """Decode, and say whether the bytes as they are already have this very shape."""
    from PIL import Image, ImageOps

    height, width, num_channels = shape
    mode = "L" if num_channels == 1 else "RGB"
    with _explained(name):
        image = _open(io.BytesIO(data))
        orientation = _orientation(image)
        is_same = (image.mode, image.size, orientation) == (mode, (width, height), 1) and not _has_alpha(image)
        if resize:
            # Twice the target keeps what bicubic needs; JPEG decodes at 1/2, 1/4 or 1/8 for far less work.
            image.draft(None, (2 * max(height, width), 2 * max(height, width)))
        image.load()
        if image.format == "PNG":
            _check_chunks(data)
        if not is_same:
            image = _flatten(ImageOps.exif_transpose(image) if orientation != 1 else image).convert(mode)
    if image.size != (width, height):
        if not resize:
            found = f"{image.size[1]}x{image.size[0]}"
            raise BadExampleError(f"{name}: is {found} pixels (height x width), not {height}x{width}")
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image, np.uint8).reshape(shape), is_same


def _check_chunks(data: bytes) -> None:
    """Find damage that Pillow reads over: a wrong checksum, or a PNG that ends early.

    Source: PNG Specification, third edition, section 5.3 (chunk layout; a capital letter marks a critical chunk).
    """
    place = len(_PNG_SIGNATURE)
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        kind, end = data[place + 4 : place + 8], place + 8 + length
        if kind[:1].isupper() and data[end : end + 4] != struct.pack(">I", zlib.crc32(data[place + 4 : end])):
            raise ValueError(f"its chunk {kind.decode('ascii', 'replace')} is damaged")
        if kind == b"IEND":
            return
        place = end + 4
    raise ValueError("it breaks off before its end")


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Give Pillow's errors the image's name."""
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except UnidentifiedImageError as error:
        raise BadExampleError(f"{name}: is no JPEG or PNG image") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadExampleError(f"{name}: has more pixels than is safe to decode ({error})") from error
    except (*_DECODE_ERRORS, struct.error, zlib.error) as error:
        raise BadExampleError(f"{name}: cannot be decoded ({error})") from error


def _open(file: BinaryIO) -> "Image.Image":
    from PIL import Image

    return Image.open(file, formats=("JPEG", "PNG"))


def _orientation(image: "Image.Image") -> int:
    """EXIF orientation, 1 (upright) where there is none or nonsense."""
    if "exif" not in image.info:
        return 1
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except (*_DECODE_ERRORS, struct.error):
        return 1  # Broken metadata beside a sound picture.
    return value if value in range(1, 9) else 1


def _has_alpha(image: "Image.Image") -> bool:
    return image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info


def _is_grey(image: "Image.Image") -> bool:
    if image.mode in {"P", "PA"}:
        colours = np.array(image.getpalette("RGB") or [0], np.uint8)
        return bool((colours.reshape(-1, 3) == colours[::3, None]).all()) if colours.size % 3 == 0 else False
    return image.mode in {"1", "L", "LA", "La"} or image.mode.startswith("I;16")


def _flatten(image: "Image.Image") -> "Image.Image":
    """Reduce any mode to 8-bit grey or RGB."""
    from PIL import Image

    mode = "L" if _is_grey(image) else "RGB"
    if image.mode.startswith("I;16"):
        deep = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((deep + 128) // 257).astype(np.uint8))
    if _has_alpha(image):
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        return white.convert(mode)
    if image.mode not in {"1", "L", "P", "RGB", "CMYK", "YCbCr"}:
        raise ValueError(f"its pixel format {image.mode} is not supported")
    return image.convert(mode)
