"""The ``image-folder`` source: one folder a class, with ``train/ test/ val/`` above or not.

Two passes, both streamed: headers first (the common size, grey or colour), then every image is decoded.
"""

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

from assay.data.class_folders import ClassFile, list_class_folders
from assay.data.images import Probe, fit_image, probe_image, read_file
from assay.data.sources import Example, Source, content_hash
from assay.errors import BadExampleError, SourceError
from assay.progress import announce

MAX_DEFAULT_SIDE = 224
"""Longer side, in pixels, that images are brought down to unless a size is given."""

MAX_SIDE = 2048
"""Largest side that may be asked for."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
_CHUNK = 32
_NUM_LISTED = 10

_T = TypeVar("_T")


def open_image_folder(
    folder: Path,
    *,
    size: tuple[int, int] | None = None,
    skip_bad: bool = False,
) -> Source:
    """Open a folder of images.

    Args:
        folder: ``CLASS/*.jpg|png`` or ``train|val|test/CLASS/*.jpg|png``.
        size: Height and width to resize to; by default the most common size, its longer side at most
            `MAX_DEFAULT_SIDE`.
        skip_bad: Leave out images that cannot be decoded.

    Raises:
        SourceError: The folder is missing, empty, of one class, or its layout is unclear.
        BadExampleError: An image's header cannot be read and `skip_bad` is off.
    """
    if size and not all(1 <= side <= MAX_SIDE for side in size):
        raise SourceError(f"--size {size[0]}x{size[1]}: each side must be in 1..{MAX_SIDE} pixels. Change it.")
    listing = list_class_folders(folder, IMAGE_SUFFIXES, "image", "JPEG or PNG")
    bad: list[str] = []
    probes = list(_probe_all(listing.files, bad, skip_bad))
    if not probes:
        raise SourceError(f"{folder}: none of its {len(listing.files)} images can be read. Is it the right folder?")
    shape = _target_shape([probe for _, probe in probes], size)
    source = Source(
        name="image-folder",
        details=_details(folder, size, skip_bad),
        class_names=listing.class_names,
        shape=shape,
        num_examples=len(probes),
        size_bytes=sum(_stored_bytes(file, probe, shape) for file, probe in probes),
        has_splits=any(file.split for file in listing.files),
        examples=lambda: _read_all([file for file, _ in probes], shape, bad, skip_bad),
        notes=[*listing.notes, *_notes_on_images([probe for _, probe in probes], shape)],
        bad_examples=bad,
    )
    return source


def _details(folder: Path, size: tuple[int, int] | None, skip_bad: bool) -> dict[str, str]:
    details = {"folder": folder.resolve().name}
    if size:
        details["size"] = f"{size[0]}x{size[1]}"
    if skip_bad:
        details["skip_bad"] = "yes"
    return details


def _probe_all(files: list[ClassFile], bad: list[str], skip_bad: bool) -> Iterator[tuple[ClassFile, Probe]]:
    def probe(file: ClassFile) -> Probe:
        try:
            with open(file.path, "rb") as opened:
                return probe_image(opened, file.name)
        except OSError as error:
            raise BadExampleError(f"{file.name}: cannot be read ({error.strerror})") from error

    return _each(files, probe, bad, skip_bad, "reading image headers")


def _read_all(files: list[ClassFile], shape: tuple[int, int, int], bad: list[str], skip_bad: bool) -> Iterator[Example]:
    def read(file: ClassFile) -> Example:
        data, pixels = fit_image(read_file(file.path, file.name), shape, file.name)
        return Example(file.name, data, file.label, file.split, content_hash(pixels))

    return (example for _, example in _each(files, read, bad, skip_bad, "decoding images"))


def _each(
    files: list[ClassFile],
    work: Callable[[ClassFile], _T],
    bad: list[str],
    skip_bad: bool,
    stage: str,
) -> Iterator[tuple[ClassFile, _T]]:
    """Do `work` on every file with a few threads, in order, holding a few chunks at a time."""

    def attempt(chunk: list[ClassFile]) -> list[tuple[ClassFile, _T | BadExampleError]]:
        results: list[tuple[ClassFile, _T | BadExampleError]] = []
        for file in chunk:
            try:
                results.append((file, work(file)))
            except BadExampleError as error:
                results.append((file, error))
        return results

    num_done = 0
    for results in _in_order(files, attempt):
        for file, result in results:
            if not isinstance(result, BadExampleError):
                yield file, result
            elif skip_bad:
                bad.append(str(result))
            else:
                raise BadExampleError(f"{result}. Replace or remove the file, or leave such files out with --skip-bad.")
        num_done += len(results)
        announce("import", stage, done=num_done, total=len(files))


def _in_order(files: list[ClassFile], work: Callable[[list[ClassFile]], _T]) -> Iterator[_T]:
    """Run chunks of files through a thread pool; Pillow decodes outside Python's global lock."""
    num_threads = min(8, len(os.sched_getaffinity(0)))
    remaining = iter(files)
    waiting: deque[Future[_T]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        while True:
            while len(waiting) < 2 * num_threads and (chunk := list(islice(remaining, _CHUNK))):
                waiting.append(pool.submit(work, chunk))
            if not waiting:
                return
            yield waiting.popleft().result()


def _target_shape(probes: list[Probe], size: tuple[int, int] | None) -> tuple[int, int, int]:
    """The given size, or the most common one with its longer side capped; grey if every image is."""
    num_channels = 1 if all(probe.is_grey for probe in probes) else 3
    if size:
        return (*size, num_channels)
    sizes = Counter((probe.height, probe.width) for probe in probes)
    height, width = max(sizes, key=lambda item: (sizes[item], item))
    scale = min(1.0, MAX_DEFAULT_SIDE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale)), num_channels


def _stored_bytes(file: ClassFile, probe: Probe, shape: tuple[int, int, int]) -> int:
    """Upper estimate of what one image takes up in a shard."""
    height, width, num_channels = shape
    as_png = height * (width * num_channels + 1) + 256
    is_same = (probe.height, probe.width, probe.is_grey) == (height, width, num_channels == 1)
    return (file.size_bytes if is_same and not probe.traits else as_png) + len(file.name)


def _notes_on_images(probes: list[Probe], shape: tuple[int, int, int]) -> list[str]:
    height, width, num_channels = shape
    sizes = Counter((probe.height, probe.width) for probe in probes)
    num_resized = sum(count for size, count in sizes.items() if size != (height, width))
    traits = Counter(trait for probe in probes for trait in probe.traits)
    num_grey = sum(probe.is_grey for probe in probes)
    notes = []
    if num_resized:
        found = ", ".join(f"{h}x{w}" for (h, w), _ in sizes.most_common(3)) + (", ..." if len(sizes) > 3 else "")
        notes.append(
            f"Resized {num_resized} of {len(probes)} images to {height}x{width} (height x width, bicubic, sides "
            f"scaled apart where the proportions differ); found {found}."
        )
    if num_channels == 3 and num_grey:
        notes.append(f"Stored {num_grey} grey images as RGB, since others are in colour.")
    done = {
        "orientation": "Turned {} images upright as their EXIF orientation says.",
        "transparency": "Laid {} images with transparency over white.",
        "16 bits": "Rounded {} images from 16 to 8 bits.",
        "CMYK": "Converted {} CMYK images to RGB without a colour profile.",
    }
    notes.extend(sentence.format(traits[trait]) for trait, sentence in done.items() if traits[trait])
    return notes
