"""One picture of a data set, whatever it holds: examples or distributions, class by class."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from assay.data.drawing import COLOURS, DPI, FAINT, GREY, display_name, drawable, style, to_png, wrapped
from assay.data.loading import Dataset
from assay.data.measuring import class_separation, column_names
from assay.records import SERIES, TABLE, TEXT

MAX_CHANNELS = 6
MAX_COLUMNS = 12

_MAX_ROWS = 25
_COLUMNS = 12
_MIN_CELL, _MAX_CELL = 56, 112
_GAP = 6
_INK, _FAINT, _PAPER = (28, 32, 38), (110, 118, 129), (255, 255, 255)

_MAX_CLASSES = 7
_NUM_LINES = 3
_NUM_SNIPPETS = 2
_SAMPLE = 20_000
_NUM_BINS = 30
_MAX_STEPS = 2000


def draw_data(dataset: Dataset, title: str) -> bytes | Image.Image:
    """Draw examples of image data, or a figure of other data as PNG bytes.

    Args:
        dataset: The decoded examples.
        title: Heading.
    """
    drawers = {TEXT: text_figure, SERIES: series_figure, TABLE: table_figure}
    if dataset.ref.kind not in drawers:
        return draw_contact_sheet(dataset, title)
    with style():
        return to_png(drawers[dataset.ref.kind](dataset, title))


def text_figure(dataset: Dataset, title: str) -> Figure:
    """Draw how long texts are, in characters and in words, and the start of two texts of each class."""
    labels, rows = _sample(dataset)
    texts = dataset.texts(rows)
    shown = _largest_classes(dataset)
    names = _names(dataset)
    snippets = [(label, text) for label in shown for text in _examples(dataset, label)]
    height = 3.0 + 0.42 * len(snippets)
    figure = _page(title, _about(dataset, f"{dataset.ref.num_examples:,} texts"), (9.0, height + 0.95))
    panels = [figure.add_axes((left, 1 - 3.15 / (height + 0.95), 0.4, 2.35 / (height + 0.95))) for left in (0.08, 0.57)]
    lengths = {
        "characters": np.array([len(text) for text in texts]),
        "words": np.array([len(text.split()) for text in texts]),
    }
    for axes, (name, values) in zip(panels, lengths.items(), strict=True):
        _histograms(axes, values, labels, shown, names, is_log=values.max() > 30 * max(1.0, float(np.median(values))))
        axes.set(xlabel=f"{name} of a text", ylabel="share of the class's texts" if axes is panels[0] else "")
    panels[1].legend(frameon=False, fontsize=8, loc="upper right")
    for number, (label, text) in enumerate(snippets):
        y = 1 - (3.8 + 0.42 * number) / (height + 0.95)
        figure.text(0.02, y, names[label], color=_colour(shown, label), va="top", fontsize=8, weight="bold")
        figure.text(0.16, y, wrapped(text, 118, 2) or "(nothing but white space)", va="top", fontsize=7.5)
    return figure


def series_figure(dataset: Dataset, title: str) -> Figure:
    """Draw a few series of each class, a row for a class and a column for a channel, on one scale a channel."""
    shown, names = _largest_classes(dataset), _names(dataset)
    channels = column_names(dataset.ref)[:MAX_CHANNELS]
    height = 0.95 + 1.25 * len(shown) + 0.35
    size = (max(6.0, 1.75 + 2.2 * len(channels)), height)
    about = f"{dataset.ref.num_examples:,} series of at most {dataset.ref.shape[0]:,} steps"
    if len(channels) < dataset.ref.shape[1]:
        about += f", the first {len(channels)} of {dataset.ref.shape[1]} channels"
    figure = _page(title, _about(dataset, about), size)
    panels = figure.subplots(len(shown), len(channels), squeeze=False, sharex=True, sharey="col")
    figure.subplots_adjust(
        left=1.75 / size[0],
        right=1 - 0.15 / size[0],
        top=1 - 0.95 / height,
        bottom=0.5 / height,
        hspace=0.12,
        wspace=0.3,
    )
    for row, label in enumerate(shown):
        members = _spread(np.flatnonzero(np.asarray(dataset.labels) == label), _NUM_LINES)
        for column in range(len(channels)):
            axes = panels[row, column]
            for member, shade in zip(members, (1.0, 0.55, 0.3), strict=False):
                steps, values = thinned(dataset.series.row(int(member))[:, column])
                axes.plot(steps, values, color=_colour(shown, label), alpha=shade, lw=1.0)
            axes.tick_params(labelsize=7)
            axes.grid(axis="y", color=FAINT, lw=0.6)
        middle = 1 - (0.95 + (row + 0.5) * (height - 1.45) / len(shown)) / height
        figure.text(0.12 / size[0], middle, names[label], va="center", fontsize=8.5)
    for column, channel in enumerate(channels):
        panels[0, column].set_title(display_name(channel, column + 1, 24, "channel"), fontsize=9)
        panels[-1, column].set_xlabel("step", fontsize=8)
    return figure


def table_figure(dataset: Dataset, title: str) -> Figure:
    """Draw the columns that tell classes apart best, each as histograms of the classes."""
    labels, rows = _sample(dataset)
    values = np.asarray(dataset.table[rows], np.float64)
    separation = class_separation(values, labels)
    best = np.argsort(-separation, kind="stable")[:MAX_COLUMNS].tolist()
    shown, names, columns = _largest_classes(dataset), _names(dataset), column_names(dataset.ref)
    num_across = min(4, len(best))
    num_down = -(-len(best) // num_across)
    size = (max(6.0, 2.5 * num_across), 1.45 + 1.9 * num_down)
    about = f"{dataset.ref.num_examples:,} rows of {len(columns):,} columns"
    if len(best) < len(columns):
        about += f", the {len(best)} that tell classes apart best"
    figure = _page(title, _about(dataset, about), size)
    panels = figure.subplots(num_down, num_across, squeeze=False)
    figure.subplots_adjust(
        left=0.6 / size[0],
        right=1 - 0.2 / size[0],
        top=1 - 1.4 / size[1],
        bottom=0.4 / size[1],
        hspace=0.55,
        wspace=0.3,
    )
    for axes, column in zip(panels.flat, best, strict=False):
        name = display_name(columns[column], column + 1, 26, "column")
        axes.set_title(f"{name} ({separation[column]:.0%})", fontsize=8.5)
        _histograms(axes, values[:, column], labels, shown, names)
        axes.tick_params(labelsize=7)
    for axes in panels.flat[len(best) :]:
        axes.set_visible(False)
    for axes in panels[:, 0]:
        axes.set_ylabel("share of class", fontsize=8)
    handles, texts = panels[0, 0].get_legend_handles_labels()
    figure.legend(
        handles,
        texts,
        loc="upper left",
        bbox_to_anchor=(0.3 / size[0], 1 - 0.62 / size[1]),
        ncols=min(len(shown), max(2, int(size[0] / 1.4))),
        frameon=False,
        fontsize=8,
    )
    note = "In brackets: share of the column's variance that lies between classes. The outermost bars hold the rest."
    figure.text(0.12 / size[0], 0.08 / size[1], note, fontsize=7, color="#57606a")
    return figure


def _page(title: str, about: str, size: tuple[float, float]) -> Figure:
    figure = Figure(figsize=size, dpi=DPI)
    width = int(size[0] * 9)
    heading = drawable(title)
    heading = heading if len(heading) <= width else f"{heading[: width - 1]}…"
    figure.text(0.12 / size[0], 1 - 0.12 / size[1], heading, va="top", fontsize=12, weight="bold")
    figure.text(0.12 / size[0], 1 - 0.42 / size[1], about, va="top", fontsize=8.5, color="#57606a")
    return figure


def _about(dataset: Dataset, what: str) -> str:
    num_classes = len(dataset.ref.class_names)
    cut = f"; the {_MAX_CLASSES} largest are shown" if num_classes > _MAX_CLASSES else ""
    return f"{what}, {num_classes} classes{cut}"


def _sample(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Labels and row numbers of all examples, or of as many as a figure needs, spread evenly."""
    rows = _spread(np.arange(len(dataset.labels)), _SAMPLE)
    return np.asarray(dataset.labels[rows]), rows


