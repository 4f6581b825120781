"""One self-contained HTML page of an ablation: no other file, no network, no script."""

import base64
import math
from collections import Counter
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from assay.ablation.wording import (
    NOTHING,
    WORDS,
    by_factor,
    duration,
    extra_seconds,
    generalization_gap,
    headline,
    is_measured,
    metric_label,
    plan_facts,
    probability,
    signed,
    signed_seconds,
    what_decides,
)
from assay.files import replace_file
from assay.headlines import LOWER_IS_BETTER
from assay.records import AblationRecord, Trial, VariantSummary, Verdict

_MEANINGS = {
    "helps": (
        "Better than the baseline, with chance ruled out after Holm's correction over all comparisons made here. "
        "Expect a gain near the stated difference and within its interval, for this data and this budget of epochs."
    ),
    "hurts": (
        "Worse than the baseline, with chance ruled out in the same way. "
        "Its difference is below 0 whatever the metric, because differences are oriented so that above 0 is better."
    ),
    "no difference": (
        "Shown to differ from the baseline by less than the margin, up or down: a finding, not a lack of one. "
        "Choose by cost or by taste."
    ),
    "undetermined": (
        "These trials decide nothing: a gain, a loss and no difference all remain possible. "
        "The line below it says how many seeds in all, or how many val examples, would probably decide it."
    ),
    "stopped": (
        "Stopped early, because it was behind at a look, so that its seconds went to the others. "
        "Its number comes from fewer epochs and gets no verdict."
    ),
    "incomplete": (
        "A trial failed even when it was tried again, so the seeds are not all there. "
        "The list of trials says why; the same command trains only what is missing."
    ),
}
_FIGURES = {
    "forest": (
        "Differences from the baseline",
        "Dot: mean difference; line: its interval; grey band: differences too small to matter. "
        "An arrow marks an interval that goes beyond the axis.",
    ),
    "interaction": (
        "Two factors together",
        "Mean over seeds in each cell, and below it the difference from the framed baseline: blue is better, "
        "orange worse.",
    ),
    "learning_curves": (
        "Learning curves",
        "Line: mean over seeds; band: one standard deviation of the seeds; dashed: where only some of the seeds went "
        "on; cross: where a seed diverged. The legend is in the order in which the curves end.",
    ),
    "generalization_gap": (
        "Generalization gap",
        "How much better a variant is on train than on val: a wide gap is overfitting. The dashed line is the "
        "baseline's.",
    ),
}


