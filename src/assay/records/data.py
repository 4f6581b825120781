"""Pinned data, what validation saw of it, and how it is divided."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from assay.records.base import Record

IMAGE, TEXT, SERIES, TABLE = "image", "text", "series", "table"
"""Kinds of data."""

KINDS = (IMAGE, TEXT, SERIES, TABLE)


@dataclass(frozen=True)
class DataRef(Record):
    """Pinned data on disk.

    Attributes:
        path: Folder of Parquet shards.
        md5: DVC's hash of the folder (ends in ``.dir``).
        source: What the data was imported from, e.g. ``mnist5k`` or ``image-folder``.
        num_examples: Number of examples.
        class_names: Class names; an example's label is an index into them.
        shape: Of one example. An image: height, width, channels. A series: steps of the longest, channels. A text:
            bytes of the longest in UTF-8. A row of a table: columns.
        kind: One of `KINDS`.
        columns: Names of a table's columns or of a series' channels; empty where they have none.
    """

    path: str
    md5: str
    source: str
    num_examples: int
    class_names: tuple[str, ...]
    shape: tuple[int, ...]
    kind: str = IMAGE
    columns: tuple[str, ...] = ()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width, channels of every image."""
        height, width, channels = self.shape
        return height, width, channels

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild a record; one of the time when all data were images is understood, too."""
        return super().from_json(with_shape(values))


def with_shape(values: Mapping[str, Any]) -> dict[str, Any]:
    """Give what was written when all data were images the names of today."""
    return {{"image_shape": "shape"}.get(name, name): value for name, value in values.items()}


@dataclass(frozen=True)
class DataReport(Record):
    """What validation saw.

    Attributes:
        num_examples: Number of examples.
        class_counts: Examples of each class, by class name.
        num_duplicates: Examples whose decoded content equals that of an earlier example.
        num_conflicting: Duplicates that carry a different label from the earlier example.
        warnings: Sentences for people; empty if nothing is odd.
    """

    num_examples: int
    class_counts: dict[str, int]
    num_duplicates: int
    num_conflicting: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Splits(Record):
    """A frozen division into train, val and test.

    Attributes:
        path: An ``.npz`` file with int64 arrays ``train``, ``val`` and ``test`` of row numbers.
        digest: SHA-256 (hex) over the three index arrays.
        data_md5: Hash of the data that was divided.
        num_train: Examples in train.
        num_val: Examples in val.
        num_test: Examples in test.
        num_dropped: Examples left out because a copy of them sits in another given split.
    """

    path: str
    digest: str
    data_md5: str
    num_train: int
    num_val: int
    num_test: int
    num_dropped: int = 0

    def describe(self) -> str:
        """Return the sizes in a few words."""
        dropped = f", {self.num_dropped:,} copies across given splits left out" if self.num_dropped else ""
        return f"{self.num_train:,} train, {self.num_val:,} val, {self.num_test:,} test{dropped}"
