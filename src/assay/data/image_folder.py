"""The ``image-folder`` source: one folder a class, with ``train/ test/ val/`` above or not.

Two passes, both streamed: headers first (the common size, grey or colour), then every image is decoded.
"""

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TypeVar

from assay.data.images import Probe, fit_image, probe_image, read_file
from assay.data.sources import Example, Source, content_hash
from assay.errors import BadExampleError, SourceError
from assay.progress import announce

MAX_DEFAULT_SIDE = 224
"""Longer side, in pixels, that images are brought down to unless a size is given."""

MAX_SIDE = 2048
"""Largest side that may be asked for."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_CHUNK = 32
_NUM_LISTED = 10

_T = TypeVar("_T")


@dataclass(frozen=True)
class ImageFile:
    """One file found: its place on disk, its name within the folder, its label and split."""

    path: str
    name: str
    label: int
    split: str | None
    size_bytes: int


@dataclass
class _Listing:
    """What lies in a folder."""

    files: list[ImageFile] = field(default_factory=list)
    class_names: tuple[str, ...] = ()
    num_hidden: int = 0
    others: Counter[str] = field(default_factory=Counter)


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
    listing = _list_folder(folder)
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
        notes=[*_notes_on_files(listing), *_notes_on_images([probe for _, probe in probes], shape)],
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


def _list_folder(folder: Path) -> _Listing:
    """Find the class folders and their files, sorted by name."""
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise SourceError(f"{folder}: {found}. Name a folder with one folder of images a class.")
    listing = _Listing()
    top = _visible_folders(folder, listing)
    splits = {name: SPLIT_FOLDERS[name.lower()] for name in top if name.lower() in SPLIT_FOLDERS}
    roots: dict[str | None, Path] = {None: folder}
    if "train" in splits.values() and len(set(splits.values())) == len(top):
        roots = {split: folder / name for name, split in splits.items()}
    elif len(set(splits.values())) > 1:
        raise SourceError(_unclear_layout(folder, top, splits))
    classes: dict[str | None, list[str]] = {None: top}
    if None not in roots:
        classes = {split: _visible_folders(root, listing) for split, root in roots.items()}
    listing.class_names = _class_names(folder, classes)
    for split, names in classes.items():
        for name in sorted(names):
            _list_class(roots[split] / name, folder, listing.class_names.index(name), split, listing)
    listing.files.sort(key=lambda file: file.name)
    return listing


def _unclear_layout(folder: Path, top: list[str], splits: dict[str, str]) -> str:
    named = ", ".join(splits)
    if beside := sorted(set(top) - set(splits)):
        return (
            f"{folder}: the splits {named} lie beside other folders ({', '.join(beside[:3])}), so it is unclear "
            "what a class is. Leave either the splits or the classes there."
        )
    reason = "there is no train" if "train" not in splits.values() else "two of them are the same split"
    return f"{folder}: holds {named}, and {reason}. Name the folders train, val and test."


def _visible_folders(folder: Path, listing: _Listing) -> list[str]:
    """Names of the subfolders; loose files are counted and left out."""
    names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith((".", "__MACOSX")):
                listing.num_hidden += 1
            elif entry.is_dir():
                names.append(entry.name)
            else:
                listing.others[f"file outside any class folder, in {folder}"] += 1
    return sorted(names)


def _class_names(folder: Path, classes: dict[str | None, list[str]]) -> tuple[str, ...]:
    """Class names in label order: by number where all are numbers, by name otherwise."""
    names = classes.get(None) or classes.get("train") or []
    for split, others in classes.items():
        for name in sorted(set(others) - set(names)):
            raise SourceError(
                f"{folder}: class {name!r} is in {split} and not in train. Add examples to train or remove it."
            )
    if len(names) < 2:
        found = f"only one class folder, {names[0]!r}" if names else "no class folders"
        raise SourceError(f"{folder}: holds {found}. Put the images of each class into a folder of its own.")
    for name in names:
        if not name.isprintable() or any(0xD800 <= ord(letter) <= 0xDFFF for letter in name):
            raise SourceError(f"{folder}: the class folder {name!r} has letters that cannot be stored. Rename it.")
    if all(name.isascii() and name.isdigit() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _list_class(folder: Path, root: Path, label: int, split: str | None, listing: _Listing) -> None:
    """Add the images below one class folder."""
    num_before = len(listing.files)
    for place, folders, names in os.walk(folder):
        listing.num_hidden += sum(name.startswith(".") for name in (*folders, *names))
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        for name in (name for name in names if not name.startswith(".")):
            path = os.path.join(place, name)
            suffix = os.path.splitext(name)[1].lower()
            if suffix in IMAGE_SUFFIXES and (os.path.isfile(path) or not os.path.exists(path)):
                listing.files.append(_image_file(path, root, label, split))
            else:
                listing.others[f"file that is no JPEG or PNG ({suffix or 'no suffix'})"] += 1
    if len(listing.files) == num_before:
        raise SourceError(f"{folder}: holds no JPEG or PNG image. Add some, or remove the folder.")


def _image_file(path: str, root: Path, label: int, split: str | None) -> ImageFile:
    name = os.fsencode(os.path.relpath(path, root)).decode("utf-8", "backslashreplace").replace(os.sep, "/")
    size_bytes = os.path.getsize(path) if os.path.exists(path) else 0
    return ImageFile(path, name, label, split, size_bytes)


def _probe_all(files: list[ImageFile], bad: list[str], skip_bad: bool) -> Iterator[tuple[ImageFile, Probe]]:
    def probe(file: ImageFile) -> Probe:
        try:
            with open(file.path, "rb") as opened:
                return probe_image(opened, file.name)
        except OSError as error:
            raise BadExampleError(f"{file.name}: cannot be read ({error.strerror})") from error

    return _each(files, probe, bad, skip_bad, "reading image headers")


def _read_all(files: list[ImageFile], shape: tuple[int, int, int], bad: list[str], skip_bad: bool) -> Iterator[Example]:
    def read(file: ImageFile) -> Example:
        data, pixels = fit_image(read_file(file.path, file.name), shape, file.name)
        return Example(file.name, data, file.label, file.split, content_hash(pixels))

    return (example for _, example in _each(files, read, bad, skip_bad, "decoding images"))


def _each(
    files: list[ImageFile],
    work: Callable[[ImageFile], _T],
    bad: list[str],
    skip_bad: bool,
    stage: str,
) -> Iterator[tuple[ImageFile, _T]]:
    """Do `work` on every file with a few threads, in order, holding a few chunks at a time."""

    def attempt(chunk: list[ImageFile]) -> list[tuple[ImageFile, _T | BadExampleError]]:
        results: list[tuple[ImageFile, _T | BadExampleError]] = []
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


def _in_order(files: list[ImageFile], work: Callable[[list[ImageFile]], _T]) -> Iterator[_T]:
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


def _stored_bytes(file: ImageFile, probe: Probe, shape: tuple[int, int, int]) -> int:
    """Upper estimate of what one image takes up in a shard."""
    height, width, num_channels = shape
    as_png = height * (width * num_channels + 1) + 256
    is_same = (probe.height, probe.width, probe.is_grey) == (height, width, num_channels == 1)
    return (file.size_bytes if is_same and not probe.traits else as_png) + len(file.name)


def _notes_on_files(listing: _Listing) -> list[str]:
    notes = [f"Left out {count} x {reason}." for reason, count in sorted(listing.others.items())]
    if listing.num_hidden:
        notes.append(f"Left out {listing.num_hidden} x hidden file or folder.")
    return notes


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
