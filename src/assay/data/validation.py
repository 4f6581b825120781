"""What has to be true of examples before a run uses them."""

from typing import TYPE_CHECKING

import numpy as np

from assay.errors import DataError
from assay.records import IMAGE, SERIES, TABLE, TEXT, DataReport

if TYPE_CHECKING:
    from assay.data.loading import Dataset

SPLIT_NAMES = ("train", "val", "test")
"""Split of each code 0, 1, 2 in `given_split`; -1 is none given."""

EXACTLY = {IMAGE: "pixel for pixel", TEXT: "letter for letter", SERIES: "value for value", TABLE: "value for value"}
"""Kind of data -> how one example repeats another."""

_LARGE_IMBALANCE = 10


def validate(dataset: "Dataset") -> DataReport:
    """Check a data set.

    Args:
        dataset: The decoded examples.

    Returns:
        Counts, and sentences about what is odd.

    Raises:
        DataError: A label is out of range, there is only one class, or a class is too small to be divided.
    """
    return check_examples(
        dataset.labels,
        dataset.content_hash,
        dataset.given_split,
        dataset.groups,
        dataset.ref.class_names,
        dataset.ref.kind,
    )


def check_examples(
    labels: np.ndarray,
    content_hash: np.ndarray,
    given_split: np.ndarray,
    groups: np.ndarray,
    class_names: tuple[str, ...],
    kind: str = IMAGE,
) -> DataReport:
    """Check labels, classes and duplicates.

    Args:
        labels: int64 ``[example]``.
        content_hash: bytes ``[example]``, equal for equal contents.
        given_split: int8 ``[example]``, an index into `SPLIT_NAMES` or -1.
        groups: int64 ``[example]``, -1 where there is no group.
        class_names: Class names in label order.
        kind: Kind of data, one of `assay.records.KINDS`.

    Raises:
        DataError: As for `validate`.
    """
    _check_labels(labels, class_names)
    counts = np.bincount(labels, minlength=len(class_names))
    _check_class_sizes(counts, labels, given_split, class_names)
    num_duplicates, num_conflicting = count_duplicates(content_hash, labels)
    return DataReport(
        num_examples=len(labels),
        class_counts={name: int(count) for name, count in zip(class_names, counts, strict=True)},
        num_duplicates=num_duplicates,
        num_conflicting=num_conflicting,
        warnings=tuple(
            _warnings(counts, labels, class_names, num_duplicates, num_conflicting, content_hash, given_split, kind)
        ),
    )


def count_duplicates(content_hash: np.ndarray, labels: np.ndarray) -> tuple[int, int]:
    """Count examples that repeat an earlier one.

    Args:
        content_hash: bytes ``[example]``.
        labels: int64 ``[example]``.

    Returns:
        Number of examples equal to an earlier one, and how many of them carry another label than the first.
    """
    _, first, inverse = np.unique(content_hash, return_index=True, return_inverse=True)
    is_copy = first[inverse] != np.arange(len(content_hash))
    return int(is_copy.sum()), int((is_copy & (labels != labels[first[inverse]])).sum())


def count_overlap(content_hash: np.ndarray, given_split: np.ndarray) -> int:
    """Count examples of a given test split that sit in train or val, too.

    Args:
        content_hash: bytes ``[example]``.
        given_split: int8 ``[example]``.
    """
    is_test = given_split == SPLIT_NAMES.index("test")
    return int(np.isin(content_hash[is_test], content_hash[~is_test]).sum())


def _check_labels(labels: np.ndarray, class_names: tuple[str, ...]) -> None:
    if not len(labels):
        raise DataError("The data holds no examples. Import a source: assay data import mnist5k.")
    outside = np.flatnonzero((labels < 0) | (labels >= len(class_names)))
    if len(outside):
        raise DataError(
            f"Example {outside[0]} has label {labels[outside[0]]}, and there are {len(class_names)} classes "
            f"(labels 0..{len(class_names) - 1}); {len(outside)} such examples. Correct the labels."
        )


def _check_class_sizes(
    counts: np.ndarray, labels: np.ndarray, given_split: np.ndarray, class_names: tuple[str, ...]
) -> None:
    """Every class has an example for train and for each split that still has to be carved out."""
    present = np.flatnonzero(counts)
    if len(present) < 2:
        raise DataError(
            f"All {counts.sum()} examples are of one class, {class_names[present[0]]!r}. A classifier needs two."
        )
    carved = [name for code, name in enumerate(SPLIT_NAMES) if name != "train" and not (given_split == code).any()]
    pool = np.bincount(labels[given_split <= 0], minlength=len(counts))
    for label in np.flatnonzero(pool < 1 + len(carved)):
        wanted = " and ".join(["train", *carved])
        raise DataError(
            f"Class {class_names[label]!r} has {pool[label]} examples for {wanted}, which need at least one each. "
            "Add examples or remove the class."
        )


def _warnings(
    counts: np.ndarray,
    labels: np.ndarray,
    class_names: tuple[str, ...],
    num_duplicates: int,
    num_conflicting: int,
    content_hash: np.ndarray,
    given_split: np.ndarray,
    kind: str,
) -> list[str]:
    sentences = []
    if num_duplicates:
        sentences.append(f"{num_duplicates} examples repeat an earlier one {EXACTLY[kind]}; copies share a split.")
    if num_conflicting:
        sentences.append(f"{num_conflicting} of these copies carry another label than the first: one is wrong.")
    if overlap := count_overlap(content_hash, given_split):
        sentences.append(f"{overlap} test examples are in train or val, too; their copies there are left out.")
    in_test = np.bincount(labels[given_split == SPLIT_NAMES.index("test")], minlength=len(counts))
    if in_test.any() and not in_test[counts > 0].all():
        absent = class_names[int(np.flatnonzero((in_test == 0) & (counts > 0))[0])]
        sentences.append(f"The given test split has no example of class {absent!r}.")
    smallest, largest = int(counts.argmin()), int(counts.argmax())
    if counts[largest] > _LARGE_IMBALANCE * counts[smallest]:
        sentences.append(
            f"Classes are uneven: {class_names[largest]!r} has {counts[largest]} examples, "
            f"{class_names[smallest]!r} {counts[smallest]}."
        )
    return sentences