def _largest_classes(dataset: Dataset) -> list[int]:
    """The largest classes in label order, as many as there are colours."""
    counts = np.bincount(dataset.labels, minlength=len(dataset.ref.class_names))
    largest = np.argsort(-counts, kind="stable")[:_MAX_CLASSES]
    return sorted(label for label in largest.tolist() if counts[label])


def _names(dataset: Dataset) -> list[str]:
    return [display_name(name, number, 16) for number, name in enumerate(dataset.ref.class_names)]


def _colour(shown: Sequence[int], label: int) -> str:
    return COLOURS[list(shown).index(label)]


def _examples(dataset: Dataset, label: int) -> list[str]:
    return dataset.texts(_spread(np.flatnonzero(np.asarray(dataset.labels) == label), _NUM_SNIPPETS))


def _histograms(
    axes: Axes,
    values: np.ndarray,
    labels: np.ndarray,
    shown: Sequence[int],
    names: Sequence[str],
    is_log: bool = False,
) -> None:
    """Draw a histogram of each class on common bins; the outermost bins take what lies beyond them."""
    known = np.isfinite(values)
    if not known.any():
        axes.text(0.5, 0.5, "nothing but missing", ha="center", va="center", transform=axes.transAxes, color=GREY)
        return
    edges = _bin_edges(values[known], is_log)
    for label in shown:
        own = values[known & (labels == label)]
        if len(own):
            counts, _ = np.histogram(np.clip(own, edges[0], edges[-1]), edges)
            axes.stairs(counts / len(own), edges, color=_colour(shown, label), label=names[label], lw=1.3)
        else:
            axes.stairs([0.0], edges[[0, -1]], color=_colour(shown, label), label=names[label], lw=1.3)
    if is_log:
        axes.set_xscale("log")
    else:
        axes.locator_params(axis="x", nbins=6)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color=FAINT, lw=0.6)
    axes.set_axisbelow(True)


