"""Many pictures decoded by a few threads, in order, as an import decodes them.

Pillow works outside Python's global lock. Only a few dozen encoded pictures are held at a time.
"""

import io
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from assay.data.images import Probe, decode_image, probe_image
from assay.data.input_batches import RESIZED, TO_COLOUR, TO_GREY
from assay.errors import BadExampleError

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
