"""The figures of an ablation, as PNG files.

Colours are Okabe and Ito's, told apart by colour-blind readers; every verdict is written out besides. Learning curves
give variants a colour each; elsewhere blue is better than the baseline and orange worse.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from assay.ablation.design import shown
from assay.ablation.report import (
    NOTHING,
    by_factor,
    extra_seconds,
    generalization_gap,
    is_measured,
    levels_by_factor,
    metric_label,
    signed,
    signed_seconds,
)
from assay.evaluation.figures import COLOURS, STYLE, to_png
from assay.headlines import LOWER_IS_BETTER
from assay.records import BASELINE, AblationRecord, Trial, Variant, VariantSummary, Verdict

VERDICT_COLOURS = {
    "helps": "#0072B2",
    "hurts": "#D55E00",
    "no difference": "#009E73",
    "undetermined": "#A67200",
    "stopped": "#8b949e",
    "incomplete": "#8b949e",
}
MAX_COLOURS = 8
_PALETTE = (*COLOURS[:6], "#7F5539")
_INK, _SOFT, _GREY, _FAINT, _BAND = "#24292f", "#59636e", "#b8bcc2", "#e4e7eb", "#eceff3"
_DPI = 144
_LINE, _CHARACTER = 0.2, 0.078
_NAME_CHARACTERS = 40


def draw_ablation(record: AblationRecord, folder: Path) -> dict[str, str]:
    """Draw every figure that the ablation has something for.

    Args:
        record: The ablation.
        folder: Where the PNG files go; it is made.

    Returns:
        Figure name -> path of its PNG, in the order in which they are read.

    Raises:
        OSError: The folder cannot be written.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figures = {
            "forest": forest_figure(record) if record.verdicts else None,
            "interaction": interaction_figure(record),
            "learning_curves": learning_figure(record),
            "generalization_gap": gap_figure(record),
        }
        pictures = {name: to_png(figure) for name, figure in figures.items() if figure is not None}
    folder.mkdir(parents=True, exist_ok=True)
    for name, png in pictures.items():
        (folder / f"{name}.png").write_bytes(png)
    return {name: str(folder / f"{name}.png") for name in pictures}


def forest_figure(record: AblationRecord) -> Figure:
    """Draw each contrast's difference with its interval, by factor, with verdict and cost in words beside it."""
    rows = list(_forest_rows(by_factor(record.verdicts)))
    names = max(_CHARACTER * max(len(line) for row in rows for line in row.lines) + 0.2, 1.5)
    top, height = 0.42, rows[-1].bottom
    page = _Page(names + 4.0 + 4.0, top + height + 0.66)
    axes = page.panel(names, top, 4.0, height)
    low, high = _forest_limits(record)
    axes.set(xlim=(low, high), ylim=(height, 0.0))
    page.text(0.12, top - 0.16, "against the baseline", color=_SOFT, fontsize=8.5)
    axes.axvspan(-record.plan.margin, record.plan.margin, color=_BAND, lw=0, zorder=0)
    axes.axvline(0.0, color=_SOFT, lw=1.0, zorder=1)
    right = names + 4.0
    columns = {"difference": right + 1.0, "verdict": right + 1.25, "extra s": right + 3.75}
    for title, place in columns.items():
        page.text(place, top - 0.16, title, ha="left" if title == "verdict" else "right", color=_SOFT, fontsize=8.5)
    page.text(names + 0.02, top - 0.16, "← hurts", color=VERDICT_COLOURS["hurts"], fontsize=8.5)
    page.text(right - 0.02, top - 0.16, "helps →", color=VERDICT_COLOURS["helps"], fontsize=8.5, ha="right")
    for row in rows:
        _draw_forest_row(page, axes, record, row, top, columns)
    level = f"{100 * record.confidence:.4g}%"
    axes.set_xlabel(
        f"difference in {metric_label(record.plan.metric)} on val, above 0 is better, with {level} interval;\n"
        f"band: within the margin of ±{record.plan.margin:g}",
        fontsize=8.5,
    )
    _show_differences(axes)
    return page.figure


