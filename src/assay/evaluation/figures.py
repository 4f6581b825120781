"""The figures of an evaluation, as PNG bytes.

Beyond `MAX_COLOURS` classes the hardest are named and the others are grey.
"""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from assay.data.drawing import COLOURS as COLOURS
from assay.data.drawing import DPI, FAINT, GREY, INK, display_name, style
from assay.data.drawing import STYLE as STYLE
from assay.data.drawing import to_png as to_png
from assay.data.loading import Dataset
from assay.evaluation.health_figure import health_figure
from assay.evaluation.log_loss import true_class_loss
from assay.evaluation.metrics import confidence_bins, ranked_classes
from assay.evaluation.mistakes import mistakes_figure
from assay.records import EpochRecord

MAX_COLOURS = 7
_NUM_HARDEST = 5
_MAX_MISTAKES = 20
_MAX_NUMBERED_CLASSES = 20


def draw_figures(
    labels: np.ndarray,
    probabilities: np.ndarray,
    dataset: Dataset,
    rows: np.ndarray,
    history: Sequence[EpochRecord],
    best_epoch: int,
    confusion: np.ndarray,
    num_bins: int,
) -> dict[str, bytes]:
    """Draw every figure.

    Args:
        labels: True classes, int64 ``[example]``.
        probabilities: float64 ``[example, class]``.
        dataset: The data that the examples are of.
        rows: Their row numbers, int64 ``[example]``.
        history: Epochs of the training.
        best_epoch: Epoch whose weights were kept.
        confusion: Counts, int64 ``[true class, predicted class]``.
        num_bins: Bins of the reliability diagram.

    Returns:
        Figure name -> PNG bytes.
    """
    names = [display_name(name, number) for number, name in enumerate(dataset.ref.class_names)]
    mistakes = worst_mistakes(labels, probabilities, _MAX_MISTAKES)
    with style():
        figures = {
            "confusion_matrix": confusion_figure(confusion, names),
            "roc_curves": curve_figure(labels, probabilities, names, "roc"),
            "precision_recall_curves": curve_figure(labels, probabilities, names, "precision_recall"),
            "reliability": reliability_figure(labels, probabilities, num_bins),
            "learning_curves": learning_figure(history, best_epoch),
            **({"training_health": health_figure(history)} if any(record.health for record in history) else {}),
            "worst_mistakes": mistakes_figure(
                dataset, rows[mistakes], labels[mistakes], probabilities[mistakes], names
            ),
        }
        return {name: to_png(figure) for name, figure in figures.items()}


def worst_mistakes(labels: np.ndarray, probabilities: np.ndarray, limit: int) -> np.ndarray:
    """Return positions, int64, of the wrong answers with the least probability for the true class, worst first."""
    loss = true_class_loss(labels, probabilities)
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    return wrong[np.argsort(-loss[wrong], kind="stable")][:limit]


def confusion_figure(confusion: np.ndarray, names: Sequence[str]) -> Figure:
    """Draw a confusion matrix: right answers in blue, mistakes in orange, each by its share of the true class."""
    num_classes = len(names)
    side = float(np.clip(1.9 + 0.42 * num_classes, 3.4, 7.6))
    longest = max(map(len, names)) * 0.075 if num_classes <= 60 else 0.3
    figure, axes = _one_axes(side + longest, side + 0.5 * longest)
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    axes.imshow(_confusion_colours(share), interpolation="nearest")
    if num_classes <= _MAX_NUMBERED_CLASSES:
        size = float(np.clip(11.0 - 0.3 * num_classes, 5.5, 9.0))
        for true, predicted in np.argwhere(confusion > 0):
            dark = share[true, predicted] > 0.5
            axes.text(
                predicted,
                true,
                f"{confusion[true, predicted]}",
                ha="center",
                va="center",
                fontsize=size,
                color="white" if dark else INK,
            )
    every = 1 if num_classes <= 60 else 10
    ticks = range(0, num_classes, every)
    shown = [names[tick] if every == 1 else str(tick) for tick in ticks]
    size = float(np.clip(10.0 - 0.1 * num_classes, 5.0, 9.0)) if every == 1 else 8.0
    axes.set_xticks(ticks, shown, fontsize=size, rotation=90 if max(map(len, shown)) > 2 else 0)
    axes.set_yticks(ticks, shown, fontsize=size)
    axes.tick_params(length=0 if every == 1 else 3)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    return figure


