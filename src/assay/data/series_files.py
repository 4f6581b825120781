"""The ``series`` source: series, or images, in a npz or npy file; nothing in it is unpickled.

A npz file holds the values as ``X`` (``x``, ``data``, ``series``, ``images``) and the labels as ``y`` (``labels``,
``label``, ``target``), and may hold ``lengths``, ``groups``, ``split``, ``channels`` and ``class_names``. Beside a npy
file lie its labels, ``NAME_labels.npy`` or ``labels.npy``.
"""

import hashlib
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from assay.data.column_facts import MISSING_LABELS
from assay.data.columns import SPLIT_VALUES
from assay.data.images import encode_png
from assay.data.label_values import MAX_CLASSES
from assay.data.sources import Example, Source, content_hash
from assay.data.text_lines import clean_text
from assay.errors import BadExampleError, DataError, SourceError
from assay.progress import announce
from assay.records import IMAGE, SERIES

SERIES_SUFFIXES = (".npz", ".npy")

_VALUES = ("X", "x", "data", "series", "images")
_LABELS = ("y", "labels", "label", "target", "targets")
_GROUPS = ("groups", "group", "subject", "subjects", "speaker", "speakers")
_SPLITS = ("split", "splits")
_LENGTHS = ("lengths",)
_CHANNELS = ("channels", "columns")
_CLASS_NAMES = ("class_names", "classes")
_READ_ERRORS = (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
_NUM_LISTED = 5
_CHANNEL_COUNTS = (1, 3)


@dataclass(frozen=True)
class Arrays:
    """The arrays of a series or image file, each one checked to be no object array.

    Attributes:
        values: ``[example, step]``, ``[example, step, channel]`` or, with `lengths`, all steps ``[step, channel]``;
            images uint8 ``[example, height, width(, channel)]``.
        labels: ``[example]``.
        lengths: Steps of each example, int64 ``[example]``, if `values` are put together.
        groups: Group of each example.
        splits: Split of each example.
        channels: Names of the channels.
        class_names: Names of the classes 0, 1, ...
    """

    values: np.ndarray
    labels: np.ndarray
    lengths: np.ndarray | None = None
    groups: np.ndarray | None = None
    splits: np.ndarray | None = None
    channels: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()


def open_series(path: Path, *, skip_bad: bool = False) -> Source:
    """Open a file of series or of uint8 images.

    Args:
        path: A npz file, or a npy file with its labels beside it.
        skip_bad: Leave out series that are empty or hold NaN or infinity.

    Raises:
        SourceError: The file is missing, empty, of one class, or lacks an array.
        DataError: An array cannot be read, or does not fit the others.
        BadExampleError: A series cannot be used and `skip_bad` is off.
    """
    arrays = _read_npz(path) if path.suffix.lower() == ".npz" else _read_npy(path)
    details = {"file": path.name, "sha256": _file_sha256(path)} | ({"skip_bad": "yes"} if skip_bad else {})
    if holds_images(arrays.values) and arrays.lengths is None:
        return source_of_images("series", details, arrays, str(path))
    return source_of_series("series", details, arrays, str(path), skip_bad=skip_bad)


def holds_images(values: np.ndarray) -> bool:
    """Whether an array holds images: uint8 ``[example, height, width(, channel)]``."""
    is_grey_or_colour = values.ndim == 3 or (values.ndim == 4 and values.shape[3] in _CHANNEL_COUNTS)
    return values.dtype == np.uint8 and is_grey_or_colour


def _file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_file(path: Path) -> None:
    if path.suffix.lower() not in SERIES_SUFFIXES:
        raise SourceError(f"{path}: has suffix {path.suffix!r}. Series are read from .npz or .npy; save it so.")
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise SourceError(f"{path}: {found}. Name a .npz or .npy file.")
    if path.stat().st_size == 0:
        raise SourceError(f"{path}: is empty (0 bytes). Was it written to its end?")


def _read_npz(path: Path) -> Arrays:
    _check_file(path)
    try:
        # NumPy leaves a damaged file open that it opened itself.
        with open(path, "rb") as opened:
            file = np.load(opened, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise DataError(f"{path}: is one array, not an archive of arrays. Give it the suffix .npy.")
            names = tuple(file.files)
            values_name, labels_name = _pick(path, names, _VALUES, "values"), _pick(path, names, _LABELS, "labels")

            def optional(wanted: tuple[str, ...]) -> np.ndarray | None:
                found = next((name for name in wanted if name in names), None)
                return None if found is None else _member(path, file, found)

            channels, class_names = optional(_CHANNELS), optional(_CLASS_NAMES)
            return Arrays(
                _member(path, file, values_name),
                _member(path, file, labels_name),
                optional(_LENGTHS),
                optional(_GROUPS),
                optional(_SPLITS),
                () if channels is None else tuple(str(name) for name in channels.ravel()),
                () if class_names is None else tuple(str(name) for name in class_names.ravel()),
            )
    except _READ_ERRORS as error:
        raise DataError(f"{path}: cannot be read as npz ({error}). Replace it.") from error


def _pick(path: Path, names: tuple[str, ...], wanted: tuple[str, ...], what: str) -> str:
    found = [name for name in wanted if name in names]
    if len(found) != 1:
        state = f"holds {' and '.join(found)}, so it is unclear which are" if found else "holds no array named as"
        raise SourceError(
            f"{path}: {state} the {what}. It has {', '.join(names[:10]) or 'no arrays'}; name them one of "
            f"{', '.join(wanted)}."
        )
    return found[0]


def _member(path: Path, file: "np.lib.npyio.NpzFile", name: str) -> np.ndarray:
    try:
        return np.asarray(file[name])
    except ValueError as error:
        raise DataError(_not_read(path, f"array {name!r}", error)) from error


def _not_read(path: Path, what: str, error: Exception) -> str:
    if "Object arrays" in str(error):
        return (
            f"{path}: {what} is an object array, which is a pickle, and loading one runs any code in it. Save series "
            "of unequal length as one array of all steps (X) with their lengths (lengths)."
        )
    reason = "it is no npy file, perhaps a pickle, which could run any code" if "pickle" in str(error) else error
    return f"{path}: {what} cannot be read ({reason}). Replace it."


def _read_npy(path: Path) -> Arrays:
    _check_file(path)
    beside = (path.with_name(f"{path.stem}_labels.npy"), path.with_name("labels.npy"))
    labels = next((place for place in beside if place.is_file() and place != path), None)
    if labels is None:
        raise SourceError(
            f"{path}: a npy file holds values only, and neither {beside[0].name} nor {beside[1].name} lies beside it. "
            "Save the labels there, or both as X and y in one npz file."
        )
    return Arrays(_load_npy(path), _load_npy(labels))


def _load_npy(path: Path) -> np.ndarray:
    try:
        with open(path, "rb") as opened:
            array = np.load(opened, allow_pickle=False)
    except _READ_ERRORS as error:
        raise DataError(_not_read(path, "the array", error)) from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: is an archive of arrays, not one array. Give it the suffix .npz.")
    return array


@dataclass(frozen=True)
class _Beside:
    """What stands beside the values, checked: label, split and group of each example."""

    labels: np.ndarray
    class_names: tuple[str, ...]
    splits: list[str | None]
    groups: list[str | None]


def _check_beside(where: str, arrays: Arrays, num_examples: int) -> _Beside:
    """Check that labels, splits and groups fit the values."""
    if not num_examples:
        raise SourceError(f"{where}: holds no examples.")
    for what, array in (("labels", arrays.labels), ("groups", arrays.groups), ("splits", arrays.splits)):
        if array is not None and array.shape != (num_examples,):
            raise DataError(
                f"{where}: {what} have shape {list(array.shape)}, and there are {num_examples} examples. Give one each."
            )
    labels, class_names = _name_labels(where, arrays.labels, arrays.class_names)
    splits: list[str | None] = [None] * num_examples
    if arrays.splits is not None:
        splits = [SPLIT_VALUES.get(str(value).strip().lower()) for value in arrays.splits]
        for row, split in enumerate(splits):
            if split is None:
                raise DataError(
                    f"{where}, row {row}: {str(arrays.splits[row])!r} is no split. Write train, val or test."
                )
        if "train" not in splits:
            raise SourceError(f"{where}: no example is of split train. Add some, or leave the array of splits out.")
    groups = [None if arrays.groups is None else str(group) for group in _each(arrays.groups, num_examples)]
    return _Beside(labels, class_names, splits, groups)


def _each(values: np.ndarray | None, count: int) -> list[object]:
    return [None] * count if values is None else list(values.tolist())


def _name_labels(where: str, labels: np.ndarray, given: tuple[str, ...]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Number the classes: whole numbers in their order, texts by name.

    Returns:
        Index of each label, int64 ``[example]``, and the class names.
    """
    if labels.dtype.kind == "f":
        bad = ~np.isfinite(labels) | (labels != np.floor(labels))
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            what = "is missing" if np.isnan(labels[row]) else "is no whole number, so this looks like regression"
            raise DataError(
                f"{where}, row {row}: label {labels[row]} {what} ({int(bad.sum())} such rows). Labels are whole "
                "numbers or texts; mend or remove these rows."
            )
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "iubUS":
        raise DataError(f"{where}: labels are of type {labels.dtype}. Save whole numbers or texts.")
    if labels.dtype.kind in "US":
        labels = np.array(
            [
                clean_text(text.decode(errors="backslashreplace") if isinstance(text, bytes) else text)
                for text in labels.tolist()
            ]
        )
        if (missing := np.isin(labels, MISSING_LABELS)).any():
            rows = ", ".join(map(str, np.flatnonzero(missing)[:_NUM_LISTED]))
            raise DataError(f"{where}: {int(missing.sum())} labels are empty (rows {rows}). Add or remove them.")
    found, index = np.unique(labels, return_inverse=True)
    names = tuple(str(value) for value in found.tolist())
    if given and labels.dtype.kind in "iu":
        if int(found.min()) < 0 or int(found.max()) >= len(given):
            raise DataError(
                f"{where}: labels are in {found.min()}..{found.max()}, and class_names has {len(given)} names. Give "
                "one for each class from 0."
            )
        names, index = given, labels
    if len(found) < 2:
        raise SourceError(f"{where}: all {len(labels)} examples are of class {names[0]!r}. A classifier needs two.")
    if len(names) > MAX_CLASSES:
        raise SourceError(
            f"{where}: has {len(names):,} classes, more than {MAX_CLASSES:,}, so the labels look like ids. Check them."
        )
    return index.astype(np.int64), names


def source_of_images(name: str, details: dict[str, str], arrays: Arrays, where: str) -> Source:
    """Make a source of images in memory.

    Args:
        name: Source name.
        details: What to pin beside it.
        arrays: Images and what stands beside them.
        where: What to call them in errors.

    Raises:
        DataError: The arrays do not fit each other.
    """
    images = arrays.values if arrays.values.ndim == 4 else arrays.values[..., None]
    beside = _check_beside(where, arrays, len(images))
    height, width, num_channels = (int(size) for size in images.shape[1:])
    if not height or not width:
        raise DataError(f"{where}: images have shape {[height, width]}. An image needs at least one pixel.")

    def examples() -> Iterator[Example]:
        for row, image in enumerate(images):
            content, label = encode_png(image), int(beside.labels[row])
            yield Example(f"{row:05d}.png", content, label, beside.splits[row], content_hash(image), beside.groups[row])

    return Source(
        name,
        details,
        beside.class_names,
        (height, width, num_channels),
        len(images),
        len(images) * (height * (width * num_channels + 1) + 128),
        arrays.splits is not None,
        examples,
        kind=IMAGE,
        has_groups=arrays.groups is not None,
        notes=[f"Read {len(images)} images of {height}x{width}, since the array is uint8."],
    )


def source_of_series(
    name: str, details: dict[str, str], arrays: Arrays, where: str, *, skip_bad: bool = False
) -> Source:
    """Make a source of series in memory.

    Args:
        name: Source name.
        details: What to pin beside it.
        arrays: Series and what stands beside them.
        where: What to call them in errors.
        skip_bad: Leave out series that are empty or hold NaN or infinity.

    Raises:
        DataError: The arrays do not fit each other.
        BadExampleError: A series cannot be used and `skip_bad` is off.
    """
    rows, num_channels = _divide(where, arrays)
    beside = _check_beside(where, arrays, len(rows))
    if arrays.channels and len(arrays.channels) != num_channels:
        raise DataError(
            f"{where}: names {len(arrays.channels)} channels, and the series have {num_channels}. Name each once."
        )
    if len(set(arrays.channels)) < len(arrays.channels):
        raise DataError(f"{where}: two channels have the same name. Give each a name of its own.")
    notes, bad = [], []
    sound: list[tuple[int, int, int]] = []
    num_padded = 0
    for number, (start, end) in enumerate(rows):
        kept, reason = look_over(_steps(arrays, number, start, end))
        num_padded += kept < end - start and not reason
        if not reason:
            sound.append((number, start, start + kept))
        elif skip_bad:
            bad.append(f"{where}, row {number}: {reason}")
        else:
            raise BadExampleError(
                f"{where}, row {number}: {reason}. Mend or remove the row, or leave such rows out with --skip-bad."
            )
    if not sound:
        raise SourceError(f"{where}: none of its {len(rows)} series can be used. The first: {bad[0]}.")
    if num_padded:
        notes.append(f"Cut padding (steps of NaN only) off the end of {num_padded} series.")
    longest = max(end - start for _, start, end in sound)

    def examples() -> Iterator[Example]:
        for done, (number, start, end) in enumerate(sound, 1):
            content = np.ascontiguousarray(_steps(arrays, number, start, end), np.float32) + np.float32(0)
            label, split, group = int(beside.labels[number]), beside.splits[number], beside.groups[number]
            yield Example(f"{number:05d}", content, label, split, content_hash(content), group)
            announce("import", "reading series", done=done, total=len(sound))

    return Source(
        name,
        details,
        beside.class_names,
        (longest, num_channels),
        len(sound),
        sum((end - start) * num_channels * 4 + 64 for _, start, end in sound),
        arrays.splits is not None,
        examples,
        kind=SERIES,
        columns=arrays.channels,
        has_groups=arrays.groups is not None,
        notes=notes,
        bad_examples=bad,
    )


def _divide(where: str, arrays: Arrays) -> tuple[list[tuple[int, int]], int]:
    """First and one past the last step of each series, and the number of channels."""
    values, lengths = arrays.values, arrays.lengths
    if values.dtype.kind not in "fiub":
        raise DataError(f"{where}: values are of type {values.dtype}. Save numbers.")
    if lengths is None:
        if values.ndim not in (2, 3):
            raise DataError(
                f"{where}: values have shape {list(values.shape)}; series are [example, step] or [example, step, "
                "channel], or all steps [step, channel] with lengths."
            )
        num_channels = values.shape[2] if values.ndim == 3 else 1
        rows = [(0, values.shape[1])] * len(values)
    else:
        if values.ndim not in (1, 2) or lengths.ndim != 1 or lengths.dtype.kind not in "iu":
            raise DataError(
                f"{where}: with lengths, values are [step, channel] and lengths whole numbers [example]; found "
                f"{list(values.shape)} and {lengths.dtype} {list(lengths.shape)}."
            )
        if (lengths < 0).any() or int(lengths.sum()) != len(values):
            raise DataError(
                f"{where}: lengths add up to {int(lengths.sum())}, and there are {len(values)} steps. Correct them."
            )
        ends = np.cumsum(lengths.astype(np.int64)).tolist()
        rows = list(zip([0, *ends[:-1]], ends, strict=True))
        num_channels = values.shape[1] if values.ndim == 2 else 1
    if not num_channels:
        raise DataError(f"{where}: series have no channels ({list(values.shape)}). Save at least one.")
    return rows, int(num_channels)


def _steps(arrays: Arrays, number: int, start: int, end: int) -> np.ndarray:
    """One series, ``[step, channel]``."""
    steps = arrays.values[start:end] if arrays.lengths is not None else arrays.values[number, start:end]
    return steps if steps.ndim == 2 else steps[:, None]


def look_over(steps: np.ndarray) -> tuple[int, str]:
    """Number of steps before padding, and what is wrong with them, if anything.

    Args:
        steps: ``[step, channel]``.
    """
    if steps.dtype.kind != "f":
        return len(steps), "" if len(steps) else "has no steps"
    is_padding = np.isnan(steps).all(axis=1)
    kept = len(steps) - int(np.argmin(is_padding[::-1])) if not is_padding.all() else 0
    if not kept:
        return 0, "has no steps" if not len(steps) else "holds nothing but NaN"
    with np.errstate(over="ignore"):
        bad = np.argwhere(~np.isfinite(steps[:kept].astype(np.float32)))
    if len(bad):
        step, channel = (int(place) for place in bad[0])
        value = steps[step, channel]
        return kept, f"is {value} in step {step}, channel {channel} ({len(bad)} such values, not finite in float32)"
    return kept, ""