def interaction_figure(record: AblationRecord) -> Figure | None:
    """Draw the mean of every pair of levels of the two factors that interact most; None but for factorial mode."""
    pair = _most_interacting(record)
    if record.plan.mode != "factorial" or pair is None:
        return None
    levels = levels_by_factor(record.plan)
    first, second = ([None, *levels[path]] for path in pair)
    means = np.array([[_cell_mean(record, pair, (one, two)) for two in second] for one in first])
    sign = -1.0 if record.plan.metric in LOWER_IS_BETTER else 1.0
    gains = sign * (means - means[0, 0])
    known = record.plan.baseline
    labels = [
        [_wrap(_level(known.get(path) if level is None else level), 16, 3) for level in axis]
        for path, axis in zip(pair, (first, second), strict=True)
    ]
    left = _CHARACTER * max(len(line) for label in labels[0] for line in label) + 0.75
    wide, high = 1.35, 0.72
    top = 0.36 + 0.17 * max(len(label) for label in labels[1])
    page = _Page(max(left + wide * len(second) + 0.25, 4.6), top + high * len(first) + 0.3)
    axes = page.panel(left, top, wide * len(second), high * len(first))
    axes.imshow(_gain_colours(gains), aspect="auto", interpolation="nearest")
    largest = float(np.nanmax(np.abs(gains)))
    for row, column in np.ndindex(means.shape):
        _write_cell(axes, row, column, float(means[row, column]), float(gains[row, column]), largest)
    axes.add_patch(Rectangle((-0.47, -0.44), 0.94, 0.88, fill=False, ec=_INK, lw=1.8))
    axes.set_xticks(range(len(second)), ["\n".join(label) for label in labels[1]], fontsize=8.5)
    axes.set_yticks(range(len(first)), ["\n".join(label) for label in labels[0]], fontsize=8.5)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(pair[1], fontweight="bold", fontsize=9, labelpad=6)
    axes.set_ylabel(pair[0], fontweight="bold", fontsize=9, labelpad=6)
    page.text(left, page.height - 0.12, _cell_legend(record, pair), color=_SOFT, fontsize=8)
    return page.figure


def learning_figure(record: AblationRecord) -> Figure | None:
    """Draw val over the epochs for each variant: mean and range over seeds, and the end enlarged; None without any."""
    field, label = ("val_loss", "val loss") if record.plan.metric == "log_loss" else ("val_accuracy", "val accuracy")
    trials = {s.variant.name: [t for t in record.trials if t.variant == s.variant.name] for s in record.summaries}
    curves = {name: curve for name, group in trials.items() if (curve := _curve(group, field))}
    if not curves:
        return None
    upward = 1.0 if field == "val_loss" else -1.0
    named = sorted((n for n in highlighted(record) if n in curves), key=lambda n: upward * curves[n].mean[-1])
    lines = [(*_wrap(name, 30, 2), *_remarks(trials[name])) for name in named]
    side = _CHARACTER * 0.92 * max((len(line) for wrapped in lines for line in wrapped), default=8) + 0.75
    rest = sorted(curves.keys() - set(named))
    page = _Page(9.1 + side, 4.2)
    whole, end = page.panel(0.75, 0.4, 4.0, 3.25), page.panel(5.35, 0.4, 3.6, 3.25)
    handles = []
    for axes in (whole, end):
        for name in rest:
            _draw_curve(axes, curves[name], _GREY, 0.7, band=False)
        handles = [
            _draw_curve(axes, curves[name], colour, 2.0 if name == BASELINE else 1.4, band=True)
            for name, colour in zip(named, _colours(named), strict=True)
        ]
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        axes.grid(axis="y", color=_FAINT, lw=0.7)
        axes.set_axisbelow(True)
    whole.set_ylabel(label)
    _enlarge(whole, end, list(curves.values()))
    texts = ["\n".join(wrapped) for wrapped in lines]
    if rest:
        handles.append(whole.plot([], [], color=_GREY, lw=0.9)[0])
        texts.append(f"{len(rest)} other{'s' if len(rest) != 1 else ''}")
    page.figure.legend(
        handles,
        texts,
        loc="upper left",
        bbox_to_anchor=(9.05 / page.width, 1 - 0.3 / page.height),
        frameon=False,
        fontsize=8.2,
        handlelength=1.3,
        labelspacing=0.65,
    )
    return page.figure