def curve_figure(labels: np.ndarray, probabilities: np.ndarray, names: Sequence[str], kind: str) -> Figure:
    """Draw one curve a class against the rest: the whole square, and its corner where good models end.

    Args:
        labels: True classes, int64 ``[example]``.
        probabilities: float64 ``[example, class]``.
        names: Names to show.
        kind: ``roc`` or ``precision_recall``.
    """
    figure = Figure(figsize=(7.4, 3.5), dpi=DPI)
    whole, corner = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.075, right=0.75, top=0.92, bottom=0.14, wspace=0.27)
    ranked = ranked_classes(labels, probabilities.shape[1])
    scorer, curve = (roc_auc_score, roc_curve) if kind == "roc" else (average_precision_score, _recall_precision)
    areas = {k: float(scorer(labels == k, probabilities[:, k])) for k in ranked}
    hardest_first = sorted(areas, key=areas.__getitem__)
    named = set(hardest_first if len(names) <= MAX_COLOURS else hardest_first[:_NUM_HARDEST])
    handles, shown, colours = [], [], iter(COLOURS)
    for label in [k for k in hardest_first if k not in named] + [k for k in hardest_first if k in named]:
        horizontal, vertical = _thin(*curve(labels == label, probabilities[:, label])[:2])
        colour = next(colours) if label in named else GREY
        for axes in (whole, corner):
            (line,) = axes.plot(horizontal, vertical, color=colour, lw=1.4 if label in named else 0.8)
        if label in named:
            handles.append(line)
            shown.append(f"{names[label]}: {_rounded_down(areas[label])}")
    _frame_curves(whole, corner, kind, min(areas.values(), default=0.0))
    title = ("AUC" if kind == "roc" else "AP") + ("" if len(named) == len(areas) else ", hardest classes")
    if handles:
        corner.legend(
            handles,
            shown,
            title=title,
            loc="upper left",
            bbox_to_anchor=(1.03, 1.02),
            frameon=False,
            fontsize=8,
            title_fontsize=8,
            handlelength=1.2,
            alignment="left",
        )
    else:
        whole.text(0.5, 0.5, "needs two classes in test", ha="center", va="center")
    return figure


def reliability_figure(labels: np.ndarray, probabilities: np.ndarray, num_bins: int) -> Figure:
    """Draw how often the model is right against how sure it is, and how many answers fall into each bin.

    Bars at the points are Wilson's 95% intervals.

    Source:
        Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22(158), 1927.
    """
    figure = Figure(figsize=(4.6, 4.4), dpi=DPI)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
    figure.subplots_adjust(left=0.14, right=0.96, top=0.95, bottom=0.11, hspace=0.12)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = confidence_bins(confidence, num_bins)
    counts = np.bincount(bins, minlength=num_bins)
    used = np.flatnonzero(counts)
    mean = np.bincount(bins, weights=confidence, minlength=num_bins)[used] / counts[used]
    share = np.bincount(bins, weights=right, minlength=num_bins)[used] / counts[used]
    low, high = _wilson(share, counts[used])
    upper.plot([0, 1], [0, 1], color=GREY, lw=1, ls=(0, (4, 3)))
    errors = np.maximum(np.stack([share - low, high - share]), 0.0)
    upper.errorbar(mean, share, errors, fmt="o-", color=COLOURS[0], ms=4, lw=1.2, elinewidth=0.9, capsize=0)
    upper.set(xlim=(0, 1), ylim=(-0.02, 1.02), ylabel="share of right answers")
    upper.text(0.03, 0.97, "below the dashed line: too sure", transform=upper.transAxes, va="top", fontsize=8)
    lower.bar((used + 0.5) / num_bins, counts[used], width=0.9 / num_bins, color=COLOURS[5])
    for number in used:
        text = f"{counts[number]}" if counts[number] < 10_000 else f"{counts[number] / 1000:.0f}k"
        lower.text((number + 0.5) / num_bins, counts[number], text, ha="center", va="bottom", fontsize=6.5)
    lower.set(ylim=(0, counts.max() * 1.25), xlabel="probability of the answer", ylabel="examples")
    return figure


