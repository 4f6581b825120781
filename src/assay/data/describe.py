"""What the data looks like: numbers, and a picture of every class."""

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from assay.data.drawing import snippet
from assay.data.loading import Dataset
from assay.data.measuring import column_names, column_numbers
from assay.data.near_duplicates import NearDuplicates, find_near_duplicates
from assay.data.sheets import draw_data
from assay.data.validation import SPLIT_NAMES, count_overlap, validate
from assay.errors import StorageError
from assay.records import IMAGE, SERIES, TABLE, TEXT, DataRef, DataReport, Record

_COLOURS = ("red", "green", "blue")
_NUM_EXAMPLES = 3
_SNIPPET_LETTERS = 160
_BLOCK = 4096


@dataclass(frozen=True)
class DataDescription(Record):
    """Numbers about a data set.

    Attributes:
        data: The pinned data.
        report: Counts of classes and duplicates.
        given_split_counts: Examples of each split that the data brings, and of ``none``.
        num_groups: Groups that must not be divided.
        num_test_copies: Examples of a given test split that are in train or val, too.
        numbers: What was measured -> name of a number -> the number. Images: mean and sd of each channel, 0..255.
            Texts: how characters and words of a text are distributed, and the vocabulary. Series: the same of steps,
            and mean, sd, minimum and maximum of each channel. Tables: the same and the missing share of each column.
        figure: PNG with a picture of each class.
        examples: Class name -> the beginnings of a few of its texts; empty for other kinds of data.
        near_duplicates: Texts or images that nearly repeat an earlier one; None for other kinds of data.
    """

    data: DataRef
    report: DataReport
    given_split_counts: dict[str, int]
    num_groups: int
    num_test_copies: int
    numbers: dict[str, dict[str, float]]
    figure: str
    examples: dict[str, tuple[str, ...]] = field(default_factory=dict)
    near_duplicates: NearDuplicates | None = None


def describe(dataset: Dataset, out_dir: Path, title: str | None = None) -> DataDescription:
    """Count, measure and draw.

    Args:
        dataset: The decoded examples.
        out_dir: Folder for the figure.
        title: Heading of the figure; the source's name by default.

    Raises:
        DataError: The data does not pass validation.
        StorageError: The figure cannot be written.
    """
    report = validate(dataset)
    codes, counts = np.unique(dataset.given_split, return_counts=True)
    names = ["none" if code < 0 else SPLIT_NAMES[code] for code in codes.tolist()]
    path = out_dir / f"data-{dataset.ref.md5[:8]}.png"
    drawn = draw_data(dataset, title or dataset.ref.source)
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        if isinstance(drawn, bytes):
            path.write_bytes(drawn)
        else:
            drawn.save(path)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror}). Make the folder writable.") from error
    measures = {IMAGE: _image_numbers, TEXT: _text_numbers, SERIES: _series_numbers, TABLE: _table_numbers}
    return DataDescription(
        data=dataset.ref,
        report=report,
        given_split_counts={name: int(count) for name, count in zip(names, counts, strict=True)},
        num_groups=len(np.unique(dataset.groups[dataset.groups >= 0])),
        num_test_copies=count_overlap(dataset.content_hash, dataset.given_split),
        numbers=measures[dataset.ref.kind](dataset),
        figure=str(path),
        examples=_examples(dataset) if dataset.ref.kind == TEXT else {},
        near_duplicates=find_near_duplicates(dataset),
    )


def _image_numbers(dataset: Dataset) -> dict[str, dict[str, float]]:
    mean, std = pixel_statistics(dataset.images)
    names = _COLOURS if len(mean) == len(_COLOURS) else ("grey",) if len(mean) == 1 else column_names(dataset.ref)
    return {name: {"mean": one, "sd": other} for name, one, other in zip(names, mean, std, strict=True)}


def _text_numbers(dataset: Dataset) -> dict[str, dict[str, float]]:
    characters, words, vocabulary = [], [], Counter[str]()
    for text in itertools.chain.from_iterable(_text_blocks(dataset)):
        own = text.lower().split()
        characters.append(len(text))
        words.append(len(own))
        vocabulary.update(own)
    once = sum(count == 1 for count in vocabulary.values())
    return {
        "characters": _spread_of(np.array(characters)),
        "words": _spread_of(np.array(words)),
        "vocabulary": {"words": len(vocabulary), "used once": once},
    }


def _text_blocks(dataset: Dataset) -> Iterator[list[str]]:
    rows = np.arange(len(dataset.labels))
    for start in range(0, len(rows), _BLOCK):
        yield dataset.texts(rows[start : start + _BLOCK])


def _spread_of(values: np.ndarray) -> dict[str, float]:
    """How numbers are distributed: from the least to the largest, and the mean."""
    cuts = np.quantile(values, (0.0, 0.05, 0.5, 0.95, 1.0)).tolist()
    named = dict(zip(("minimum", "5th percentile", "median", "95th percentile", "maximum"), cuts, strict=True))
    return {"mean": float(values.mean()), **named}


def _series_numbers(dataset: Dataset) -> dict[str, dict[str, float]]:
    steps = dataset.series.lengths(np.arange(len(dataset.labels)))
    return {"steps": _spread_of(steps), **_of_columns(dataset, dataset.series.values, without=("missing",))}


def _table_numbers(dataset: Dataset) -> dict[str, dict[str, float]]:
    return _of_columns(dataset, dataset.table)


def _of_columns(dataset: Dataset, values: np.ndarray, without: tuple[str, ...] = ()) -> dict[str, dict[str, float]]:
    """Numbers of each column; those that a column without any value does not have are left out."""
    found = column_numbers(values)
    return {
        name: {
            what: float(numbers[column])
            for what, numbers in found.items()
            if what not in without and np.isfinite(numbers[column])
        }
        for column, name in enumerate(column_names(dataset.ref))
    }


def _examples(dataset: Dataset) -> dict[str, tuple[str, ...]]:
    """The beginnings of a few texts of each class, spread evenly over it."""
    found = {}
    for label, name in enumerate(dataset.ref.class_names):
        members = np.flatnonzero(np.asarray(dataset.labels) == label)
        places = np.linspace(0, len(members) - 1, min(_NUM_EXAMPLES, len(members))).round().astype(int)
        found[name] = tuple(snippet(text, _SNIPPET_LETTERS) for text in dataset.texts(members[places]))
    return found


def pixel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, exact, a thousand images at a time.

    Args:
        images: uint8 ``[example, height, width, channel]``.

    Returns:
        Means and standard deviations, 0..255, one for each channel.
    """
    num_channels = images.shape[-1]
    counts = np.zeros((num_channels, 256), np.int64)
    for start in range(0, len(images), 1000):
        part = images[start : start + 1000]
        for channel in range(num_channels):
            counts[channel] += np.bincount(part[..., channel].ravel(), minlength=256)
    values = np.arange(256)
    total = counts.sum(axis=1)
    mean = counts @ values / total
    variance = (counts * (values - mean[:, None]) ** 2).sum(axis=1) / total
    return tuple(mean.tolist()), tuple(np.sqrt(variance).tolist())