def gap_figure(record: AblationRecord) -> Figure | None:
    """Draw how much better each variant is on train than on val, widest gap first, beside the baseline's."""
    metric = record.plan.metric
    gaps = {
        summary.variant.name: gap
        for summary in record.summaries
        if summary.num_seeds and math.isfinite(gap := generalization_gap(summary, metric))
    }
    if not gaps:
        return None
    order = sorted(gaps, key=lambda name: -gaps[name])
    lines = {name: _wrap(name, _NAME_CHARACTERS, 2) for name in order}
    heights = np.array([0.14 + 0.15 * len(lines[name]) for name in order])
    middles = np.cumsum(heights) - heights / 2
    names = _CHARACTER * max(len(line) for wrapped in lines.values() for line in wrapped) + 0.25
    page = _Page(names + 6.35, float(heights.sum()) + 1.05)
    axes = page.panel(names, 0.4, 4.6, float(heights.sum()))
    base = gaps.get(BASELINE)
    for name, middle in zip(order, middles, strict=True):
        colour = _INK if name == BASELINE or base is None else COLOURS[1] if gaps[name] > base else COLOURS[0]
        axes.plot([0.0, gaps[name]], [middle, middle], color=colour, lw=2.2, alpha=0.45, solid_capstyle="butt")
        axes.plot([gaps[name]], [middle], "o", color=colour, ms=5.5)
        weight = "bold" if name == BASELINE else "normal"
        page.text(names - 0.1, 0.4 + middle, "\n".join(lines[name]), ha="right", fontsize=8.5, fontweight=weight)
        summary = next(summary for summary in record.summaries if summary.variant.name == name)
        page.text(names + 5.3, 0.4 + middle, signed(gaps[name]), ha="right", fontsize=8.5, color=colour)
        page.text(names + 5.4, 0.4 + middle, _mark(summary), fontsize=8, color=_SOFT)
    if base is not None:
        axes.axvline(base, color=_SOFT, lw=1, ls=(0, (4, 3)), zorder=0)
    page.text(names + 5.3, 0.24, "gap", ha="right", fontsize=8.5, color=_SOFT)
    page.text(names, 0.24, "orange: wider than the baseline's (dashed)   blue: narrower", fontsize=8, color=_SOFT)
    worse = "val minus train" if metric in LOWER_IS_BETTER else "train minus val"
    axes.set(ylim=(float(heights.sum()), 0.0), yticks=[])
    low, high = min(0.0, *gaps.values()), max(1e-6, *gaps.values())
    axes.set_xlim(low - (0.04 * (high - low) if low else 0.0), high + 0.04 * (high - low))
    axes.set_xlabel(f"{metric_label(metric)}, {worse}")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.spines["left"].set_position(("data", 0.0))
    return page.figure


