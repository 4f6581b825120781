"""A summary of data that outlives the data: counts, and samples that later data can be compared with.

What is measured depends on the kind of data: `FEATURES` of images, `TEXT_FEATURES` of texts, the length of series and
mean, sd and step of each channel, the values of each column of a table.

A sample is drawn by content hash, not by random numbers: the same data gives the same sample on every machine, and
data that repeats some of the old data repeats it in the sample, too. Only what is sampled is measured, a few
examples at a time.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from assay.data.loading import Dataset
from assay.data.measuring import SERIES_NUMBERS, TEXT_FEATURES, column_names, measure_series, measure_texts
from assay.data.shards import ShardInfo, inspect_shards
from assay.data.validation import count_duplicates
from assay.errors import DataError, NonFiniteError
from assay.records import IMAGE, SERIES, TABLE
from assay.records.night import DataProfile

if TYPE_CHECKING:
    import pyarrow as pa

FEATURES = ("brightness", "contrast", "sharpness", "edge direction", "centre across", "centre down", "file bytes")
"""What is measured of an image, beside mean and sd of each colour channel: mean, standard deviation and mean absolute
difference of neighbours of its grey values (0..255), share of that difference that lies across rather than down
(0..1), where the centre of brightness lies (0..1), and the size of its file."""

MAX_VALUES = 2000
_PROFILE_BYTES = 180_000
_MIN_VALUES = 200
_VALUE_BYTES = 9
_NUMBER_BYTES = 13
_DIGITS = 5
MAX_CHANNELS, MAX_COLUMNS = 8, 32
_BLOCK_PIXELS = 2**20
_READ_ROWS = 1000
_COLOURS = ("red", "green", "blue")
_IN_SHARES = ("edge direction", "centre across", "centre down", *TEXT_FEATURES[3:])
_GOLDEN, _MIX = np.uint64(0x9E3779B97F4A7C15), (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


@dataclass(frozen=True)
class _Stored:
    """What the shards say beside contents: missing share of each column, and file sizes, int64 ``[example]``."""

    missing_shares: dict[str, float]
    file_bytes: np.ndarray | None


def summarise(
    dataset: Dataset,
    rows: np.ndarray,
    probabilities: np.ndarray | None = None,
    *,
    seen: np.ndarray | None = None,
    num_unreadable: int = 0,
) -> DataProfile:
    """Summarise some examples in less than 200 kB of JSON, however many they are (up to about 4,000 classes).

    A model is surer of what it was trained on than of anything else, so predictions count only where its content
    was not seen: otherwise every overfitted champion would look as if the data had drifted.

    Args:
        dataset: The decoded examples.
        rows: Row numbers, int64 ``[row]``.
        probabilities: The champion's, float64 ``[row, class]``, in the order of `rows` and of the data's class names.
        seen: Content hashes that the champion was trained and chosen on, ``S16 [content]``, as from
            `assay.data.splits.load_seen`; None if it has seen none of the rows.
        num_unreadable: Files that the import left out.

    Returns:
        Counts over all rows, and sorted samples of at most `MAX_VALUES` values.

    Raises:
        DataError: There are no rows, the probabilities are not of these rows and classes, or the shards are not those
            that were decoded.
        NonFiniteError: A probability is NaN or infinite.
    """
    if not len(rows):
        raise DataError("A summary of data needs examples, and none were chosen. Import a source: assay data import.")
    hashes, labels = np.asarray(dataset.content_hash[rows]), np.asarray(dataset.labels[rows])
    stored = _read_stored(find_shards(dataset), rows)
    num_values = _num_values(dataset)
    order = sample_order(hashes)
    features, blank = _measure(dataset, rows[order[:num_values]])
    if stored.file_bytes is not None:
        features["file bytes"] = stored.file_bytes[rows[order[:num_values]]]
    rounded = _rounded if dataset.ref.kind in (SERIES, TABLE) else _sorted
    num_duplicates, num_conflicting = count_duplicates(hashes, labels)
    predicted = np.ones(len(rows), bool) if seen is None else ~np.isin(hashes, seen)
    counts, top = _predictions(dataset, probabilities, predicted, order[predicted[order]][:num_values], len(rows))
    return DataProfile(
        data_md5=dataset.ref.md5,
        num_examples=len(rows),
        shape=dataset.ref.shape,
        class_counts=_count(labels, dataset.ref.class_names),
        num_duplicates=num_duplicates,
        num_conflicting=num_conflicting,
        num_unreadable=num_unreadable,
        blank_share=float(blank.mean()),
        missing_shares=stored.missing_shares,
        features={name: rounded(values, 4 if name in _IN_SHARES else 2) for name, values in features.items()},
        predicted_counts=counts,
        top_probabilities=top,
        num_predicted=sum(counts.values()),
        kind=dataset.ref.kind,
        columns=dataset.ref.columns,
    )


def _count(labels: np.ndarray, class_names: tuple[str, ...]) -> dict[str, int]:
    counts = np.bincount(labels, minlength=len(class_names))
    return {name: int(count) for name, count in zip(class_names, counts, strict=True)}


def _sorted(values: np.ndarray, decimals: int) -> tuple[float, ...]:
    return tuple(np.sort(np.round(values.astype(np.float64), decimals)).tolist())


def _rounded(values: np.ndarray, decimals: int) -> tuple[float, ...]:
    """Sort values of any size and round them to a few digits; what is missing is left out."""
    del decimals
    values = np.sort(values[~np.isnan(values)].astype(np.float64))
    return tuple(float(f"{value:.{_DIGITS}g}") for value in values.tolist())


def _measure(dataset: Dataset, rows: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Features of some examples, ``[row]`` each, and which of the examples hold nothing, bool ``[row]``."""
    match dataset.ref.kind:
        case "text":
            texts = dataset.texts(rows)
            return measure_texts(texts), np.array([not text.strip() for text in texts], bool)
        case "series":
            numbers = measure_series(dataset.series, rows)
            features = {"steps": dataset.series.lengths(rows).astype(np.float64)}
            for channel, name in enumerate(column_names(dataset.ref)[:MAX_CHANNELS]):
                for number in ("mean", "sd", "step"):
                    features[f"{name} {number}"] = numbers[:, channel, SERIES_NUMBERS.index(number)]
            low, high = (numbers[..., SERIES_NUMBERS.index(name)] for name in ("minimum", "maximum"))
            return features, np.asarray((low == high).all(axis=1))
        case "table":
            values = np.asarray(dataset.table[rows])
            columns = column_names(dataset.ref)[:MAX_COLUMNS]
            return dict(zip(columns, values.T, strict=False)), np.isnan(values).all(axis=1)
        case _:
            features = measure(dataset.images, rows)
            return features, features["contrast"] == 0


