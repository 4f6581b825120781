"""What an ablation came to, in words and numbers as people read them: for the terminal, the figures and the page."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence

from assay.ablation.values import shown
from assay.headlines import LOWER_IS_BETTER
from assay.records import AblationPlan, AblationRecord, VariantSummary, Verdict

WORDS = ("helps", "hurts", "no difference", "undetermined", "stopped", "incomplete")
"""Every verdict, in the order in which people want to read them."""


NOTHING = "-"


_METRICS = {"f1_macro": "macro F1", "recall_macro": "macro recall", "log_loss": "log-loss"}


_MAX_NAMED = 2


_HEADINGS = {"interaction": "interactions", "recipe": "recipes"}
"""Kind of contrast -> what stands above it, where that is not the factor's path."""


def headline(record: AblationRecord) -> str:
    """Return what the ablation came to in one or two sentences.

    Args:
        record: The ablation.

    Returns:
        E.g. ``Of 7 levels, dropout_prob=0.5 helps (by 0.0123 in macro F1), 2 hurt and 4 are undetermined: 9 seeds
        would probably decide 3 of them.`` One sentence for each kind of contrast.
    """
    if not record.verdicts:
        return "Only the baseline was trained: there is nothing to compare it with."
    kinds = dict.fromkeys(verdict.kind for verdict in record.verdicts)
    families = [[verdict for verdict in record.verdicts if verdict.kind == kind] for kind in kinds]
    return " ".join(_sentence(family, record.plan.metric) for family in families)


def not_taken_over(names: Sequence[str]) -> list[str]:
    """Return a note about what helps and did not win, in a list; an empty list without any.

    Args:
        names: The comparisons, the one that helps most first.
    """
    if not names:
        return []
    if len(names) == 1:
        return [f"{names[0]} helps, too, and is not among the winners: what won in its place helps more."]
    named = list(names[:_MAX_NAMED]) + ([f"{len(names) - _MAX_NAMED:,} more"] if len(names) > _MAX_NAMED else [])
    return [f"{_join(named)} help, too, and are not among the winners: what won in their place helps more."]


def metric_label(metric: str) -> str:
    """Return what people call a metric, e.g. ``macro F1``."""
    return _METRICS.get(metric, metric.replace("_", " "))


def by_factor(verdicts: Iterable[Verdict]) -> dict[str, list[Verdict]]:
    """Group verdicts by the factor they are about, in order of appearance, interactions last."""
    groups: dict[str, list[Verdict]] = {}
    for verdict in sorted(verdicts, key=lambda verdict: verdict.kind == "interaction"):
        heading = _HEADINGS.get(verdict.kind) or ", ".join(verdict.factors) or "all factors"
        groups.setdefault(heading, []).append(verdict)
    return groups


def extra_seconds(record: AblationRecord, verdict: Verdict) -> float | None:
    """Return what a trial costs beyond one of the baseline; None where either was not trained to its end."""
    summary = next((summary for summary in record.summaries if summary.variant.name == verdict.name), None)
    if summary is None or not summary.num_seeds or {summary.state, record.baseline.state} != {"finished"}:
        return None
    return summary.seconds - record.baseline.seconds


def generalization_gap(summary: VariantSummary, metric: str) -> float:
    """Return how much better the metric is on train than on val; above 0 is overfitting, whatever the metric."""
    gap = summary.train_mean - summary.mean
    return -gap if metric in LOWER_IS_BETTER else gap


def is_measured(verdict: Verdict) -> bool:
    """Whether there is a difference to show: one that was stopped or is incomplete may have none."""
    has_data = verdict.verdict not in ("stopped", "incomplete") or verdict.low < verdict.high
    return has_data and math.isfinite(verdict.difference)


def what_decides(verdict: Verdict) -> str:
    """Return in few words what would decide a verdict, or why it is none; empty where it is decided."""
    if verdict.verdict == "stopped":
        return "fell behind"
    if verdict.verdict == "incomplete":
        return "a trial failed"
    if verdict.verdict != "undetermined":
        return ""
    if verdict.seeds_needed is not None:
        return f"{verdict.seeds_needed:,} seeds"
    return f"{verdict.examples_needed:,} val examples" if verdict.examples_needed else "no number of seeds"


def signed(value: float) -> str:
    """Return a difference with its sign, four decimals, e.g. ``+0.0123``."""
    if math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "-∞" if value < 0 else "+∞"
    return f"{value:+.4f}" if abs(value) >= 0.00005 else "0.0000"


