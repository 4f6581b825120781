"""Numbers that say what a text, a series or a row of a table is like, whatever model sees it later."""

import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

from assay.data.ragged import RaggedArray
from assay.records import DataRef

TEXT_FEATURES = (
    "characters",
    "words",
    "word length",
    "distinct words",
    "letters",
    "digits",
    "punctuation",
    "upper case",
    "non-ASCII",
)
"""What is measured of a text: its length in characters and in words (what white space parts), characters of a word on
average, and shares: of its words that are not a repetition, of its characters that are letters, digits, punctuation
or outside ASCII, and of its letters that are upper case."""

SERIES_NUMBERS = ("mean", "sd", "minimum", "lower quartile", "median", "upper quartile", "maximum", "step")
"""What is measured of each channel of a series; a step is the mean absolute difference of neighbours."""

_BLOCK_ROWS = 65_536


def measure_texts(texts: Iterable[str]) -> dict[str, np.ndarray]:
    """Measure texts.

    Args:
        texts: Any number.

    Returns:
        Name -> values, float32 ``[text]``: `TEXT_FEATURES`; shares of nothing are 0.
    """
    rows = np.array([_measure_text(text) for text in texts], np.float32).reshape(-1, len(TEXT_FEATURES))
    return dict(zip(TEXT_FEATURES, rows.T, strict=True))


def _measure_text(text: str) -> tuple[float, ...]:
    words, size = text.split(), max(1, len(text))
    letters = sum(map(str.isalpha, text))
    return (
        len(text),
        len(words),
        sum(map(len, words)) / max(1, len(words)),
        len(set(words)) / max(1, len(words)),
        letters / size,
        sum(map(str.isdigit, text)) / size,
        sum(_is_punctuation(letter) for letter in text) / size,
        sum(map(str.isupper, text)) / max(1, letters),
        sum(letter > "\x7f" for letter in text) / size,
    )


def _is_punctuation(letter: str) -> bool:
    return not letter.isalnum() and not letter.isspace() and unicodedata.category(letter)[0] in "PS"


def measure_series(series: RaggedArray, rows: np.ndarray) -> np.ndarray:
    """Measure each channel of some series.

    Args:
        series: Rows of float32 ``[step, channel]``.
        rows: Which ones, int64 ``[row]``.

    Returns:
        float64 ``[row, channel, number]``, in the order of `SERIES_NUMBERS`.
    """
    found = np.empty((len(rows), *series.values.shape[1:], len(SERIES_NUMBERS)))
    for place, row in enumerate(rows.tolist()):
        values = np.asarray(series.row(row), np.float64)
        steps = np.abs(np.diff(values, axis=0)).mean(axis=0) if len(values) > 1 else np.zeros(values.shape[1])
        quartiles = np.quantile(values, (0.0, 0.25, 0.5, 0.75, 1.0), axis=0)
        found[place] = np.stack([values.mean(axis=0), values.std(axis=0), *quartiles, steps], axis=1)
    return found


def column_names(ref: DataRef) -> tuple[str, ...]:
    """Names of a table's columns, or of a series' channels, numbered from 1 where they have none."""
    return ref.columns or tuple(f"channel {number + 1}" for number in range(ref.shape[-1]))


def column_numbers(table: np.ndarray) -> dict[str, np.ndarray]:
    """Measure columns, a block of rows at a time; what is missing is left out.

    Args:
        table: float32 ``[example, column]``, NaN where a value is missing; may be memory-mapped.

    Returns:
        ``mean``, ``sd``, ``minimum``, ``maximum`` and ``missing``, the share, each float64 ``[column]``; NaN where a
        column holds nothing.
    """
    count = np.zeros(table.shape[1])
    total, low, high = np.zeros_like(count), np.full_like(count, np.inf), np.full_like(count, -np.inf)
    for block in _blocks(table):
        is_there = ~np.isnan(block)
        count += is_there.sum(axis=0)
        total += np.where(is_there, block, 0.0).sum(axis=0)
        low = np.fmin(low, np.where(is_there, block, np.inf).min(axis=0))
        high = np.fmax(high, np.where(is_there, block, -np.inf).max(axis=0))
    mean = _divided(total, count)
    squares = np.zeros_like(count)
    for block in _blocks(table):
        squares += (np.where(np.isnan(block), 0.0, block - mean) ** 2).sum(axis=0)
    is_empty = count == 0
    return {
        "mean": mean,
        "sd": np.sqrt(_divided(squares, count)),
        "minimum": np.where(is_empty, np.nan, low),
        "maximum": np.where(is_empty, np.nan, high),
        "missing": 1 - count / max(1, len(table)),
    }


def _blocks(table: np.ndarray) -> Iterable[np.ndarray]:
    for start in range(0, len(table), _BLOCK_ROWS):
        yield np.asarray(table[start : start + _BLOCK_ROWS], np.float64)


def _divided(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.asarray(np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0))


def class_separation(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Say how well each column tells classes apart: the share of its variance that lies between their means.

    Args:
        values: ``[example, column]``, NaN where a value is missing.
        labels: int64 ``[example]``.

    Returns:
        float64 ``[column]`` in 0..1; 0 where a column does not vary.

    Source:
        Fisher, "Statistical methods for research workers", 1925 (the correlation ratio, eta squared).
    """
    values = np.asarray(values, np.float64)
    is_there = ~np.isnan(values)
    count = is_there.sum(axis=0)
    mean = _divided(np.where(is_there, values, 0.0).sum(axis=0), count)
    between = np.zeros(values.shape[1])
    for label in np.unique(labels):
        own, there = values[labels == label], is_there[labels == label]
        own_count = there.sum(axis=0)
        shift = np.where(there, own - mean, 0.0).sum(axis=0)
        between += np.divide(shift**2, own_count, out=np.zeros_like(between), where=own_count > 0)
    whole = (np.where(is_there, values - mean, 0.0) ** 2).sum(axis=0)
    return np.asarray(np.clip(np.divide(between, whole, out=np.zeros_like(between), where=whole > 0), 0.0, 1.0))


def most_separating(values: np.ndarray, labels: np.ndarray, limit: int) -> Sequence[int]:
    """Columns that tell classes apart best, the best first; arguments as for `class_separation`."""
    found: list[int] = np.argsort(-class_separation(values, labels), kind="stable")[:limit].tolist()
    return found