def _num_values(dataset: Dataset) -> int:
    """Values of a sample: so many that all samples and the counts of all classes stay below 200 kB."""
    shape = dataset.ref.shape
    num_samples, value_bytes = 1, _NUMBER_BYTES
    match dataset.ref.kind:
        case "text":
            num_samples, value_bytes = num_samples + len(TEXT_FEATURES), _VALUE_BYTES
        case "series":
            num_samples += 1 + 3 * min(shape[1], MAX_CHANNELS)
        case "table":
            num_samples += min(shape[0], MAX_COLUMNS)
        case _:
            num_samples, value_bytes = num_samples + len(FEATURES) + (2 * shape[2] if shape[2] > 1 else 0), _VALUE_BYTES
    class_bytes = sum(2 * len(name.encode("ascii", "backslashreplace")) + 26 for name in dataset.ref.class_names)
    # A column's name may be there three times: in the list, with its missing share and with its sample.
    column_bytes = sum(3 * len(name.encode("ascii", "backslashreplace")) + 36 for name in dataset.ref.columns)
    fitting = (_PROFILE_BYTES - class_bytes - column_bytes) // (num_samples * value_bytes)
    return max(_MIN_VALUES, min(MAX_VALUES, fitting))


def sample_order(content_hash: np.ndarray) -> np.ndarray:
    """Put examples into an order that looks random and depends on their contents only.

    The copies of one content get places of their own, so that a content that fills a tenth of the data fills about a
    tenth of every sample.

    Args:
        content_hash: bytes ``S16 [example]``.

    Returns:
        int64 ``[example]``: positions, first to last; the first ones are the sample.

    Source:
        Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014 (the mixing function).
    """
    words = np.ascontiguousarray(content_hash).view("<u8")[::2]
    by_word = np.argsort(words, kind="stable")
    places = np.arange(len(words))
    is_first = np.r_[True, np.diff(words[by_word]) != 0]
    copy_number = np.empty(len(words), np.uint64)
    copy_number[by_word] = places - np.maximum.accumulate(np.where(is_first, places, 0))
    key = words ^ (copy_number * _GOLDEN)
    key = (key ^ (key >> np.uint64(30))) * _MIX[0]
    key = (key ^ (key >> np.uint64(27))) * _MIX[1]
    return np.argsort(key ^ (key >> np.uint64(31)), kind="stable")


