"""The gate: what a challenger has to show before it becomes champion, rule by rule.

Pure functions of two models' answers to the same test examples and of what was measured about them. The rules come in
the order in which people read them. First whether the challenger is sound at all: its files, its numbers, its floors,
naive baselines, calibration, latency and size; a failure means ``refused``. Then, where there is a champion, whether it
is shown to be better (or not worse), which decides ``kept champion``, and whether it is worse on any part of test,
which means ``refused`` again. Nothing is computed from numbers that cannot be trusted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from assay.headlines import BASELINES
from assay.params import GateParams
from assay.records import FIRST, KEPT, PROMOTED, REFUSED, Interval, Look, Rule
from assay.registry.comparison import (
    COMPARISONS,
    label_of,
    make_rule,
    non_inferiority,
    slice_rule,
    superiority,
)
from assay.registry.paired import compare, count
from assay.registry.slices import Slice

CALIBRATION = "expected_calibration_error"
_MAX_NAMED = 5


@dataclass(frozen=True, eq=False)
class Candidate:
    """A model at the gate.

    Attributes:
        probabilities: Its answers to the test examples, float64 ``[example, class]``.
        class_names: What its columns stand for.
        metrics: Its test metrics with intervals, as in `assay.records.Evaluation`; read of the challenger only.
        baselines: Baseline -> metric -> value, from the same evaluation; read of the challenger only.
        size_bytes: Its weights file.
        latency_ms: Median time to answer one example on one thread; None where nobody measured it.
        is_finite: Whether all weights are finite.
        manifest_error: What is wrong with its files; empty if they are what its manifest says.
        reload_error: How its answers differ after loading it again; empty if they do not.
        num_seen: Test examples that were in its training data.
    """

    probabilities: np.ndarray
    class_names: tuple[str, ...]
    metrics: Mapping[str, Interval] = field(default_factory=dict)
    baselines: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    size_bytes: int = 0
    latency_ms: float | None = None
    is_finite: bool = True
    manifest_error: str = ""
    reload_error: str = ""
    num_seen: int = 0

    @property
    def answers(self) -> np.ndarray:
        """The most probable class, int64 ``[example]``; the first one on a tie."""
        found: np.ndarray = self.probabilities.argmax(axis=1)
        return found


@dataclass(frozen=True, eq=False)
class TestSet:
    """The test examples that both models answered.

    Attributes:
        labels: True classes, int64 ``[example]``.
        class_names: Names of the classes.
        slices: Parts of them on which the challenger must not be worse.
    """

    __test__ = False  # pytest takes classes of this name for tests

    labels: np.ndarray
    class_names: tuple[str, ...]
    slices: tuple[Slice, ...] = ()


def judge(
    challenger: Candidate,
    champion: Candidate | None,
    test: TestSet,
    params: GateParams,
    look: Look | None,
    seed_sd: float = 0.0,
) -> tuple[Rule, ...]:
    """Ask every rule of the gate.

    Args:
        challenger: The model that wants to become champion.
        champion: The present champion's answers to the same examples; None where there is none.
        test: The test examples.
        params: What has to be shown.
        look: This look at the test set; needed where there is a champion.
        seed_sd: Standard deviation of `params.metric` between seeds; 0 where it is not known. The question is then
            which of these two models is better, rather than which way of training.

    Returns:
        The rules in the order that people read them. Where a rule of integrity fails they end there; where the champion
        cannot be compared with, they end with the reason.

    Raises:
        ValueError: Answers to another number of examples, no examples, or a champion without a look.
    """
    sides = [challenger] if champion is None else [challenger, champion]
    if not len(test.labels) or any(len(side.probabilities) != len(test.labels) for side in sides):
        raise ValueError(f"judge: {[len(side.probabilities) for side in sides]} answers to {len(test.labels)} examples")
    rules = _integrity(challenger, test)
    if any(rule.failed for rule in rules):
        return tuple(rules)
    challenger = replace(challenger, probabilities=_align(challenger, test.class_names), class_names=test.class_names)
    rules += [_is_not_collapsed(challenger, test)]
    rules += [_floor(challenger, metric, least) for metric, least in params.floors.items()]
    rules += [_baseline(challenger, name) for name in params.baselines]
    rules += _bounds(challenger, params)
    if champion is not None:
        if look is None:
            raise ValueError("judge: a comparison with a champion is a look at the test set, but there is none")
        rules += _against(challenger, champion, test, params, look, seed_sd)
    return tuple(rules)


def conclude(rules: Sequence[Rule], has_champion: bool) -> tuple[str, str]:
    """Turn the rules into an outcome and one sentence that names what decided.

    Args:
        rules: What `judge` found.
        has_champion: Whether there was a champion to beat.
    """
    for outcome in (REFUSED, KEPT):
        failed = [rule for rule in rules if rule.failed and rule.decides == outcome]
        if failed:
            return outcome, _name_decisive(failed)
    if not has_champion:
        asked = sum(rule.state == "passed" for rule in rules)
        return FIRST, f"There is no champion yet, and it passes all {asked} rules that were asked"
    shown = [rule for rule in rules if rule.name in COMPARISONS and rule.state == "passed"]
    if not shown:
        return KEPT, "It was not compared with the champion, so nothing shows that it is better"
    return PROMOTED, f"{shown[0].name}: {shown[0].reason}"


def _name_decisive(failed: Sequence[Rule]) -> str:
    """The first failure in full, and the names of the others."""
    first, *others = failed
    named = [rule.name for rule in others[:_MAX_NAMED]]
    more = f" and {len(others) - _MAX_NAMED} more" if len(others) > _MAX_NAMED else ""
    return f"{first.name}: {first.reason}" + (f" (also failed: {', '.join(named)}{more})" if others else "")


def _integrity(challenger: Candidate, test: TestSet) -> list[Rule]:
    """Whether the challenger's files and numbers can be trusted at all."""
    strange = _strange_number(challenger)
    seen, total = challenger.num_seen, len(test.labels)
    missing = sorted(set(test.class_names) ^ set(challenger.class_names))
    return [
        make_rule(
            "integrity: files",
            not challenger.manifest_error,
            challenger.manifest_error or "every file is what its manifest says",
        ),
        make_rule(
            "integrity: reload",
            not challenger.reload_error,
            challenger.reload_error or "it answers the same after it is loaded again",
        ),
        make_rule("integrity: finite", not strange, strange or "weights, answers and metrics are finite"),
        make_rule(
            "integrity: classes",
            not missing,
            f"it and the test data have other classes, only one side knows {_list(missing)}. Train it on this data"
            if missing
            else f"it knows the {len(test.class_names)} classes of the test data",
        ),
        make_rule(
            "integrity: unseen test",
            not seen,
            f"{seen:,} of {total:,} test examples were in its training data, so its results say nothing. Train it on "
            "the split that belongs to this test set"
            if seen
            else f"none of the {total:,} test examples was in its training data",
            num_seen=seen,
        ),
    ]


