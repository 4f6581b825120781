"""Splits are data: made once from (data, seed, fractions), frozen in a file, the same on every machine.

Examples that belong together (a group, or exact copies of each other) form a unit, and a unit never crosses a
split. Units are put in order by hash, not by a library's random numbers, so no version of anything changes them.
"""

import hashlib
import io
import os
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from assay.data.loading import Dataset
from assay.data.validation import SPLIT_NAMES
from assay.errors import DataError, ParamsError, StorageError
from assay.params import SplitParams
from assay.records import Splits

_TRAIN, _VAL, _TEST = range(3)
_DROPPED = -2


@dataclass(frozen=True)
class SplitIndices:
    """Row numbers of each split, sorted.

    Attributes:
        train: int64 ``[train example]``.
        val: int64 ``[val example]``.
        test: int64 ``[test example]``.
    """

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


def make_splits(dataset: Dataset, params: SplitParams, out_dir: Path) -> Splits:
    """Divide a data set and freeze the division in a file.

    A given test or val split is kept as it is; its copies elsewhere are dropped. What is not given is carved out of
    the rest, class by class: `params.val_fraction` and `params.test_fraction` are shares of what there is to carve.

    Args:
        dataset: The decoded examples.
        params: Fractions and seed.
        out_dir: Folder for the file.

    Returns:
        Where the file is, its digest and the sizes.

    Raises:
        ParamsError: The fractions leave nothing to train on.
        DataError: A class cannot be in every split that is carved out.
        StorageError: The file cannot be written.
    """
    units = find_units(dataset.content_hash, dataset.groups)
    order = unit_order(units, f"{dataset.ref.md5}/{params.seed}")
    split = divide(np.asarray(dataset.labels), dataset.given_split, units, order, params)
    _check_classes(split, dataset)
    return _freeze(split, dataset, out_dir)


def resample_val(dataset: Dataset, splits: Splits, params: SplitParams, seed: int, out_dir: Path) -> Splits:
    """Divide train and val anew, in the same proportion; test, and what was left out, stays as it is.

    Args:
        dataset: The decoded examples.
        splits: The division whose test is kept.
        params: What that division was made with.
        seed: Number of the new division.
        out_dir: Folder for the file.

    Returns:
        Where the file is, its digest and the sizes.

    Raises:
        DataError: A class cannot be in both train and val.
        StorageError: The file cannot be written.
    """
    before = load_split(splits)
    rows = np.sort(np.concatenate([before.train, before.val]))
    units = find_units(dataset.content_hash, dataset.groups)
    order = unit_order(units, f"{dataset.ref.md5}/{params.seed}/val/{seed}")
    split = np.full(len(dataset.labels), _DROPPED, np.int8)
    split[before.test] = _TEST
    labels = np.asarray(dataset.labels)
    split[rows] = _carve(labels[rows], units[rows], order[rows], {_VAL: len(before.val) / len(rows)})
    _check_classes(split, dataset)
    return _freeze(split, dataset, out_dir)


def _freeze(split: np.ndarray, dataset: Dataset, out_dir: Path) -> Splits:
    """Write a division down."""
    indices = SplitIndices(*(np.flatnonzero(split == code) for code in (_TRAIN, _VAL, _TEST)))
    digest = split_digest(indices)
    path = out_dir / f"splits-{digest[:12]}.npz"
    rows = np.concatenate([indices.train, indices.val])
    _write(path, indices, np.unique(np.asarray(dataset.content_hash)[rows]))
    return Splits(
        path=str(path),
        digest=digest,
        data_md5=dataset.ref.md5,
        num_train=len(indices.train),
        num_val=len(indices.val),
        num_test=len(indices.test),
        num_dropped=int((split == _DROPPED).sum()),
    )


