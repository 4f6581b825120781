"""Pinned data, what validation saw of it, and how it is divided."""

from dataclasses import dataclass

from assay.records.base import Record


@dataclass(frozen=True)
class DataRef(Record):
    """Pinned data on disk.

    Attributes:
        path: Folder of Parquet shards.
        md5: DVC's hash of the folder (ends in ``.dir``).
        source: What the data was imported from, e.g. ``mnist5k`` or ``image-folder``.
        num_examples: Number of examples.
        class_names: Class names; an example's label is an index into them.
        image_shape: Height, width, channels of every image.
    """

    path: str
    md5: str
    source: str
    num_examples: int
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]


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
