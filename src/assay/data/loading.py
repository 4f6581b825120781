"""The decoded cache: shards in, memory-mapped arrays out.

The cache of one data set lies in ``<cache_dir>/<md5>/`` as plain ``.npy`` files with a ``meta.json`` that holds
their SHA-256. It is made once, appears all at once, and is checked by hash whenever it is opened; one that is
damaged is made again.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from assay.data.images import decode_image, probe_image
from assay.data.ragged import RaggedArray
from assay.data.shards import Batch, ShardInfo, inspect_shards, read_batches
from assay.data.sources import content_hash
from assay.data.validation import SPLIT_NAMES
from assay.errors import DataError, StorageError
from assay.progress import announce
from assay.records import IMAGE, SERIES, TABLE, TEXT, DataRef

_FORMAT = 1
_CONTENTS = {
    IMAGE: ("images",),
    TEXT: ("values", "offsets"),
    SERIES: ("values", "offsets"),
    TABLE: ("inputs",),
}
"""Kind of data -> arrays that hold what its examples hold."""
_COLUMNS = ("labels", "given_split", "groups", "content_hash")
_SPLIT_CODES = {None: -1, "train": 0, "val": 1, "valid": 1, "validation": 1, "test": 2}


@dataclass(frozen=True)
class Dataset:
    """Decoded examples, row by row; the arrays are read-only and memory-mapped.

    Attributes:
        ref: The pinned data they were decoded from.
        inputs: What the examples hold. Images: uint8 ``[example, height, width, channel]``, C-contiguous. Tables:
            float32 ``[example, column]``, NaN where a value is missing. Texts: rows of uint8 ``[byte]``, UTF-8.
            Series: rows of float32 ``[step, channel]``.
        labels: int64 ``[example]``.
        given_split: int8 ``[example]``: -1 none given, 0 train, 1 val, 2 test.
        groups: int64 ``[example]``: group number, -1 where there is none.
        content_hash: bytes (``S16``) ``[example]``, equal for exact duplicates.
    """

    ref: DataRef
    inputs: np.ndarray | RaggedArray
    labels: np.ndarray
    given_split: np.ndarray
    groups: np.ndarray
    content_hash: np.ndarray

    @property
    def images(self) -> np.ndarray:
        """The images, uint8 ``[example, height, width, channel]``; of image data only."""
        return self._array(IMAGE)

    @property
    def table(self) -> np.ndarray:
        """The table, float32 ``[example, column]``; of tables only."""
        return self._array(TABLE)

    @property
    def series(self) -> RaggedArray:
        """The series, rows of float32 ``[step, channel]``; of series only."""
        return self._ragged(SERIES)

    def texts(self, rows: np.ndarray) -> list[str]:
        """Return the texts of some examples; of text data only.

        Args:
            rows: Row numbers, int64 ``[row]``.
        """
        texts = self._ragged(TEXT)
        return [texts.row(int(row)).tobytes().decode() for row in rows]

    def _array(self, kind: str) -> np.ndarray:
        assert self.ref.kind == kind and isinstance(self.inputs, np.ndarray)
        return self.inputs

    def _ragged(self, kind: str) -> RaggedArray:
        assert self.ref.kind == kind and isinstance(self.inputs, RaggedArray)
        return self.inputs


def load_dataset(ref: DataRef, cache_dir: Path) -> Dataset:
    """Open the decoded examples of pinned data, decoding them first if that was not done yet.

    Args:
        ref: Verified data.
        cache_dir: Folder of caches; this one goes into ``<md5 without .dir>/``.

    Returns:
        Arrays over all examples in the shards' order.

    Raises:
        DataError: A shard or an example in it cannot be read.
        StorageError: The cache cannot be written.
    """
    folder = cache_dir / ref.md5.removesuffix(".dir")
    if not _is_sound(folder, ref):
        _build_cache(ref, folder)
    names = (*_CONTENTS[ref.kind], *_COLUMNS)
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names}
    contents = [arrays.pop(name) for name in _CONTENTS[ref.kind]]
    inputs = RaggedArray(*contents) if len(contents) > 1 else contents[0]
    return Dataset(ref=ref, inputs=inputs, **arrays)


def _is_sound(folder: Path, ref: DataRef) -> bool:
    """Whether a cache is there, is of this data, and has the very bytes that were written."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        return (
            {**meta, "files": {}} == _facts(ref)
            and set(meta["files"]) == {f"{name}.npy" for name in (*_CONTENTS[ref.kind], *_COLUMNS)}
            and all(_sha256(folder / name) == sha256 for name, sha256 in meta["files"].items())
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _facts(ref: DataRef) -> dict[str, Any]:
    """What a cache has to be of, apart from its files' hashes."""
    return {
        "format": _FORMAT,
        "data_md5": ref.md5,
        "num_examples": ref.num_examples,
        f"{ref.kind}_shape": list(ref.shape),
        "class_names": list(ref.class_names),
        "files": {},
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _build_cache(ref: DataRef, folder: Path) -> None:
    """Decode into a folder beside, then move it into place; of two processes one wins, both can read."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise _not_stored(folder, error) from error
    try:
        write_arrays(Path(ref.path), draft, ref)
        _move_into_place(draft, folder, ref)
    except OSError as error:
        raise _not_stored(folder, error) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _not_stored(folder: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{folder}: cannot write the decoded examples ({error.strerror or error}). Free disk space or make the "
        "folder writable, or set ASSAY_HOME to another place."
    )


def _move_into_place(draft: Path, folder: Path, ref: DataRef) -> None:
    try:
        draft.rename(folder)
    except OSError:
        if _is_sound(folder, ref):
            return
        damaged = Path(tempfile.mkdtemp(prefix=f"{folder.name}.damaged.", dir=folder.parent))
        with contextlib.suppress(FileNotFoundError):
            folder.rename(damaged / folder.name)
        shutil.rmtree(damaged, ignore_errors=True)
        draft.rename(folder)


def write_arrays(shard_dir: Path, folder: Path, ref: DataRef) -> None:
    """Decode all shards into ``.npy`` files and their ``meta.json``, in one stream.

    Args:
        shard_dir: Folder of shards.
        folder: An empty folder.
        ref: What the shards are to hold.

    Raises:
        DataError: An example cannot be decoded, or there are more or fewer than pinned.
        OSError: The folder cannot be written.
    """
    info = inspect_shards(shard_dir)
    _check_against(info, shard_dir, ref)
    layouts: dict[str, tuple[tuple[int, ...], str]] = {
        "images": (ref.shape, "|u1"),
        "inputs": (ref.shape, "<f4"),
        "values": ((), "|u1") if ref.kind == TEXT else (ref.shape[1:], "<f4"),
        "offsets": ((), "<i8"),
        "labels": ((), "<i8"),
        "given_split": ((), "|i1"),
        "groups": ((), "<i8"),
        "content_hash": ((), "|S16"),
    }
    names = (*_CONTENTS[ref.kind], *_COLUMNS)
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(_ArrayFile(folder / f"{name}.npy", *layouts[name])) for name in names}
        num_done, offset = 0, 0
        if "offsets" in files:
            files["offsets"].append(np.zeros(1, np.int64))
        for arrays in decode_shards(info, ref.shape):
            num_done += len(arrays["labels"])
            announce("decode", "decoding examples into the cache", done=num_done, total=ref.num_examples)
            if "lengths" in arrays:
                arrays["offsets"] = offset + np.cumsum(arrays.pop("lengths"), dtype=np.int64)
                offset = int(arrays["offsets"][-1])
            for name, array in arrays.items():
                files[name].append(array)
    meta = {**_facts(ref), "files": {f"{name}.npy": _sha256(folder / f"{name}.npy") for name in names}}
    (folder / "meta.json").write_text(json.dumps(meta, indent=1))


def _check_against(info: ShardInfo, shard_dir: Path, ref: DataRef) -> None:
    """The facts in a pin are about these shards."""
    found, pinned = (info.num_examples, info.class_names), (ref.num_examples, ref.class_names)
    if info.kind != ref.kind or (info.columns and info.columns != ref.columns):
        raise DataError(
            f"{shard_dir}: holds {info.kind} data, the pin says {ref.kind}, or the columns are others. Pin what is "
            "there with: assay data add."
        )
    if info.num_examples != ref.num_examples or (info.class_names and info.class_names != ref.class_names):
        raise DataError(
            f"{shard_dir}: holds {found[0]} examples of the classes {', '.join(found[1])}, the pin says {pinned[0]} of "
            f"{', '.join(pinned[1])}. Pin what is there with: assay data add."
        )


class _ArrayFile:
    """A ``.npy`` file that grows row by row; how many there are is written at the end.

    Args:
        path: The file.
        shape: Of one row.
        dtype: Of its values.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: str) -> None:
        self._path, self._shape, self._dtype = path, shape, np.dtype(dtype)
        self._num_rows = 0

    def __enter__(self) -> "_ArrayFile":
        self._file = self._path.open("w+b")
        self._write_header()
        return self

    def __exit__(self, *_: object) -> None:
        self._file.seek(0)
        self._write_header()
        self._file.close()

    def _write_header(self) -> None:
        """Write the header; NumPy leaves room in it for the first axis to grow."""
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self._num_rows, *self._shape)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, array: np.ndarray) -> None:
        """Add rows, ``[row, ...]``."""
        self._num_rows += len(array)
        if array.size:
            self._file.write(np.ascontiguousarray(array, self._dtype).data.cast("B"))