def write_report(record: AblationRecord, figures: Mapping[str, str], lineage: Mapping[str, str], path: Path) -> Path:
    """Write the page; every text is escaped, whatever it holds.

    Args:
        record: The ablation.
        figures: Figure name -> path of its PNG, in the order of the page.
        lineage: Name -> value, e.g. git commit and ablation key.
        path: HTML file to write; its folder is made.

    Returns:
        `path`.

    Raises:
        OSError: A figure cannot be read, or the page cannot be written.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8"))
    found = Counter(verdict.verdict for verdict in record.verdicts)
    page = template.render(
        title="Ablation report",
        headline=headline(record),
        summary=_summary(record),
        counts=[{"word": word, "count": found[word], "css": _css(word)} for word in WORDS if found[word]],
        level=f"{100 * record.confidence:.4g}%",
        metric=metric_label(record.plan.metric),
        lower_is_better=record.plan.metric in LOWER_IS_BETTER,
        groups=[(name, [_verdict_row(record, v) for v in group]) for name, group in by_factor(record.verdicts).items()],
        winners=[(name, value) for name, value in record.winners.items()],
        variants=[_variant_row(summary, record.plan.metric) for summary in record.summaries],
        figures=[_figure(name, Path(png).read_bytes()) for name, png in figures.items()],
        meanings=[{"word": word, "css": _css(word), "text": text} for word, text in _MEANINGS.items()],
        method=_method(record),
        plan=plan_facts(record.plan),
        notes=list(dict.fromkeys((*record.notes, *record.plan.notes))),
        trials=[_trial_row(trial, record.plan.metric) for trial in record.trials],
        lineage=list(lineage.items()),
        nothing=NOTHING,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, page.encode("utf-8"))
    return path


def _summary(record: AblationRecord) -> str:
    base = record.baseline
    trials = f"{len(record.trials):,} trial{'s' if len(record.trials) != 1 else ''}"
    trained = "found again, nothing trained" if record.reused else f"{record.num_trained:,} trained now"
    return (
        f"Baseline: {metric_label(record.plan.metric)} {_number(base.mean)} on {record.num_val:,} val examples over "
        f"{base.num_seeds:,} seed{'s' if base.num_seeds != 1 else ''}. {trials}, {trained}, "
        f"{duration(record.seconds)} in all."
    )


def _css(word: str) -> str:
    return word.replace(" ", "-") if word in WORDS else "incomplete"


def _verdict_row(record: AblationRecord, verdict: Verdict) -> dict[str, Any]:
    measured = is_measured(verdict)
    return {
        "name": verdict.name,
        "difference": signed(verdict.difference) if measured else NOTHING,
        "interval": f"{signed(verdict.low)} to {signed(verdict.high)}" if measured else "",
        "p": probability(verdict.p) if measured else NOTHING,
        "p_holm": probability(verdict.p_holm) if measured else NOTHING,
        "verdict": verdict.verdict,
        "css": _css(verdict.verdict),
        "decides": what_decides(verdict),
        "seeds": f"{verdict.num_seeds:,}",
        "diverged": f"{verdict.num_diverged:,} diverged" if verdict.num_diverged else "",
        "seed_share": round(100 * verdict.seed_share) if measured else None,
        "examples_share": round(100 * verdict.examples_share) if measured else None,
        "cost": signed_seconds(extra_seconds(record, verdict)),
        "reason": verdict.reason,
    }


def _variant_row(summary: VariantSummary, metric: str) -> dict[str, Any]:
    state = "" if summary.state == "finished" else summary.state
    diverged = f"{summary.num_diverged:,} diverged" if summary.num_diverged else ""
    return {
        "name": summary.variant.name,
        "is_baseline": summary.variant.is_baseline,
        "state": ", ".join(filter(None, (state, diverged))),
        "n": f"{summary.num_seeds:,}",
        "epochs": f"{summary.num_epochs:,}",
        "mean": _number(summary.mean),
        "sd": _number(summary.sd) if summary.num_seeds > 1 else NOTHING,
        "interval": f"{_number(summary.low)} to {_number(summary.high)}" if math.isfinite(summary.low) else NOTHING,
        "gap": signed(generalization_gap(summary, metric)),
        "seconds": f"{summary.seconds:,.1f}",
    }


def _trial_row(trial: Trial, metric: str) -> dict[str, Any]:
    return {
        "variant": trial.variant,
        "seed": trial.seed,
        "state": trial.state,
        "epochs": trial.num_epochs,
        "value": _number(trial.metrics.get(metric, math.nan)),
        "train": _number(trial.train_metrics.get(metric, math.nan)),
        "seconds": f"{trial.seconds:,.1f}",
        "key": trial.key[:12],
        "message": trial.message,
    }


def _figure(name: str, png: bytes) -> dict[str, str]:
    title, caption = _FIGURES.get(name, (name.replace("_", " ").capitalize(), ""))
    return {"title": title, "caption": caption, "base64": base64.b64encode(png).decode("ascii")}


def _method(record: AblationRecord) -> list[str]:
    comparisons = len(record.verdicts)
    extra = [
        "An interaction is how much one factor's effect changes with the other's level: it helps where both together "
        "give more than the sum of both, which does not yet make them the best cell."
    ] * any(verdict.kind == "interaction" for verdict in record.verdicts)
    return [
        "What is random: initial weights, batch order, dropout masks and augmentation, which the seed draws, and "
        f"which {record.num_val:,} examples happen to be in val. The intervals hold both; the two shares say which of "
        "them is the larger part of a difference's uncertainty, and so whether more seeds or more val examples help.",
        "Every variant is trained with the same seeds, and differences are taken seed by seed: what a seed does to "
        "both sides cancels.",
        *["Each seed has its own division into train and val, the same for all variants; test is the same for all."]
        * record.plan.resamples_splits,
        f"The interval is the {100 * record.confidence:.4g}% interval of that comparison by itself. p is two-sided; "
        f"Holm p is corrected for making {comparisons:,} comparison{'s' if comparisons != 1 else ''} at once "
        "(Holm, 1979), and verdicts rest on it: were no level any different, the chance of a single helps or hurts "
        f"would be at most {record.plan.alpha:.2g}.",
        *extra,
        "A diverged trial counts as a model that always answers the most frequent class; it is not left out.",
        "Everything here was measured on val. The test examples were not touched: whoever chooses by this page and "
        "trains again still gets an honest test result.",
    ]


def _number(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else NOTHING