def signed_seconds(value: float | None) -> str:
    """Return extra seconds with as many decimals as make sense, e.g. ``+1.4``; a dash for None."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if abs(value) < 0.05:
        return "0.0"
    return f"{value:+.1f}" if abs(value) < 100 else f"{value:+,.0f}"


def probability(value: float) -> str:
    """Return a p value, four decimals, never as plain 0."""
    if not math.isfinite(value):
        return NOTHING
    return "<0.0001" if value < 0.0001 else f"{value:.4f}"


def duration(seconds: float) -> str:
    """Return a time span in the units that people use, e.g. ``1 h 20 min``."""
    if seconds < 99.5:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes >= 24 * 60:
        return f"{minutes / 60:,.0f} h"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def levels_by_factor(plan: AblationPlan) -> dict[str, list[str]]:
    """Return each params path that is a factor -> the values it is given, in order of appearance."""
    levels: dict[str, list[str]] = {}
    for variant in plan.variants:
        if variant.name in plan.recipes:
            continue
        for path, value in variant.changes.items():
            if value not in levels.setdefault(path, []):
                levels[path].append(value)
    return levels


def plan_facts(plan: AblationPlan) -> list[tuple[str, str]]:
    """Return name -> value of what was planned, as the terminal and the page show it."""
    new = f", {plan.num_done:,} of them done already" if plan.num_done else ""
    baseline = _written(plan.baseline)
    return [
        ("mode", plan.mode),
        ("metric", f"{metric_label(plan.metric)} on val"),
        ("variants", f"{len(plan.variants):,}, the baseline among them"),
        ("seeds", f"{len(plan.seeds):,} each ({_runs_of(plan.seeds)})"),
        ("trials", f"{plan.num_trials:,}{new}"),
        ("epochs", f"{plan.num_epochs:,} to train{', at most' if plan.prunes else ''}"),
        ("time", _time(plan)),
        ("detectable", _detectable(plan)),
        ("margin", f"differences within ±{plan.margin:g} count as none"),
        ("pruning", "levels that fall behind stop early" if plan.prunes else "every trial runs to its end"),
        *([("baseline", baseline)] if baseline else []),
        *(
            (f"recipe {variant.name}", _written(variant.changes))
            for variant in plan.variants
            if variant.name in plan.recipes
        ),
    ]


_SLOWER = ("model", "train.start", "train.batch_size")
"""Sections and paths whose values decide how long an epoch takes."""


def _time(plan: AblationPlan) -> str:
    """How long it will take, as far as that is known: before a variant was trained, its epochs count as all do."""
    if plan.seconds is None:
        return "unknown until a trial was timed"
    paths = {path for variant in plan.variants for path in variant.changes}
    differs = any(f"{path}.".startswith(f"{slower}.") for path in paths for slower in _SLOWER)
    note = ", if all epochs take as long as those that were timed" if differs and plan.seconds else ""
    return f"about {duration(plan.seconds)}{note}"


def _written(levels: Mapping[str, str]) -> str:
    return ", ".join(f"{path} = {shown(json.loads(text))}" for path, text in levels.items())


def _detectable(plan: AblationPlan) -> str:
    if plan.detectable is None:
        return "unknown until the baseline's seeds are trained"
    if math.isinf(plan.detectable):
        return "nothing: one seed, or noise beyond any difference; give more seeds"
    beside = " (more than the margin: smaller ones may stay undetermined)" if plan.detectable > plan.margin else ""
    return f"a difference of {plan.detectable:.4f}, {plan.power:.0%} of the time{beside}"


def _runs_of(seeds: Sequence[int]) -> str:
    """Write seeds briefly: ``0 to 4`` where they follow each other, the first few where there are many."""
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"{seeds[0]} to {seeds[-1]}"
    shown = ", ".join(map(str, seeds[:8]))
    return shown if len(seeds) <= 8 else f"{shown}, ..."


def _sentence(family: Sequence[Verdict], metric: str) -> str:
    """The sentence about all verdicts of one kind."""
    groups = {word: [verdict for verdict in family if verdict.verdict == word] for word in WORDS}
    open_ones = groups.pop("undetermined")
    parts = [_part(word, group, metric) for word, group in groups.items() if group]
    parts += [_part("undetermined", open_ones, metric)] if open_ones else []
    whole = f"Of {len(family):,} {family[0].kind}s, " if len(family) > 1 else ""
    return f"{whole}{_join(parts)}{_would_decide(open_ones) if open_ones else ''}."


def _part(word: str, group: Sequence[Verdict], metric: str) -> str:
    """One clause of the headline; what helps is named, what is one of a kind too."""
    one = len(group) == 1
    if word == "helps":
        best = sorted(group, key=lambda verdict: -verdict.difference)
        if len(group) > _MAX_NAMED:
            gain = f"by {best[0].difference:.4f} in {metric_label(metric)}"
            return f"{len(group):,} help, most of all {best[0].name} ({gain})"
        named = [f"{v.name} {'helps ' if one else ''}(by {v.difference:.4f}{_unit(metric, one)})" for v in best]
        return named[0] if one else f"{_join(named)} help{'' if one else f' {metric_label(metric)}'}"
    who = group[0].name if one else f"{len(group):,}"
    verbs = {
        "hurts": ("hurts", "hurt"),
        "no difference": ("makes no difference", "make no difference"),
        "undetermined": ("is undetermined", "are undetermined"),
        "stopped": ("was stopped early", "were stopped early"),
        "incomplete": ("is incomplete", "are incomplete"),
    }
    return f"{who} {verbs[word][0 if one else 1]}"


def _unit(metric: str, shown: bool) -> str:
    return f" in {metric_label(metric)}" if shown else ""


def _would_decide(open_ones: Sequence[Verdict]) -> str:
    """What it would take to decide the undetermined ones, in a clause of its own."""
    seeds = [verdict.seeds_needed for verdict in open_ones if verdict.seeds_needed is not None]
    others = [verdict for verdict in open_ones if verdict.seeds_needed is None]
    examples = [verdict.examples_needed for verdict in others if verdict.examples_needed]
    them = "it" if len(open_ones) == 1 else "them"
    takes = [(f"{max(seeds):,} seeds", len(seeds))] if seeds else []
    takes += [(f"{max(examples):,} val examples", len(examples))] if examples else []
    if not takes:
        return f": no number of seeds would decide {them}"
    (first, count), *more = takes
    decided = them if count == len(open_ones) else f"{count:,} of them"
    return f": {first} would probably decide {decided}" + "".join(f", {take} {number:,}" for take, number in more)


def _join(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
