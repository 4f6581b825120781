"""The worst mistakes of a model, drawn as what they are: pictures, texts, lines, rows of a table."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from assay.data.drawing import COLOURS, DPI, FAINT, display_name, wrapped
from assay.data.loading import Dataset
from assay.data.measuring import column_names
from assay.data.sheets import thinned

_WIDTH = 7.4
_NUM_CHANNELS = 6
_NUM_VALUES = 5
_NUM_LETTERS, _NUM_LINES = 112, 3
_MAX_REFERENCES = 20_000


def mistakes_figure(
    dataset: Dataset, rows: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, names: Sequence[str]
) -> Figure:
    """Draw the worst mistakes, each with its true class, the answer and the answer's probability.

    Args:
        dataset: The data that they are of.
        rows: Their row numbers, int64 ``[mistake]``.
        labels: True classes, int64 ``[mistake]``.
        probabilities: float64 ``[mistake, class]``.
        names: Names of the classes to show.
    """
    if not len(rows):
        figure = Figure(figsize=(_WIDTH, 0.8), dpi=DPI)
        figure.text(0.5, 0.5, "No mistake on test.", ha="center", va="center", fontsize=11)
        return figure
    match dataset.ref.kind:
        case "text":
            return text_mistakes(dataset.texts(rows), labels, probabilities, names)
        case "series":
            series = [dataset.series.row(int(row)) for row in rows]
            return series_mistakes(series, labels, probabilities, names, column_names(dataset.ref))
        case "table":
            return table_mistakes(dataset, rows, labels, probabilities, names)
        case _:
            return image_mistakes(dataset.images[rows], labels, probabilities, names)


def image_mistakes(images: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, names: Sequence[str]) -> Figure:
    """Draw the worst mistakes, each with its true class, the answer and the answer's probability.

    Args:
        images: uint8 ``[mistake, height, width, channel]``.
        labels: True classes, int64 ``[mistake]``.
        probabilities: float64 ``[mistake, class]``.
        names: Names to show.
    """
    num_columns, cell_width, cell_height, side = 5, 1.48, 1.52, 1.1
    num_rows = max(1, -(-len(images) // num_columns))
    inches = (num_columns * cell_width, num_rows * cell_height + 0.06)
    figure = Figure(figsize=inches if len(images) else (inches[0], 0.8), dpi=DPI)
    if not len(images):
        figure.text(0.5, 0.5, "No mistake on test.", ha="center", va="center", fontsize=11)
        return figure
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.axis("off")
    for number, (image, label, row) in enumerate(zip(images, labels, probabilities, strict=True)):
        bottom, middle = number // num_columns * cell_height + 1.16, (number % num_columns + 0.5) * cell_width
        height, width = (side * pixels / max(image.shape[:2]) for pixels in image.shape[:2])
        box = (middle - width / 2, middle + width / 2, bottom, bottom - height)
        axes.imshow(_as_picture(image), extent=box, aspect="auto", cmap="gray", vmin=0, vmax=255)
        answer = int(row.argmax())
        axes.text(middle, bottom + 0.04, names[label], ha="center", va="top", fontsize=7)
        text = f"→ {names[answer]} ({row[answer]:.2f})"
        axes.text(middle, bottom + 0.17, text, ha="center", va="top", fontsize=7, color=COLOURS[1])
    axes.set(xlim=(0, inches[0]), ylim=(inches[1], 0))
    return figure


def text_mistakes(texts: Sequence[str], labels: np.ndarray, probabilities: np.ndarray, names: Sequence[str]) -> Figure:
    """Draw the start of each text beside its true class and the answer.

    Args:
        texts: One for each mistake.
        labels: True classes, int64 ``[mistake]``.
        probabilities: float64 ``[mistake, class]``.
        names: Names to show.
    """
    shown = [wrapped(text, _NUM_LETTERS, _NUM_LINES) or "(nothing but white space)" for text in texts]
    return _beside(shown, labels, probabilities, names)


def table_mistakes(
    dataset: Dataset, rows: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, names: Sequence[str]
) -> Figure:
    """Draw the values of each row that are most unlike its true class, with their distance in its standard deviations.

    The class's mean and standard deviation are those of all of its examples, or of 20,000 of them.

    Args:
        dataset: The data that they are of.
        rows: Their row numbers, int64 ``[mistake]``.
        labels: True classes, int64 ``[mistake]``.
        probabilities: float64 ``[mistake, class]``.
        names: Names to show.
    """
    columns = [display_name(name, number + 1, 22, "column") for number, name in enumerate(column_names(dataset.ref))]
    scores = unlikeness(dataset, rows, labels)
    lines = []
    for row, score in zip(rows.tolist(), scores, strict=True):
        values = dataset.table[row]
        most = np.argsort(-np.nan_to_num(np.abs(score), nan=-1.0), kind="stable")[:_NUM_VALUES]
        parts = [f"{columns[k]} {values[k]:.4g} (z {score[k]:+.1f})" for k in most if np.isfinite(score[k])]
        missing = int(np.isnan(values).sum())
        parts += [f"{missing} missing"] if missing else []
        lines.append(wrapped(";  ".join(parts), _NUM_LETTERS, _NUM_LINES) or "(nothing that differs)")
    return _beside(lines, labels, probabilities, names)


def unlikeness(dataset: Dataset, rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return how far values are from the mean of their true class, in its standard deviations.

    Args:
        dataset: A table.
        rows: Row numbers, int64 ``[row]``.
        labels: True classes, int64 ``[row]``.

    Returns:
        float64 ``[row, column]``; NaN where a value is missing or the class does not vary.
    """
    scores = np.full((len(rows), dataset.table.shape[1]), np.nan)
    for label in np.unique(labels):
        members = np.flatnonzero(np.asarray(dataset.labels) == label)
        kept = np.linspace(0, len(members) - 1, min(_MAX_REFERENCES, len(members))).round().astype(int)
        values = np.asarray(dataset.table[members[kept]], np.float64)
        is_there = ~np.isnan(values)
        count = np.maximum(is_there.sum(axis=0), 1)
        mean = np.where(is_there, values, 0.0).sum(axis=0) / count
        sd = np.sqrt((np.where(is_there, values - mean, 0.0) ** 2).sum(axis=0) / count)
        own = labels == label
        distance = np.asarray(dataset.table[rows[own]], np.float64) - mean
        scores[own] = np.divide(distance, sd, out=np.full_like(distance, np.nan), where=sd > 0)
    return scores