def probe_shards(info: ShardInfo) -> tuple[int, ...]:
    """Find the shape of one example, as in `DataRef`: images are to have the first one's size, and be grey if all are.

    Raises:
        DataError: An image's header cannot be read.
    """
    if info.kind == TABLE:
        return (len(info.columns),)
    if info.kind == TEXT:
        return (max(len(text.encode()) for batch in read_batches(info) for text in batch.contents),)
    if info.kind == SERIES:
        shapes = [series.shape for batch in read_batches(info) for series in batch.contents]
        return (max(shape[0] for shape in shapes), shapes[0][1])
    size: tuple[int, int] | None = None
    is_grey = True
    for batch in read_batches(info):
        for data, name in zip(batch.contents, batch.names, strict=True):
            probe = probe_image(io.BytesIO(data), name)
            size = size or (probe.height, probe.width)
            is_grey = is_grey and probe.is_grey
    return (*(size or (0, 0)), 1 if is_grey else 3)


def decode_shards(info: ShardInfo, shape: tuple[int, ...]) -> Iterator[dict[str, np.ndarray]]:
    """Decode shards batch by batch.

    Args:
        info: The shards.
        shape: Of one example, as in `DataRef`.

    Yields:
        Arrays of some hundred examples: ``labels``, ``given_split``, ``groups`` and ``content_hash`` as in `Dataset`,
        and ``images``, ``inputs`` (of a table), or ``values`` and ``lengths`` (int64 ``[example]``).

    Raises:
        DataError: An example cannot be decoded, has another size, or holds a value that is not finite.
    """
    group_numbers: dict[str, int] = {}
    num_threads = min(8, len(os.sched_getaffinity(0)))
    with ThreadPoolExecutor(num_threads) as pool:
        for batch in read_batches(info):
            hashes = np.empty(len(batch.labels), "S16")
            if info.kind == IMAGE:
                images = np.empty((len(batch.labels), *shape), np.uint8)
                starts = range(0, len(batch.labels), 32)
                list(pool.map(lambda start, b=batch, i=images, h=hashes: _decode_some(b, i, h, start), starts))
                contents = {"images": images}
            else:
                contents = _contents(info.kind, batch, shape)
                hashes[:] = [content_hash(content) for content in batch.contents]
            yield {
                **contents,
                "labels": np.array(batch.labels, np.int64),
                "given_split": np.array([_split_code(*item) for item in zip(batch.names, batch.splits, strict=True)]),
                "groups": np.array(
                    [
                        -1 if name is None else group_numbers.setdefault(name, len(group_numbers))
                        for name in batch.groups
                    ]
                ),
                "content_hash": hashes,
            }


