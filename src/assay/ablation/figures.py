"""The figures of an ablation, as PNG files.

Colours are Okabe and Ito's, told apart by colour-blind readers; every verdict is written out besides. Learning curves
give variants a colour each; elsewhere blue is better than the baseline and orange worse.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from assay.ablation.canvas import BAND, CHARACTER, FAINT, INK, NAME_CHARACTERS, SOFT, Page, wrap
from assay.ablation.curves import gap_figure, learning_figure
from assay.ablation.values import shown
from assay.ablation.wording import (
    NOTHING,
    by_factor,
    extra_seconds,
    is_measured,
    levels_by_factor,
    metric_label,
    signed,
    signed_seconds,
)
from assay.data.drawing import COLOURS, STYLE, to_png
from assay.headlines import LOWER_IS_BETTER
from assay.records import BASELINE, AblationRecord, Variant, Verdict

VERDICT_COLOURS = {
    "helps": "#0072B2",
    "hurts": "#D55E00",
    "no difference": "#009E73",
    "undetermined": "#A67200",
    "stopped": "#8b949e",
    "incomplete": "#8b949e",
}


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
    names = max(CHARACTER * max(len(line) for row in rows for line in row.lines) + 0.2, 1.5)
    top, height = 0.42, rows[-1].bottom
    page = Page(names + 4.0 + 4.0, top + height + 0.66)
    axes = page.panel(names, top, 4.0, height)
    low, high = _forest_limits(record)
    axes.set(xlim=(low, high), ylim=(height, 0.0))
    page.text(0.12, top - 0.16, "against the baseline", color=SOFT, fontsize=8.5)
    axes.axvspan(-record.plan.margin, record.plan.margin, color=BAND, lw=0, zorder=0)
    axes.axvline(0.0, color=SOFT, lw=1.0, zorder=1)
    right = names + 4.0
    columns = {"difference": right + 1.0, "verdict": right + 1.25, "extra s": right + 3.75}
    for title, place in columns.items():
        page.text(place, top - 0.16, title, ha="left" if title == "verdict" else "right", color=SOFT, fontsize=8.5)
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
        [wrap(_level(known.get(path) if level is None else level), 16, 3) for level in axis]
        for path, axis in zip(pair, (first, second), strict=True)
    ]
    left = CHARACTER * max(len(line) for label in labels[0] for line in label) + 0.75
    wide, high = 1.35, 0.72
    top = 0.36 + 0.17 * max(len(label) for label in labels[1])
    page = Page(max(left + wide * len(second) + 0.25, 4.6), top + high * len(first) + 0.3)
    axes = page.panel(left, top, wide * len(second), high * len(first))
    axes.imshow(_gain_colours(gains), aspect="auto", interpolation="nearest")
    largest = float(np.nanmax(np.abs(gains)))
    for row, column in np.ndindex(means.shape):
        _write_cell(axes, row, column, float(means[row, column]), float(gains[row, column]), largest)
    axes.add_patch(Rectangle((-0.47, -0.44), 0.94, 0.88, fill=False, ec=INK, lw=1.8))
    axes.set_xticks(range(len(second)), ["\n".join(label) for label in labels[1]], fontsize=8.5)
    axes.set_yticks(range(len(first)), ["\n".join(label) for label in labels[0]], fontsize=8.5)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(pair[1], fontweight="bold", fontsize=9, labelpad=6)
    axes.set_ylabel(pair[0], fontweight="bold", fontsize=9, labelpad=6)
    page.text(left, page.height - 0.12, _cell_legend(record, pair), color=SOFT, fontsize=8)
    return page.figure


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
            lines = wrap(heading if verdict is None else verdict.name, NAME_CHARACTERS, 2)
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
    page: Page, axes: Axes, record: AblationRecord, row: _Row, top: float, columns: dict[str, float]
) -> None:
    place = top + row.middle
    if row.verdict is None:
        page.text(0.12, place, "\n".join(row.lines), fontweight="bold", fontsize=8.8)
        return
    verdict = row.verdict
    colour = VERDICT_COLOURS.get(verdict.verdict, SOFT)
    greyed = verdict.verdict in ("stopped", "incomplete")
    page.text(0.26, place, "\n".join(row.lines), fontsize=8.5, color=SOFT if greyed else INK, linespacing=1.1)
    measured = is_measured(verdict)
    axes.axhline(row.middle, color=FAINT, lw=0.6, zorder=0.5)
    if measured:
        _draw_interval(axes, verdict, row.middle, colour)
    text = signed(verdict.difference) if measured else NOTHING
    page.text(columns["difference"], place, text, ha="right", fontsize=8.5, color=SOFT if greyed else INK)
    diverged = f" ({verdict.num_diverged} diverged)" if verdict.num_diverged else ""
    weight = "normal" if greyed else "bold"
    page.text(columns["verdict"], place, verdict.verdict + diverged, color=colour, fontsize=8.5, fontweight=weight)
    cost = signed_seconds(extra_seconds(record, verdict))
    page.text(columns["extra s"], place, cost, ha="right", fontsize=8.5, color=SOFT)


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
        axes.text(column, row, NOTHING, ha="center", va="center", color=SOFT)
        return
    colour = "white" if largest > 0 and abs(gain) > 0.6 * largest else INK
    is_baseline = row == 0 and column == 0
    axes.text(column, row - 0.13, f"{mean:.4f}", ha="center", va="center", color=colour, fontsize=9.5)
    beside = BASELINE if is_baseline else signed(gain)
    axes.text(column, row + 0.22, beside, ha="center", va="center", color=colour, fontsize=7.8)


def _cell_legend(record: AblationRecord, pair: tuple[str, str]) -> str:
    others = len(levels_by_factor(record.plan)) > len(pair)
    averaged = ", mean over the other factors" if others else ""
    return f"{metric_label(record.plan.metric)} on val{averaged}; below: gain over the framed cell"