def _strange_number(challenger: Candidate) -> str:
    """Name the first number that is NaN, infinite or no probability; empty if all are sound."""
    if not challenger.is_finite:
        return "its weights hold NaN or infinite values. Train it again with a lower learning rate"
    for name, metric in challenger.metrics.items():
        if not np.isfinite((metric.value, metric.low, metric.high)).all():
            return f"its metric {name} is {metric.value} ({metric.low} to {metric.high}). Look at its predictions"
    for name, metrics in challenger.baselines.items():
        for metric_name, value in metrics.items():
            if not np.isfinite(value):
                return f"the baseline {name} has {metric_name} {value}. Evaluate again"
    if challenger.latency_ms is not None and not np.isfinite(challenger.latency_ms):
        return f"its latency is {challenger.latency_ms} ms. Measure it again"
    bad = _bad_rows(challenger.probabilities)
    if bad.size:
        row = challenger.probabilities[bad[0]]
        strange = np.flatnonzero(~np.isfinite(row) | (row < 0.0))
        which = f"have {row[strange[0]]} for class {challenger.class_names[strange[0]]!r}" if strange.size else ""
        what = which or f"sum to {row.sum():.6g}"
        return f"its probabilities for test example {bad[0]} {what} ({bad.size:,} such examples). Train it again"
    return ""


def _bad_rows(probabilities: np.ndarray) -> np.ndarray:
    """Examples whose probabilities are not finite, below 0 or do not sum to 1."""
    good = (np.isfinite(probabilities) & (probabilities >= 0.0)).all(axis=1)
    sums = np.where(good[:, None], probabilities, 0.0).sum(axis=1)
    return np.flatnonzero(~good | (np.abs(sums - 1.0) > 1e-6))


def _align(side: Candidate, class_names: tuple[str, ...]) -> np.ndarray:
    """Put the columns of a model's probabilities into the order of the test data's classes."""
    return side.probabilities[:, [side.class_names.index(name) for name in class_names]]


def _is_not_collapsed(challenger: Candidate, test: TestSet) -> Rule:
    given = np.unique(challenger.answers)
    if len(given) == 1 and len(np.unique(test.labels)) > 1:
        name = test.class_names[int(given[0])]
        return make_rule("not collapsed", False, f"it answers every test example with class {name!r}", num_answered=1)
    found = f"it answers with {len(given)} of {len(test.class_names)} classes"
    return make_rule("not collapsed", True, found, num_answered=len(given))


def _floor(challenger: Candidate, metric: str, least: float) -> Rule:
    name, label = f"floor: {metric}", label_of(metric)
    found = challenger.metrics.get(metric)
    if found is None:
        return make_rule(
            name, False, f"{label} has a floor of {least:g}, but is undefined on this test set", least=least
        )
    passed = found.value >= least
    reason = f"{_estimate(label, found)}, {'at least' if passed else 'below'} the floor of {least:g}"
    return make_rule(name, passed, reason, value=found.value, low=found.low, high=found.high, least=least)