def load_split(splits: Splits) -> SplitIndices:
    """Read a frozen division.

    Raises:
        DataError: The file is missing, damaged, or not the one that was frozen.
    """
    advice = "Remove it and run again: it is made anew, the same."
    try:
        with np.load(io.BytesIO(Path(splits.path).read_bytes()), allow_pickle=False) as arrays:
            indices = SplitIndices(*(arrays[name] for name in SPLIT_NAMES))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{splits.path}: cannot be read as a split ({error}). {advice}") from error
    if (found := split_digest(indices)) != splits.digest:
        raise DataError(f"{splits.path}: has digest {found}, frozen was {splits.digest}. {advice}")
    return indices


def load_seen(path: Path) -> np.ndarray:
    """Read the contents that training and its choices saw, whatever data they are compared with later.

    Args:
        path: A file that a division was frozen in.

    Returns:
        Content hashes of train and val, bytes (``S16``) ``[content]``, sorted; as in `Dataset.content_hash`.

    Raises:
        DataError: The file cannot be read, or is of a version that did not keep them.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            return np.asarray(arrays["seen"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: does not say which examples were trained on ({error}).") from error


def split_digest(indices: SplitIndices) -> str:
    """SHA-256 (hex) over the three index arrays."""
    digest = hashlib.sha256()
    for name in SPLIT_NAMES:
        rows = np.ascontiguousarray(getattr(indices, name), "<i8")
        digest.update(f"{name} {len(rows)}\n".encode())
        digest.update(rows.tobytes())
    return digest.hexdigest()


def find_units(content_hash: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Find what must stay together: copies, members of a group, and whatever these two chain together.

    Args:
        content_hash: bytes ``[example]``.
        groups: int64 ``[example]``, -1 where there is no group.

    Returns:
        int64 ``[example]``: the smallest row number of each example's unit.
    """
    num_examples = len(groups)
    rows = np.arange(num_examples)
    alone = np.where(groups < 0, rows + groups.max(initial=0) + 1, groups)
    keys = [np.unique(values, return_inverse=True)[1] for values in (content_hash, alone)]
    units = rows
    while True:
        before = units
        for key in keys:
            smallest = np.full(num_examples, num_examples)
            np.minimum.at(smallest, key, units)
            units = smallest[key]
        if np.array_equal(units, before):
            return units


def unit_order(units: np.ndarray, salt: str) -> np.ndarray:
    """Give each unit its place in a random order that depends on `salt` only.

    Args:
        units: int64 ``[example]``, from `find_units`.
        salt: What the order depends on.

    Returns:
        uint64 ``[example]``: sort by it; equal within a unit.
    """
    names, inverse = np.unique(units, return_inverse=True)
    digests = b"".join(hashlib.blake2b(f"{salt}/{name}".encode(), digest_size=8).digest() for name in names.tolist())
    return np.frombuffer(digests, "<u8")[inverse]


def divide(
    labels: np.ndarray, given_split: np.ndarray, units: np.ndarray, order: np.ndarray, params: SplitParams
) -> np.ndarray:
    """Assign each example to a split.

    Args:
        labels: int64 ``[example]``.
        given_split: int8 ``[example]``: -1 none, 0 train, 1 val, 2 test.
        units: int64 ``[example]``, from `find_units`.
        order: uint64 ``[example]``, from `unit_order`.
        params: Fractions.

    Returns:
        int8 ``[example]``: 0 train, 1 val, 2 test, -2 dropped.

    Raises:
        ParamsError: The fractions leave nothing to train on.
    """
    split = np.where(given_split > 0, given_split, _TRAIN).astype(np.int8)
    for code, gives_way in ((_TEST, split != _TEST), (_VAL, split == _TRAIN)):
        split[np.isin(units, units[split == code]) & gives_way] = _DROPPED
    fractions = _carved_fractions(given_split, params)
    pool = np.flatnonzero(split == _TRAIN)
    if fractions and len(pool):
        split[pool] = _carve(labels[pool], units[pool], order[pool], fractions)
    return split


def _carved_fractions(given_split: np.ndarray, params: SplitParams) -> dict[int, float]:
    """Share of each split that the data does not bring."""
    wanted = {_TEST: params.test_fraction, _VAL: params.val_fraction}
    fractions = {code: share for code, share in wanted.items() if not (given_split == code).any()}
    if sum(fractions.values()) >= 1:
        raise ParamsError(
            f"split.val_fraction={params.val_fraction} and split.test_fraction={params.test_fraction}: leave nothing "
            "to train on. Lower one."
        )
    return fractions


