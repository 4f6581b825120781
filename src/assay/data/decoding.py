"""Many pictures decoded by a few threads, in order, as an import decodes them; and what was met on the way.

Pillow works outside Python's global lock. Only a few dozen encoded pictures are held at a time.
"""

import hashlib
import io
import os
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from assay.data.images import Probe, decode_image, probe_image
from assay.errors import BadExampleError

RESIZED, TO_GREY, TO_COLOUR = "resized", "colour to grey", "grey to colour"
"""What decoding may have done to a picture, besides the traits of `Probe`."""

NUM_BAD_KEPT = 1000
"""Skipped pictures whose names are kept; beyond that they are only counted."""

BLOCK_BYTES = 1 << 20
"""What is read of a file at a time."""

Shape = tuple[int, int, int]

_CHUNK_ROWS = 16
_CHUNK_BYTES = 8 << 20
_MAX_THREADS = 8


@dataclass(frozen=True)
class Picture:
    """One picture as it was found.

    Attributes:
        data: JPEG or PNG bytes, or why there are none.
        name: What to call it in an error.
        row: Its place in the input, from 0.
        path: Its path within the input; None where it has none.
    """

    data: bytes | BadExampleError
    name: str
    row: int
    path: str | None


@dataclass(frozen=True)
class Decoded:
    """What became of a picture.

    Attributes:
        row: Its place in the input.
        path: Its path within the input; None where it has none.
        pixels: uint8 ``[height, width, channel]``; None where it cannot be decoded.
        error: Why it cannot be decoded.
        changes: What was done to it: `RESIZED`, `TO_GREY`, `TO_COLOUR`, and the traits of `Probe`.
    """

    row: int
    path: str | None
    pixels: np.ndarray | None
    error: BadExampleError | None = None
    changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class InputBatch:
    """Some pictures in order.

    Attributes:
        images: uint8 ``[batch, height, width, channel]``, always a full batch; rows beyond the names are zero.
        rows: Place of each picture in the input, from 0; a picture that was skipped leaves a gap.
        paths: Its path within the input; None where it has none.
    """

    images: np.ndarray
    rows: list[int]
    paths: list[str | None]

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, position: int) -> str:
        """What to call a picture in an error."""
        path, row = self.paths[position], f"row {self.rows[position]}"
        return path if path is not None else row


@dataclass
class Tally:
    """What was met while reading; filled by it.

    Attributes:
        sha256: Over all bytes of the input in the order of reading.
        num_read: Pictures read, the skipped ones included.
        num_bad: Pictures skipped because they cannot be decoded.
        bad_examples: The first `NUM_BAD_KEPT` of them, with the reason.
        changes: What was done to pictures -> to how many.
    """

    sha256: Any = field(default_factory=hashlib.sha256)
    num_read: int = 0
    num_bad: int = 0
    bad_examples: list[str] = field(default_factory=list)
    changes: Counter[str] = field(default_factory=Counter)

    def count(self, decoded: Decoded, skip_bad: bool) -> bool:
        """Count a picture, and say whether it can be scored.

        Raises:
            BadExampleError: It cannot, and `skip_bad` is off.
        """
        self.num_read += 1
        self.changes.update(decoded.changes)
        if decoded.error is None:
            return True
        if not skip_bad:
            raise BadExampleError(f"{decoded.error}. Replace or remove it, or leave such pictures out with --skip-bad.")
        self.num_bad += 1
        if self.num_bad <= NUM_BAD_KEPT:
            self.bad_examples.append(str(decoded.error))
        return False

    def notes(self, shape: Shape) -> tuple[str, ...]:
        """Say what was done to pictures so that they fit the model.

        Args:
            shape: Height, width, channels that the model takes.
        """
        sentences = {
            RESIZED: "Resized {} to " + f"{shape[0]}x{shape[1]} (height x width, bicubic), as an import does.",
            TO_GREY: "Converted {} from colour to grey, since the model takes grey.",
            TO_COLOUR: "Gave {} of grey three equal channels, since the model takes colour.",
            "orientation": "Turned {} upright as their EXIF orientation says.",
            "transparency": "Laid {} with transparency over white.",
            "16 bits": "Rounded {} from 16 to 8 bits.",
            "CMYK": "Converted {} from CMYK without a colour profile.",
        }
        counts = ((sentence, self.changes[name]) for name, sentence in sentences.items())
        return tuple(text.format("1 image" if count == 1 else f"{count:,} images") for text, count in counts if count)


def decode_in_order(pictures: Iterator[Picture], shape: Shape, *, resize: bool) -> Iterator[Decoded]:
    """Decode pictures to one shape.

    Args:
        pictures: Read as they are needed.
        shape: Height, width, channels (1 or 3) of the results.
        resize: Resize to `shape`; without it, a picture of another size cannot be decoded.

    Yields:
        What became of each, in order.
    """
    num_threads = min(_MAX_THREADS, len(os.sched_getaffinity(0)))
    waiting: deque[Future[list[Decoded]]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        for chunk in _chunks(pictures):
            waiting.append(pool.submit(lambda part: [_decode(one, shape, resize) for one in part], chunk))
            if len(waiting) == 2 * num_threads:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def _chunks(pictures: Iterator[Picture]) -> Iterator[list[Picture]]:
    """Cut the stream where enough pictures or bytes are together."""
    chunk: list[Picture] = []
    size_bytes = 0
    for picture in pictures:
        chunk.append(picture)
        size_bytes += len(picture.data) if isinstance(picture.data, bytes) else 0
        if len(chunk) == _CHUNK_ROWS or size_bytes >= _CHUNK_BYTES:
            yield chunk
            chunk, size_bytes = [], 0
    if chunk:
        yield chunk


def _decode(picture: Picture, shape: Shape, resize: bool) -> Decoded:
    if isinstance(picture.data, BadExampleError):
        return Decoded(picture.row, picture.path, None, picture.data)
    try:
        probe = probe_image(io.BytesIO(picture.data), picture.name)
        pixels = decode_image(picture.data, shape, picture.name, resize=resize)
    except BadExampleError as error:
        return Decoded(picture.row, picture.path, None, error)
    return Decoded(picture.row, picture.path, pixels, None, _changes(probe, shape))


def _changes(probe: Probe, shape: Shape) -> tuple[str, ...]:
    height, width, num_channels = shape
    done = {
        RESIZED: (probe.height, probe.width) != (height, width),
        TO_GREY: num_channels == 1 and not probe.is_grey,
        TO_COLOUR: num_channels == 3 and probe.is_grey,
    }
    return (*(name for name, is_done in done.items() if is_done), *probe.traits)


def hash_file(path: Path, tally: Tally) -> None:
    """Hash all bytes of a file into a tally.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            tally.sha256.update(block)