def highlighted(record: AblationRecord, limit: int = MAX_COLOURS) -> list[str]:
    """Return the variants that get a colour: all of a few; of many, the baseline, what helps most, the most different.

    Args:
        record: The ablation.
        limit: Most variants to return.

    Returns:
        Names, the baseline first, otherwise by rank.
    """
    names = [summary.variant.name for summary in record.summaries]
    if len(names) <= limit:
        return names
    measured = [verdict for verdict in record.verdicts if is_measured(verdict) and verdict.name in names]
    ranked = [v.name for v in sorted(measured, key=lambda verdict: -abs(verdict.difference))]
    best = sorted((v for v in measured if v.verdict == "helps"), key=lambda verdict: -verdict.difference)
    winners = [verdict.name for verdict in best[: limit // 2]]
    return list(dict.fromkeys([BASELINE, *winners, *ranked, *names]))[:limit]


class _Page:
    """A figure that is laid out in inches from its upper left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height), dpi=_DPI)

    def panel(self, left: float, top: float, width: float, height: float) -> Axes:
        """Add axes at a place."""
        place = (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(place)

    def text(self, left: float, top: float, text: str, **how: Any) -> None:
        """Write text whose middle is at `top`; single lines share their baseline."""
        align = "center" if "\n" in text else "center_baseline"
        self.figure.text(left / self.width, 1 - top / self.height, text, **({"va": align} | how))


@dataclass(frozen=True)
class _Row:
    """One line of the forest plot: a heading, or a verdict.

    Attributes:
        lines: Its text, wrapped.
        middle: Inches from the panel's upper edge.
        bottom: The same, of its lower edge.
        verdict: None for a heading.
    """

    lines: tuple[str, ...]
    middle: float
    bottom: float
    verdict: Verdict | None


def _forest_rows(groups: dict[str, list[Verdict]]) -> Iterator[_Row]:
    bottom = 0.04
    for heading, verdicts in groups.items():
        for verdict in (None, *verdicts):
            lines = _wrap(heading if verdict is None else verdict.name, _NAME_CHARACTERS, 2)
            height = 0.32 if verdict is None else 0.12 + 0.145 * len(lines)
            yield _Row(lines, bottom + height / 2 + (0.04 if verdict is None else 0.0), bottom + height, verdict)
            bottom += height
        bottom += 0.05


def _forest_limits(record: AblationRecord) -> tuple[float, float]:
    """Limits that show what most contrasts do; a diverged one does not squash them all."""
    measured = [v for v in record.verdicts if is_measured(v) and math.isfinite(v.low) and math.isfinite(v.high)]
    reach = [max(abs(verdict.low), abs(verdict.high)) for verdict in measured]
    limit = max(4 * float(np.median(reach)) if reach else 0.0, 4 * record.plan.margin)
    low = max(min([verdict.low for verdict in measured], default=0.0), -limit)
    high = min(max([verdict.high for verdict in measured], default=0.0), limit)
    low, high = min(low, -1.3 * record.plan.margin), max(high, 1.3 * record.plan.margin)
    return low - 0.05 * (high - low), high + 0.05 * (high - low)


def _draw_forest_row(
    page: _Page, axes: Axes, record: AblationRecord, row: _Row, top: float, columns: dict[str, float]
) -> None:
    place = top + row.middle
    if row.verdict is None:
        page.text(0.12, place, "\n".join(row.lines), fontweight="bold", fontsize=8.8)
        return
    verdict = row.verdict
    colour = VERDICT_COLOURS.get(verdict.verdict, _SOFT)
    greyed = verdict.verdict in ("stopped", "incomplete")
    page.text(0.26, place, "\n".join(row.lines), fontsize=8.5, color=_SOFT if greyed else _INK, linespacing=1.1)
    measured = is_measured(verdict)
    axes.axhline(row.middle, color=_FAINT, lw=0.6, zorder=0.5)
    if measured:
        _draw_interval(axes, verdict, row.middle, colour)
    text = signed(verdict.difference) if measured else NOTHING
    page.text(columns["difference"], place, text, ha="right", fontsize=8.5, color=_SOFT if greyed else _INK)
    diverged = f" ({verdict.num_diverged} diverged)" if verdict.num_diverged else ""
    weight = "normal" if greyed else "bold"
    page.text(columns["verdict"], place, verdict.verdict + diverged, color=colour, fontsize=8.5, fontweight=weight)
    cost = signed_seconds(extra_seconds(record, verdict))
    page.text(columns["extra s"], place, cost, ha="right", fontsize=8.5, color=_SOFT)


def _draw_interval(axes: Axes, verdict: Verdict, middle: float, colour: str) -> None:
    """Draw dot and interval; what lies beyond the axis ends in an arrow."""
    low, high = axes.get_xlim()
    ends = (max(verdict.low, low), min(verdict.high, high))
    face = colour if verdict.verdict in ("helps", "hurts", "no difference") else "white"
    if ends[0] < ends[1]:
        axes.plot(ends, [middle, middle], color=colour, lw=1.7, solid_capstyle="butt", zorder=2)
    if verdict.low < low:
        axes.plot([low], [middle], marker="<", color=colour, ms=6, clip_on=False, zorder=4)
    if verdict.high > high:
        axes.plot([high], [middle], marker=">", color=colour, ms=6, clip_on=False, zorder=4)
    if low <= verdict.difference <= high:
        axes.plot([verdict.difference], [middle], "o", color=colour, mfc=face, mew=1.5, ms=6, zorder=3)


def _show_differences(axes: Axes) -> None:
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: "0" if abs(value) < 1e-12 else f"{value:+.4g}"))
    axes.tick_params(axis="x", labelsize=8.5)


def _most_interacting(record: AblationRecord) -> tuple[str, str] | None:
    """The two factors with the largest interaction; the first two where none was tested; None for fewer."""
    pairs = [v for v in record.verdicts if v.kind == "interaction" and len(v.factors) == 2 and is_measured(v)]
    if pairs:
        first, second = max(pairs, key=lambda verdict: abs(verdict.difference)).factors
        return first, second
    paths = list(levels_by_factor(record.plan))
    return (paths[0], paths[1]) if len(paths) > 1 else None


def _level(text: str | None) -> str:
    return BASELINE if text is None else shown(json.loads(text))


def _cell_mean(record: AblationRecord, pair: tuple[str, str], levels: tuple[str | None, str | None]) -> float:
    """Mean over the variants with these two levels that trained to the end; NaN where there is none."""
    num_epochs = record.baseline.num_epochs
    cell = [summary for summary in record.summaries if _has(summary.variant, pair, levels)]
    found = [summary.mean for summary in cell if summary.num_seeds and summary.num_epochs == num_epochs]
    return float(np.mean(found)) if found else math.nan


def _has(variant: Variant, pair: tuple[str, str], levels: tuple[str | None, str | None]) -> bool:
    return all(variant.changes.get(path) == level for path, level in zip(pair, levels, strict=True))


def _gain_colours(gains: np.ndarray) -> np.ndarray:
    """Blend white into blue for what is better than the baseline and into orange for what is worse."""
    blue, orange = (np.array(matplotlib.colors.to_rgb(colour)) for colour in (COLOURS[0], COLOURS[1]))
    largest = np.nanmax(np.abs(gains))
    strength = (np.abs(gains) / largest if largest > 0 else np.zeros_like(gains))[..., None]
    colours = 1.0 - 0.85 * strength * (1.0 - np.where(gains[..., None] > 0, blue, orange))
    return np.where(np.isnan(colours), 0.93, colours)


def _write_cell(axes: Axes, row: int, column: int, mean: float, gain: float, largest: float) -> None:
    if math.isnan(mean):
        axes.text(column, row, NOTHING, ha="center", va="center", color=_SOFT)
        return
    colour = "white" if largest > 0 and abs(gain) > 0.6 * largest else _INK
    is_baseline = row == 0 and column == 0
    axes.text(column, row - 0.13, f"{mean:.4f}", ha="center", va="center", color=colour, fontsize=9.5)
    beside = BASELINE if is_baseline else signed(gain)
    axes.text(column, row + 0.22, beside, ha="center", va="center", color=colour, fontsize=7.8)


def _cell_legend(record: AblationRecord, pair: tuple[str, str]) -> str:
    others = len(levels_by_factor(record.plan)) > len(pair)
    averaged = ", mean over the other factors" if others else ""
    return f"{metric_label(record.plan.metric)} on val{averaged}; below: gain over the framed cell"


@dataclass(frozen=True)
class _Curve:
    """What the seeds of one variant did, epoch by epoch.

    Attributes:
        epochs: Epoch numbers, int64 ``[epoch]``.
        mean: Mean over seeds, float64 ``[epoch]``.
        low: Mean minus one standard deviation over seeds, no lower than the lowest seed.
        high: The same above.
        num_whole: Leading epochs that every seed reached.
        dead_ends: Last epoch and value of each seed that diverged.
    """

    epochs: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    num_whole: int
    dead_ends: tuple[tuple[int, float], ...]


def _curve(trials: Sequence[Trial], field: str) -> _Curve | None:
    """Summarise the seeds of a variant; diverged ones only by where they end, unless there is no other."""
    points = {
        trial.seed: {r.epoch: v for r in trial.history if math.isfinite(v := float(getattr(r, field)))}
        for trial in trials
        if trial.state != "failed"
    }
    diverged = {trial.seed for trial in trials if trial.state == "diverged"}
    sound = [values for seed, values in points.items() if values and seed not in diverged]
    dead_ends = tuple(max(points[seed].items()) for seed in sorted(diverged) if points[seed])
    used = sound or [values for values in points.values() if values]
    epochs = sorted({epoch for values in used for epoch in values})
    if not epochs:
        return None
    columns = [[values[epoch] for values in used if epoch in values] for epoch in epochs]
    num_whole = next((k for k, column in enumerate(columns) if len(column) < len(used)), len(epochs))
    mean = np.array([np.mean(column) for column in columns])
    sd = np.array([np.std(column, ddof=1) if len(column) > 1 else 0.0 for column in columns])
    low, high = (np.array([how(column) for column in columns]) for how in (min, max))
    return _Curve(np.array(epochs), mean, np.maximum(mean - sd, low), np.minimum(mean + sd, high), num_whole, dead_ends)


def _draw_curve(axes: Axes, curve: _Curve, colour: str, width: float, band: bool) -> Any:
    """Draw one variant; returns the handle of its line."""
    end = curve.num_whole
    marker = "o" if len(curve.epochs) == 1 else ""
    zorder = 3 if band else 1
    (line,) = axes.plot(curve.epochs[:end], curve.mean[:end], color=colour, lw=width, marker=marker, zorder=zorder)
    if end < len(curve.epochs):
        tail = slice(max(end - 1, 0), None)
        axes.plot(curve.epochs[tail], curve.mean[tail], color=colour, lw=width, ls=(0, (3, 2)), zorder=zorder)
    if band:
        axes.fill_between(curve.epochs, curve.low, curve.high, color=colour, alpha=0.11, lw=0, zorder=2)
        for epoch, value in curve.dead_ends:
            axes.plot([epoch], [value], "x", color=colour, ms=7, mew=2, zorder=4)
    return line


def _enlarge(whole: Axes, end: Axes, curves: Sequence[_Curve]) -> None:
    """Limit both panels: all of it, and the last half of the epochs at the height where they lie."""
    last = max(int(curve.epochs[-1]) for curve in curves)
    first = last / 2 if last > 3 else 1
    whole.set_xlim(0.5, last + 0.5)
    end.set_xlim(first - 0.25, last + 0.25)
    end.set_title("the last half, enlarged" if last > 3 else "enlarged", fontsize=9, color=_SOFT)
    late = [curve.mean[curve.epochs >= first] for curve in curves]
    values = np.concatenate([part for part in late if len(part)])
    middle, spread = float(np.median(values)), float(np.median(np.abs(values - np.median(values))))
    kept = values[np.abs(values - middle) <= max(12 * spread, 1e-3)]
    pad = 0.15 * float(np.ptp(kept)) + 1e-3
    end.set_ylim(float(kept.min()) - pad, float(kept.max()) + pad)


def _colours(named: Sequence[str]) -> list[str]:
    """Black for the baseline, then the palette."""
    palette = iter(_PALETTE)
    return [_INK if name == BASELINE else next(palette) for name in named]


def _remarks(trials: Sequence[Trial]) -> list[str]:
    counts = {state: sum(trial.state == state for trial in trials) for state in ("diverged", "stopped", "failed")}
    found = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    return [found + (" (cross)" if counts["diverged"] else "")] if found else []


def _mark(summary: VariantSummary) -> str:
    if summary.num_diverged:
        return f"{summary.num_diverged} diverged"
    return "" if summary.state == "finished" else summary.state


def _wrap(name: str, width: int, max_lines: int) -> tuple[str, ...]:
    """Break a name into lines of glyphs that the font has; what does not fit ends in an ellipsis."""
    line = "".join(character if ord(character) < 0x250 else "?" for character in " ".join(name.split()))
    words = re.split(r"(?<=[ (,])", line)
    pieces = [word[start : start + width] for word in words for start in range(0, max(len(word), 1), width)]
    lines = [""]
    for piece in pieces:
        if len((lines[-1] + piece).rstrip()) <= width:
            lines[-1] += piece
        else:
            lines.append(piece)
    kept = [line.rstrip() for line in lines[:max_lines]]
    if len(lines) > max_lines:
        kept[-1] = f"{kept[-1][: width - 2]} …"
    return tuple(kept)