def _contents(kind: str, batch: Batch, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """What a batch of texts, series or table rows holds."""
    if kind == TEXT:
        encoded = [np.frombuffer(text.encode(), np.uint8) for text in batch.contents]
        return {"values": np.concatenate(encoded), "lengths": np.array([len(text) for text in encoded])}
    for name, content in zip(batch.names, batch.contents, strict=True):
        if content.shape[-1] != shape[-1]:
            raise DataError(f"{name}: has {content.shape[-1]} channels, not {shape[-1]}. Give every series the same.")
        if not np.isfinite(content if kind == SERIES else content[~np.isnan(content)]).all():
            raise DataError(f"{name}: holds a value that is NaN or infinite. Mend or remove it.")
    if kind == SERIES:
        return {"values": np.concatenate(batch.contents), "lengths": np.array([len(one) for one in batch.contents])}
    return {"inputs": np.stack(batch.contents)}


def _decode_some(batch: Batch, images: np.ndarray, hashes: np.ndarray, start: int) -> None:
    """Decode 32 rows from `start` into their places."""
    shape = images.shape[1:]
    for row in range(start, min(start + 32, len(images))):
        images[row] = decode_image(batch.contents[row], (shape[0], shape[1], shape[2]), batch.names[row])
        hashes[row] = content_hash(images[row])


def _split_code(name: str, split: str | None) -> int:
    if split not in _SPLIT_CODES:
        known = ", ".join(SPLIT_NAMES)
        raise DataError(f"{name}: its split is {split!r}, not one of {known}. Correct it, or leave it empty.")
    return _SPLIT_CODES[split]