def _carve(labels: np.ndarray, units: np.ndarray, order: np.ndarray, fractions: dict[int, float]) -> np.ndarray:
    """Carve splits out of a pool: units of several examples first, then single ones fill up each class."""
    counts = np.bincount(labels)
    quota = np.array([_quota(int(count), fractions) for count in counts])  # [class, split]
    split = np.full(len(labels), _TRAIN, np.int8)
    remaining = quota.astype(np.float64)
    is_single = np.ones(len(labels), bool)
    for rows in _larger_units(units, order):
        members = np.bincount(labels[rows], minlength=len(counts))
        split[rows] = code = _neediest(members, remaining, quota)
        remaining[:, code] -= members
        is_single[rows] = False
    for label in range(len(counts)):
        rows = np.flatnonzero(is_single & (labels == label))
        rows = rows[np.argsort(order[rows], kind="stable")]
        num_test, num_val = (max(0, int(remaining[label, code])) for code in (_TEST, _VAL))
        split[rows[:num_test]] = _TEST
        split[rows[num_test : num_test + num_val]] = _VAL
    return split


def _larger_units(units: np.ndarray, order: np.ndarray) -> Iterator[np.ndarray]:
    """Rows of each unit of more than one example: the largest first, by `order` among those of about a size.

    By exact size, units of different sizes would be divided the same way whatever the seed.
    """
    by_unit = np.argsort(units, kind="stable")
    _, starts, sizes = np.unique(units[by_unit], return_index=True, return_counts=True)
    ranked = np.lexsort((order[by_unit[starts]], -np.floor(np.log2(sizes))))
    for unit in ranked[sizes[ranked] > 1]:
        yield by_unit[starts[unit] : starts[unit] + sizes[unit]]


def _quota(count: int, fractions: dict[int, float]) -> list[int]:
    """Examples of one class for train, val and test: the fractions, but at least one each if there are enough."""
    quota = [0, 0, 0]
    for code, fraction in fractions.items():
        quota[code] = max(1, int(count * fraction + 0.5))
    while sum(quota) > max(0, count - 1):
        quota[max(fractions, key=lambda code: quota[code])] -= 1
    quota[_TRAIN] = count - sum(quota)
    return quota


def _neediest(members: np.ndarray, remaining: np.ndarray, quota: np.ndarray) -> int:
    """The split that lacks the largest share of what this unit would bring; train, test, val on a tie."""
    share = np.divide(remaining, quota, out=np.full(quota.shape, -np.inf), where=quota > 0)
    present = members > 0
    scores = members[present] @ share[present]
    return max((_TRAIN, _TEST, _VAL), key=lambda code: scores[code])


def _check_classes(split: np.ndarray, dataset: Dataset) -> None:
    """Train, and each split that was carved out, has every class."""
    num_classes = len(dataset.ref.class_names)
    present = np.bincount(dataset.labels, minlength=num_classes) > 0
    for code, name in enumerate(SPLIT_NAMES):
        if code != _TRAIN and (dataset.given_split == code).any():
            continue
        counts = np.bincount(dataset.labels[split == code], minlength=num_classes)
        for label in np.flatnonzero(present & (counts == 0)):
            raise DataError(
                f"Class {dataset.ref.class_names[label]!r} gets no example in {name}: its examples are too few, or "
                "too many of them belong together (one group, or copies of each other). Add examples or remove the "
                "class."
            )


def _write(path: Path, indices: SplitIndices, seen: np.ndarray) -> None:
    """Write the arrays all at once; NumPy stamps no time into the file, so equal splits are equal bytes."""
    buffer = io.BytesIO()
    np.savez(buffer, train=indices.train, val=indices.val, test=indices.test, seen=seen)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(prefix=path.name, dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(buffer.getvalue())
        os.replace(draft, path)
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error.strerror}). Free disk space or make the folder writable."
        ) from error
