"""Tiny data sets of texts, series and tables, made by hand."""

from collections.abc import Sequence

import numpy as np

from assay.data.loading import Dataset
from assay.data.ragged import RaggedArray, from_rows
from assay.data.sources import content_hash
from assay.records import SERIES, TABLE, TEXT, DataRef

WORDS = {
    0: ("awful", "boring", "dull", "weak", "noisy", "sad", "poor"),
    1: ("lovely", "bright", "great", "clever", "warm", "happy", "rich"),
}
FILLING = ("film", "story", "actor", "scene", "music", "light", "ending", "the", "a", "of", "and", "was", "with", "in")


def text_dataset(
    labels: Sequence[int] | np.ndarray,
    texts: Sequence[str] | None = None,
    class_names: tuple[str, ...] | None = None,
    groups: Sequence[int] | np.ndarray | None = None,
) -> Dataset:
    """Texts; without any given, of 5 to 40 words, some of them the class's own."""
    labels = np.asarray(labels, np.int64)
    if texts is None:
        rng = np.random.default_rng(2)
        texts = [sentence(rng, int(label)) for label in labels]
    rows = from_rows([np.frombuffer(text.encode(), np.uint8) for text in texts])
    longest = max(len(text.encode()) for text in texts)
    return _dataset(TEXT, rows, [content_hash(text) for text in texts], labels, (longest,), (), class_names, groups)


def sentence(rng: np.random.Generator, label: int) -> str:
    """A sentence with words of its class."""
    words = rng.choice(FILLING, int(rng.integers(4, 34))).tolist() + rng.choice(WORDS[label % 2], 4).tolist()
    rng.shuffle(words)
    return f"{' '.join(words).capitalize()}."


def series_dataset(
    labels: Sequence[int] | np.ndarray,
    series: Sequence[np.ndarray] | None = None,
    columns: tuple[str, ...] = ("left", "right"),
    class_names: tuple[str, ...] | None = None,
) -> Dataset:
    """Series; without any given, sines of 20 to 60 steps whose frequency and height are the class's own."""
    labels = np.asarray(labels, np.int64)
    if series is None:
        rng = np.random.default_rng(3)
        series = [_waves(rng, int(label), len(columns)) for label in labels]
    rows = from_rows([np.asarray(one, np.float32) for one in series])
    hashes = [content_hash(rows.row(row)) for row in range(len(rows))]
    shape = (max(map(len, series)), series[0].shape[1])
    return _dataset(SERIES, rows, hashes, labels, shape, columns, class_names)


def _waves(rng: np.random.Generator, label: int, num_channels: int) -> np.ndarray:
    steps = np.arange(rng.integers(20, 61))[:, None]
    phases = rng.uniform(0, 6, num_channels)
    waves = (1 + label) * np.sin(steps * (0.2 + 0.2 * label) + phases) + rng.normal(0, 0.2, (len(steps), num_channels))
    return np.asarray(waves, np.float32)


def table_dataset(
    labels: Sequence[int] | np.ndarray,
    table: np.ndarray | None = None,
    columns: tuple[str, ...] | None = None,
    class_names: tuple[str, ...] | None = None,
) -> Dataset:
    """Rows of a table; without any given, of 5 columns: two that tell classes apart, one with a tenth missing."""
    labels = np.asarray(labels, np.int64)
    if table is None:
        rng = np.random.default_rng(4)
        table = rng.normal(size=(len(labels), 5))
        table[:, 1] += 2 * labels
        table[:, 3] = 1000 + 50 * (table[:, 3] - labels)
        table[rng.random(len(labels)) < 0.1, 2] = np.nan
        columns = columns or ("age", "dose", "ash", "height of stem", "noise")
    table = np.asarray(table, np.float32)
    columns = columns or tuple(f"column {number}" for number in range(table.shape[1]))
    hashes = [content_hash(row) for row in table]
    return _dataset(TABLE, table, hashes, labels, (table.shape[1],), columns, class_names)


def _dataset(
    kind: str,
    inputs: np.ndarray | RaggedArray,
    hashes: list[bytes],
    labels: np.ndarray,
    shape: tuple[int, ...],
    columns: tuple[str, ...],
    class_names: tuple[str, ...] | None,
    groups: Sequence[int] | np.ndarray | None = None,
) -> Dataset:
    count = len(labels)
    names = class_names or tuple(f"class {number}" for number in range(int(labels.max(initial=0)) + 1))
    return Dataset(
        ref=DataRef("nowhere", "0" * 32 + ".dir", "made", count, names, shape, kind, columns),
        inputs=inputs,
        labels=labels,
        given_split=np.full(count, -1, np.int8),
        groups=np.asarray([-1] * count if groups is None else groups, np.int64),
        content_hash=np.array(hashes, "S16"),
    )