def learning_figure(history: Sequence[EpochRecord], best_epoch: int) -> Figure:
    """Draw loss and accuracy of train and val over the epochs, with the kept epoch marked."""
    figure = Figure(figsize=(7.4, 3.0), dpi=DPI)
    panels = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.085, right=0.98, top=0.92, bottom=0.16, wspace=0.22)
    epochs = [record.epoch for record in history]
    marker = "o" if len(epochs) <= 30 else ""
    for axes, name in zip(panels, ("loss", "accuracy"), strict=True):
        for split, colour in (("train", COLOURS[0]), ("val", COLOURS[1])):
            values = [getattr(record, f"{split}_{name}") for record in history]
            axes.plot(epochs, values, color=colour, marker=marker, ms=3, label=split)
        if epochs:
            axes.axvline(best_epoch, color=GREY, lw=1, ls=(0, (4, 3)), label="kept", zorder=0)
            axes.legend(frameon=False, fontsize=8)
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.set(xlim=(0.5, max(epochs, default=1) + 0.5), xlabel="epoch", ylabel=name)
        axes.grid(axis="y", color=FAINT, lw=0.7)
        axes.set_axisbelow(True)
    return figure


def _one_axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    return figure, figure.add_subplot()


def _confusion_colours(share: np.ndarray) -> np.ndarray:
    """Blend white into blue on the diagonal and into orange elsewhere; a small share of mistakes still shows."""
    blue, orange = (np.array(matplotlib.colors.to_rgb(colour)) for colour in (COLOURS[0], COLOURS[1]))
    right = np.eye(len(share), dtype=bool)[..., None]
    strength = np.where(right, share[..., None], np.where(share > 0, 0.1 + 0.9 * np.sqrt(share), 0.0)[..., None])
    return 1.0 - strength * (1.0 - np.where(right, blue, orange))


def _recall_precision(is_class: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    precision, recall, _ = precision_recall_curve(is_class, scores, drop_intermediate=True)
    return recall, precision


def _thin(horizontal: np.ndarray, vertical: np.ndarray, limit: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """Keep at most about `limit` points of a curve, its ends among them."""
    keep = np.unique(np.linspace(0, len(horizontal) - 1, min(limit, len(horizontal))).astype(np.int64))
    return horizontal[keep], vertical[keep]


def _frame_curves(whole: Axes, corner: Axes, kind: str, worst_area: float) -> None:
    reach = 0.1 if worst_area > 0.97 else 0.3 if worst_area > 0.85 else 0.5
    is_roc = kind == "roc"
    for axes, size in ((whole, 1.0), (corner, reach)):
        horizontal = (0.0, size) if is_roc else (1.0 - size, 1.0)
        margin = 0.02 * size
        axes.set(xlim=(horizontal[0] - margin, horizontal[1] + margin), ylim=(1.0 - size - margin, 1.0 + margin))
        axes.set_xlabel("false positive rate" if is_roc else "recall")
    whole.set_ylabel("true positive rate" if is_roc else "precision")
    corner.set_title("the corner, enlarged", fontsize=8.5)
    if is_roc:
        whole.plot([0, 1], [0, 1], color=GREY, lw=1, ls=(0, (4, 3)))


def _rounded_down(value: float) -> str:
    """Three decimals, cut: what is below 1 never reads 1.000."""
    return f"{np.floor(value * 1000) / 1000:.3f}"


def _wilson(share: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    z = 1.96
    centre = (share + z**2 / (2 * counts)) / (1 + z**2 / counts)
    half = z / (1 + z**2 / counts) * np.sqrt(share * (1 - share) / counts + z**2 / (4 * counts**2))
    return centre - half, centre + half