def _bin_edges(values: np.ndarray, is_log: bool) -> np.ndarray:
    """Edges from the 0.5th to the 99.5th percentile; of whole numbers each bin holds equally many."""
    low, high = np.quantile(values, (0.005, 0.995))
    if low == high:
        low, high = float(values.min()), float(values.max())
    if low == high:
        return np.array([low - 0.5 * max(1e-6, abs(low)), high + 0.5 * max(1e-6, abs(high))])
    if is_log:
        return np.geomspace(max(1.0, low), max(2.0, high), _NUM_BINS + 1)
    if (values == np.round(values)).all():
        low, width = np.floor(low), np.ceil((high - low + 1) / _NUM_BINS)
        return np.arange(low, high + width + 1, width) - 0.5
    return np.linspace(low, high, _NUM_BINS + 1)


def thinned(values: np.ndarray, limit: int = _MAX_STEPS) -> tuple[np.ndarray, np.ndarray]:
    """Steps, and values ``[step]`` at them; of a long series the least and the largest of each stretch."""
    if len(values) <= limit:
        return np.arange(len(values)), values
    stretch = -(-2 * len(values) // limit)
    whole = len(values) // stretch * stretch
    blocks = values[:whole].reshape(-1, stretch)
    places = np.sort(np.stack([blocks.argmin(axis=1), blocks.argmax(axis=1)], axis=1), axis=1)
    steps = (places + np.arange(0, whole, stretch)[:, None]).ravel()
    return steps, values[steps]


def draw_contact_sheet(dataset: Dataset, title: str) -> Image.Image:
    """Draw a row of examples for each class, spread evenly over the class.

    Args:
        dataset: The decoded examples.
        title: Heading.
    """
    body, heading = ImageFont.load_default(16), ImageFont.load_default(22)
    names = dataset.ref.class_names[:_MAX_ROWS]
    height, width = _cell_size(dataset.ref.image_shape)
    labels = [_shortened(name) for name in names]
    left = 36 + int(max(body.getlength(label) for label in [*labels, "00,000 images"]))
    top, bottom = 84, 52
    size = (
        max(left + _COLUMNS * (width + _GAP) + 18, 20 + int(body.getlength(_caption(dataset))) + 20),
        top + len(names) * (height + _GAP) + bottom,
    )
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((20, 18), title, font=heading, fill=_INK)
    draw.text((20, 50), _caption(dataset), font=body, fill=_FAINT)
    for row, label in enumerate(labels):
        y = top + row * (height + _GAP)
        members = np.flatnonzero(dataset.labels == row)
        draw.text((20, y + height / 2 - 2), label, font=body, fill=_INK, anchor="ls")
        draw.text((20, y + height / 2 + 4), f"{len(members):,} images", font=body, fill=_FAINT, anchor="la")
        for column, member in enumerate(_spread(members)):
            sheet.paste(_thumbnail(dataset.images[member], height, width), (left + column * (width + _GAP), y))
    footer = f"Examples spread evenly over each class; data {dataset.ref.md5.removesuffix('.dir')}"
    if len(names) < len(dataset.ref.class_names):
        footer = f"The first {len(names)} of {len(dataset.ref.class_names)} classes. {footer}"
    draw.text((20, size[1] - bottom + 16), footer, font=body, fill=_FAINT)
    return sheet


def _caption(dataset: Dataset) -> str:
    height, width, num_channels = dataset.ref.image_shape
    kind = "grey" if num_channels == 1 else "colour"
    num_classes = len(dataset.ref.class_names)
    return f"{dataset.ref.num_examples:,} images of {height} x {width} pixels, {kind}, {num_classes} classes"


def _shortened(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:23]}\u2026"


def _spread(members: np.ndarray, limit: int = _COLUMNS) -> np.ndarray:
    """At most so many examples, evenly from first to last."""
    places = np.linspace(0, len(members) - 1, min(limit, len(members)))
    return np.asarray(members[places.round().astype(int)])


def _cell_size(shape: tuple[int, int, int]) -> tuple[int, int]:
    """Whole multiples of small images, so that pixels stay square; large ones are brought down."""
    height, width, _ = shape
    longer = max(height, width)
    scale = max(1, -(-_MIN_CELL // longer)) if longer <= _MAX_CELL else _MAX_CELL / longer
    return max(1, round(height * scale)), max(1, round(width * scale))


def _thumbnail(pixels: np.ndarray, height: int, width: int) -> Image.Image:

    image = Image.fromarray(np.asarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)).convert("RGB")
    is_larger = height >= pixels.shape[0]
    return image.resize((width, height), Image.Resampling.NEAREST if is_larger else Image.Resampling.LANCZOS)
