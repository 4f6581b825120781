"""Figures of how variants learn: curves over epochs, and the gap between train and val."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from assay.ablation.canvas import CHARACTER, FAINT, GREY, INK, NAME_CHARACTERS, SOFT, Page, wrap
from assay.ablation.wording import (
    generalization_gap,
    is_measured,
    metric_label,
    signed,
)
from assay.data.drawing import COLOURS
from assay.headlines import LOWER_IS_BETTER
from assay.records import BASELINE, AblationRecord, Trial, VariantSummary

MAX_COLOURS = 8


_PALETTE = (*COLOURS[:6], "#7F5539")


def learning_figure(record: AblationRecord) -> Figure | None:
    """Draw val over the epochs for each variant: mean and range over seeds, and the end enlarged; None without any."""
    field, label = ("val_loss", "val loss") if record.plan.metric == "log_loss" else ("val_accuracy", "val accuracy")
    trials = {s.variant.name: [t for t in record.trials if t.variant == s.variant.name] for s in record.summaries}
    curves = {name: curve for name, group in trials.items() if (curve := _curve(group, field))}
    if not curves:
        return None
    upward = 1.0 if field == "val_loss" else -1.0
    named = sorted((n for n in highlighted(record) if n in curves), key=lambda n: upward * curves[n].mean[-1])
    lines = [(*wrap(name, 30, 2), *_remarks(trials[name])) for name in named]
    side = CHARACTER * 0.92 * max((len(line) for wrapped in lines for line in wrapped), default=8) + 0.75
    rest = sorted(curves.keys() - set(named))
    page = Page(9.1 + side, 4.2)
    whole, end = page.panel(0.75, 0.4, 4.0, 3.25), page.panel(5.35, 0.4, 3.6, 3.25)
    handles = []
    for axes in (whole, end):
        for name in rest:
            _draw_curve(axes, curves[name], GREY, 0.7, band=False)
        handles = [
            _draw_curve(axes, curves[name], colour, 2.0 if name == BASELINE else 1.4, band=True)
            for name, colour in zip(named, _colours(named), strict=True)
        ]
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        axes.grid(axis="y", color=FAINT, lw=0.7)
        axes.set_axisbelow(True)
    whole.set_ylabel(label)
    _enlarge(whole, end, list(curves.values()))
    texts = ["\n".join(wrapped) for wrapped in lines]
    if rest:
        handles.append(whole.plot([], [], color=GREY, lw=0.9)[0])
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
    lines = {name: wrap(name, NAME_CHARACTERS, 2) for name in order}
    heights = np.array([0.14 + 0.15 * len(lines[name]) for name in order])
    middles = np.cumsum(heights) - heights / 2
    names = CHARACTER * max(len(line) for wrapped in lines.values() for line in wrapped) + 0.25
    page = Page(names + 6.35, float(heights.sum()) + 1.05)
    axes = page.panel(names, 0.4, 4.6, float(heights.sum()))
    base = gaps.get(BASELINE)
    for name, middle in zip(order, middles, strict=True):
        colour = INK if name == BASELINE or base is None else COLOURS[1] if gaps[name] > base else COLOURS[0]
        axes.plot([0.0, gaps[name]], [middle, middle], color=colour, lw=2.2, alpha=0.45, solid_capstyle="butt")
        axes.plot([gaps[name]], [middle], "o", color=colour, ms=5.5)
        weight = "bold" if name == BASELINE else "normal"
        page.text(names - 0.1, 0.4 + middle, "\n".join(lines[name]), ha="right", fontsize=8.5, fontweight=weight)
        summary = next(summary for summary in record.summaries if summary.variant.name == name)
        page.text(names + 5.3, 0.4 + middle, signed(gaps[name]), ha="right", fontsize=8.5, color=colour)
        page.text(names + 5.4, 0.4 + middle, _mark(summary), fontsize=8, color=SOFT)
    if base is not None:
        axes.axvline(base, color=SOFT, lw=1, ls=(0, (4, 3)), zorder=0)
    page.text(names + 5.3, 0.24, "gap", ha="right", fontsize=8.5, color=SOFT)
    page.text(names, 0.24, "orange: wider than the baseline's (dashed)   blue: narrower", fontsize=8, color=SOFT)
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
    end.set_title("the last half, enlarged" if last > 3 else "enlarged", fontsize=9, color=SOFT)
    late = [curve.mean[curve.epochs >= first] for curve in curves]
    values = np.concatenate([part for part in late if len(part)])
    middle, spread = float(np.median(values)), float(np.median(np.abs(values - np.median(values))))
    kept = values[np.abs(values - middle) <= max(12 * spread, 1e-3)]
    pad = 0.15 * float(np.ptp(kept)) + 1e-3
    end.set_ylim(float(kept.min()) - pad, float(kept.max()) + pad)


def _colours(named: Sequence[str]) -> list[str]:
    """Black for the baseline, then the palette."""
    palette = iter(_PALETTE)
    return [INK if name == BASELINE else next(palette) for name in named]


def _remarks(trials: Sequence[Trial]) -> list[str]:
    counts = {state: sum(trial.state == state for trial in trials) for state in ("diverged", "stopped", "failed")}
    found = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    return [found + (" (cross)" if counts["diverged"] else "")] if found else []


def _mark(summary: VariantSummary) -> str:
    if summary.num_diverged:
        return f"{summary.num_diverged} diverged"
    return "" if summary.state == "finished" else summary.state