def _baseline(challenger: Candidate, baseline: str) -> Rule:
    """The lower end of its accuracy has to be above the baseline's accuracy."""
    name, label = f"baseline: {baseline}", BASELINES.get(baseline, baseline)
    reached = challenger.baselines.get(baseline, {}).get("accuracy")
    if reached is None:
        return make_rule(name, None, f"its evaluation has no accuracy of {label}")
    found = challenger.metrics.get("accuracy")
    if found is None:
        return make_rule(name, False, "its evaluation has no accuracy. Evaluate it again")
    passed = found.low > reached
    where = f"the {reached:.4f} of {label}"
    reason = f"{_estimate('accuracy', found)} {'is above' if passed else 'is not shown to be above'} {where}"
    return make_rule(name, passed, reason, value=found.value, low=found.low, high=found.high, baseline=reached)


def _bounds(challenger: Candidate, params: GateParams) -> list[Rule]:
    found = challenger.metrics.get(CALIBRATION)
    error = None if found is None else found.value
    return [
        _bound("calibration", "calibration error", error, params.max_calibration_error, ""),
        _bound("latency", "one answer takes", challenger.latency_ms, params.max_latency_ms, " ms"),
        _bound("size", "the weights file has", challenger.size_bytes / 1e6, params.max_size_mb, " MB"),
    ]


def _bound(name: str, label: str, found: float | None, limit: float | None, unit: str) -> Rule:
    """A measured number that has to stay at or below a limit."""
    if found is None:
        bound = "no bound is set" if limit is None else f"a bound of {limit:g}{unit} is set. Measure it"
        return make_rule(name, None if limit is None else False, f"it was not measured, and {bound}")
    if limit is None:
        return make_rule(name, None, f"{label} {found:.4g}{unit}; no bound is set", value=found)
    passed = found <= limit
    where = "within" if passed else "above"
    return make_rule(
        name, passed, f"{label} {found:.4g}{unit}, {where} the bound of {limit:g}{unit}", value=found, most=limit
    )


def _against(
    challenger: Candidate, champion: Candidate, test: TestSet, params: GateParams, look: Look, seed_sd: float
) -> list[Rule]:
    """The rules that need the champion's answers."""
    apart = _same_classes(challenger, champion)
    if apart.failed:
        return [apart]
    bad = _bad_rows(champion.probabilities)
    if bad.size:
        reason = (
            f"the champion's probabilities for {bad.size:,} test examples, the first of them {bad[0]}, are none, so "
            "there is nothing to compare with. Roll back to a sound version"
        )
        return [apart, make_rule("champion's answers", False, reason, KEPT)]
    spent = _budget(look)
    if spent.failed:
        return [apart, spent]
    champion = replace(champion, probabilities=_align(champion, test.class_names))
    found = compare(test.labels, challenger.answers, champion.answers, params.metric, alpha=look.alpha, seed_sd=seed_sd)
    is_better = params.rule == "superiority"
    main = superiority(found, look) if is_better else non_inferiority(found, look, params.margin)
    rights = challenger.answers == test.labels, champion.answers == test.labels
    parts = [
        slice_rule(part, count(rights[0][part.mask], rights[1][part.mask]), params, len(test.slices))
        for part in test.slices
    ]
    return [apart, spent, replace(main, reason=main.reason + _advantage(champion, test)), *parts]


def _same_classes(challenger: Candidate, champion: Candidate) -> Rule:
    new = [name for name in challenger.class_names if name not in champion.class_names]
    gone = [name for name in champion.class_names if name not in challenger.class_names]
    if not new and not gone:
        return make_rule("champion's classes", True, f"both know the same {len(champion.class_names)} classes")
    reason = (
        f"the champion knows {len(champion.class_names)} classes and the challenger {len(challenger.class_names)}: "
        f"{_list(new)} only the challenger, {_list(gone)} only the champion. They answer different questions, so no "
        "comparison is fair, and whoever uses the champion would get other answers than before. If the new classes "
        "are meant, register it under a model name of its own, or promote it by hand with a reason"
    )
    return make_rule("champion's classes", False, reason, num_new=len(new), num_gone=len(gone))


def _budget(look: Look) -> Rule:
    which = f"look {look.number:,} at this test set, which is good for {look.max_looks:,}"
    if not look.is_spent:
        return make_rule(
            "looks", True, f"{which}; it may spend {look.alpha:.2g}", KEPT, number=look.number, alpha=look.alpha
        )
    reason = (
        f"{which}: whoever looks often enough finds a challenger that is better by luck. Add new test examples and pin "
        "them, which begins a new budget; a larger gate.max_looks would not make this test set say more"
    )
    return make_rule("looks", False, reason, KEPT, number=look.number, max_looks=look.max_looks)


def _advantage(champion: Candidate, test: TestSet) -> str:
    if not champion.num_seen:
        return ""
    return f"; {champion.num_seen:,} of {len(test.labels):,} test examples were in the champion's training data"


def _estimate(label: str, found: Interval) -> str:
    return f"{label} {found.value:.4f} ({found.low:.4f} to {found.high:.4f})"


def _list(names: Sequence[str]) -> str:
    if not names:
        return "nothing"
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(repr(name) for name in names[:_MAX_NAMED]) + more