def series_mistakes(
    series: Sequence[np.ndarray],
    labels: np.ndarray,
    probabilities: np.ndarray,
    names: Sequence[str],
    channels: Sequence[str],
) -> Figure:
    """Draw each series as lines, one for each of the first channels.

    Args:
        series: float32 ``[step, channel]``, one for each mistake.
        labels: True classes, int64 ``[mistake]``.
        probabilities: float64 ``[mistake, class]``.
        names: Names to show.
        channels: Names of the channels.
    """
    num_across, cell = 4, 1.45
    num_down = -(-len(series) // num_across)
    shown = [display_name(name, number + 1, 18, "channel") for number, name in enumerate(channels[:_NUM_CHANNELS])]
    top, bottom = 0.35, 0.3
    height = num_down * cell + top + bottom
    figure = Figure(figsize=(_WIDTH, height), dpi=DPI)
    for number, (values, label, row) in enumerate(zip(series, labels, probabilities, strict=True)):
        across, down = number % num_across, number // num_across
        left, low = (0.35 + across * 1.77) / _WIDTH, 1 - (top + (down + 1) * cell - 0.2) / height
        axes = figure.add_axes((left, low, 1.4 / _WIDTH, 0.8 / height))
        for channel in range(len(shown)):
            axes.plot(*thinned(values[:, channel], 600), color=COLOURS[channel], lw=0.8)
        axes.tick_params(labelsize=5.5, length=2, pad=1.5)
        axes.locator_params(nbins=4)
        axes.grid(axis="y", color=FAINT, lw=0.6)
        answer = int(row.argmax())
        axes.set_title(names[label], fontsize=7, pad=12)
        text = f"→ {names[answer]} ({row[answer]:.2f})"
        axes.text(0.5, 1.04, text, ha="center", va="bottom", fontsize=7, color=COLOURS[1], transform=axes.transAxes)
    lines = figure.axes[0].lines
    if len(shown) > 1:
        figure.legend(lines, shown, loc="upper left", ncols=len(shown), frameon=False, fontsize=7, handlelength=1.2)
    figure.text(0.5, 0.06 / height, "step", ha="center", fontsize=7)
    return figure


def _beside(contents: Sequence[str], labels: np.ndarray, probabilities: np.ndarray, names: Sequence[str]) -> Figure:
    """Draw text for each mistake to the right of its true class and the answer."""
    line, gap = 0.145, 0.14
    heights = [gap + line * max(2, content.count("\n") + 1) for content in contents]
    height = sum(heights) + 0.1
    figure = Figure(figsize=(_WIDTH, height), dpi=DPI)
    y = 0.08
    for content, label, own, used in zip(contents, labels, probabilities, heights, strict=True):
        answer = int(own.argmax())
        figure.text(0.012, 1 - y / height, names[label], va="top", fontsize=7)
        text = f"→ {names[answer]} ({own[answer]:.2f})"
        figure.text(0.012, 1 - (y + line) / height, text, va="top", fontsize=7, color=COLOURS[1])
        figure.text(0.2, 1 - y / height, content, va="top", fontsize=7)
        y += used
    return figure


def _as_picture(image: np.ndarray) -> np.ndarray:
    """One channel as grey, three and more as the colours of the first three, two as their mean."""
    channels = image.shape[2]
    if channels >= 3:
        return image[..., :3]
    return image[..., 0] if channels == 1 else image.mean(axis=2)