def measure(images: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Measure images, a block at a time.

    Args:
        images: uint8 ``[example, height, width, channel]``; may be memory-mapped.
        rows: Which ones, int64 ``[row]``.

    Returns:
        Name of a feature -> its values, float32 ``[row]``: `FEATURES` without the file's size, and of colour images
        mean and sd of each channel, such as ``red mean``.
    """
    rows_in_block = max(1, _BLOCK_PIXELS // int(np.prod(images.shape[1:])))
    ascending = np.sort(rows)
    starts = range(0, len(rows), rows_in_block)
    blocks = [_measure_block(images[ascending[start : start + rows_in_block]]) for start in starts]
    back = np.searchsorted(ascending, rows)
    return {name: np.concatenate([block[name] for block in blocks])[back] for name in blocks[0]}


def _measure_block(images: np.ndarray) -> dict[str, np.ndarray]:
    pixels = images.astype(np.float32)
    grey = pixels.mean(axis=3)
    across, down = (_mean_difference(grey, axis) for axis in (2, 1))
    values = {
        "brightness": grey.mean(axis=(1, 2)),
        "contrast": np.where(np.ptp(images, axis=(1, 2)).max(axis=1) == 0, 0, grey.std(axis=(1, 2))),
        "sharpness": (across + down) / 2,
        "edge direction": _share(across, across + down),
        "centre across": _centre(grey.sum(axis=1)),
        "centre down": _centre(grey.sum(axis=2)),
    }
    if pixels.shape[3] > 1:
        means, sds = pixels.mean(axis=(1, 2)), pixels.std(axis=(1, 2))
        for channel, colour in enumerate(_COLOURS[: pixels.shape[3]]):
            values |= {f"{colour} mean": means[:, channel], f"{colour} sd": sds[:, channel]}
    return values


def _mean_difference(grey: np.ndarray, axis: int) -> np.ndarray:
    """Mean absolute difference of neighbours, ``[row]``; 0 where there is only one pixel."""
    if grey.shape[axis] < 2:
        return np.zeros(len(grey), np.float32)
    return np.asarray(np.abs(np.diff(grey, axis=axis)).mean(axis=(1, 2)))


def _centre(profile: np.ndarray) -> np.ndarray:
    """Centre of weights along a line, ``[row, place]`` -> ``[row]`` in 0..1; the middle where all are 0."""
    places = (np.arange(profile.shape[1], dtype=np.float32) + 0.5) / profile.shape[1]
    return _share(profile @ places, profile.sum(axis=1))


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.asarray(np.divide(part, whole, out=np.full_like(part, 0.5), where=whole > 0))


def _predictions(
    dataset: Dataset, probabilities: np.ndarray | None, counted: np.ndarray, sample: np.ndarray, num_rows: int
) -> tuple[dict[str, int], tuple[float, ...]]:
    """Predicted classes of the rows that count, and the top probability of those that are sampled."""
    if probabilities is None:
        return {}, ()
    if probabilities.shape != (num_rows, len(dataset.ref.class_names)):
        raise DataError(
            f"The champion's probabilities are of shape {list(probabilities.shape)}, the data has {num_rows} rows and "
            f"{len(dataset.ref.class_names)} classes. Let the champion answer these very rows."
        )
    if not np.isfinite(probabilities).all():
        row = int(np.flatnonzero(~np.isfinite(probabilities).all(axis=1))[0])
        raise NonFiniteError(f"The champion's probabilities of row {row} are not finite. Look at that example.")
    if not counted.any():
        return {}, ()
    counts = _count(probabilities[counted].argmax(axis=1), dataset.ref.class_names)
    return counts, _sorted(probabilities[sample].max(axis=1), 5)


def find_shards(dataset: Dataset) -> ShardInfo | None:
    """Find the shards that a data set was decoded from; None if its folder is gone.

    Raises:
        DataError: The folder holds other shards.
    """
    folder = Path(dataset.ref.path)
    if not any(folder.glob("*.parquet")):
        return None
    info = inspect_shards(folder)
    if info.num_examples != len(dataset.labels):
        raise DataError(
            f"{folder}: holds {info.num_examples} examples, {len(dataset.labels)} were decoded from it. "
            "Put the pinned data back: assay data pull."
        )
    return info


def _read_stored(info: ShardInfo | None, rows: np.ndarray) -> _Stored:
    """Read all columns once, in a stream."""
    if info is None:
        return _Stored({}, None)
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    is_chosen = np.zeros(info.num_examples, bool)
    is_chosen[rows] = True
    num_present: dict[str, int] = {}
    sizes, start = np.zeros(info.num_examples, np.int64), 0
    has_files = info.kind == IMAGE
    for path in info.files:
        try:
            with pq.ParquetFile(path) as file:
                for part in file.iter_batches(batch_size=_READ_ROWS, use_threads=False):
                    place = slice(start, start + part.num_rows)
                    if has_files:
                        sizes[place] = np.asarray(pc.binary_length(part.column("image").field("bytes")))
                    for name in part.schema.names:
                        present = is_chosen[place] & ~is_missing(part.column(name))
                        num_present[name] = num_present.get(name, 0) + int(present.sum())
                    start += part.num_rows
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{path}: cannot be read ({error}). Put the pinned data back: assay data pull.") from error
    num_chosen = int(is_chosen.sum())
    return _Stored({name: 1 - count / num_chosen for name, count in num_present.items()}, sizes if has_files else None)


def is_missing(column: "pa.Array") -> np.ndarray:
    """Say where a column has no value: null, NaN or empty text; bool ``[row]``."""
    import pyarrow.compute as pc
    import pyarrow.types as kinds

    missing = np.asarray(pc.is_null(column, nan_is_null=kinds.is_floating(column.type)))
    if kinds.is_string(column.type) or kinds.is_large_string(column.type):
        missing = missing | np.asarray(pc.fill_null(pc.equal(column, ""), True))
    return missing
