"""Examples made by hand."""

import os
from pathlib import Path

import numpy as np
import pytest

from assay.data.loading import Dataset
from assay.data.sources import content_hash
from assay.records import DataRef


def pictures(rng: np.random.Generator, count: int, shape: tuple[int, ...] = (6, 5, 3)) -> np.ndarray:
    return rng.integers(0, 256, (count, *shape), np.uint8)


def make_dataset(
    labels: list[int] | np.ndarray,
    images: np.ndarray | None = None,
    given_split: list[int] | np.ndarray | None = None,
    groups: list[int] | np.ndarray | None = None,
    copies_of: list[int] | np.ndarray | None = None,
) -> Dataset:
    """A data set in memory; `copies_of` names, for each example, the one whose pixels it has."""
    labels = np.asarray(labels, np.int64)
    count = len(labels)
    if images is None:
        images = np.random.default_rng(1).integers(0, 256, (count, 4, 4, 1), np.uint8)
    if copies_of is not None:
        images = images[np.asarray(copies_of)]
    names = tuple(f"class {number}" for number in range(int(labels.max(initial=0)) + 1))
    return Dataset(
        ref=DataRef("data", "0" * 32 + ".dir", "made", count, names, images.shape[1:]),
        inputs=images,
        labels=labels,
        given_split=np.asarray([-1] * count if given_split is None else given_split, np.int8),
        groups=np.asarray([-1] * count if groups is None else groups, np.int64),
        content_hash=np.array([content_hash(image) for image in images], "S16"),
    )


def snapshot(root: Path) -> dict[str, bytes]:
    """Every file of a project that people or git see, with its bytes."""
    hidden = (".assay", ".dvc")
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.relative_to(root).parts[0] not in hidden
    }


def cifar10_tar() -> Path:
    root = Path(__file__).parents[2]
    path = Path(os.environ.get("ASSAY_CIFAR10_TAR") or root.parent / "shared" / "data" / "cifar10-jpeg.tar.xz")
    if not path.is_file():
        pytest.skip(f"no CIFAR-10 archive at {path}; name it with ASSAY_CIFAR10_TAR")
    return path
