"""Whether new data differs from the data that the champion was trained on: inputs, labels, predictions.

With enough examples every difference is significant, and with few of them large differences are chance. So drift is
what is both: a corrected p value of at most alpha, and an effect that is large enough to matter.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from assay.corrections import holm
from assay.records.night import INPUTS, LABELS, PREDICTIONS, DataProfile, Drift

MIN_DISTANCE = 0.1
MIN_SHIFT = 0.03
_MAX_EXACT = 200
_MIN_EXPECTED = 5
_NUM_RESAMPLES = 9_999


@dataclass(frozen=True)
class _Comparison:
    """One test, before it is corrected for the others."""

    name: str
    kind: str
    test: str
    statistic: float
    p: float
    effect: float
    min_effect: float
    change: str
    measure: str
    values: dict[str, float]


def detect_drift(
    old: DataProfile,
    new: DataProfile,
    alpha: float,
    *,
    min_distance: float = MIN_DISTANCE,
    min_shift: float = MIN_SHIFT,
) -> tuple[Drift, ...]:
    """Compare two summaries of data.

    Inputs and top probabilities are compared by two-sample Kolmogorov-Smirnov tests, classes and predicted classes by
    chi-square; Holm's correction runs over all of them. What only one of the two has, or has no value of, is not
    compared. Examples are taken to be independent: data that holds the old data, too, finds drift less often than
    alpha; data whose examples come in groups finds it more often, and then the least effects are what guards against
    false alarms.

    Args:
        old: Summary of the data that the champion was trained on.
        new: Summary of the new data.
        alpha: Chance of one false alarm or more among all comparisons, if nothing drifted.
        min_distance: Least drift of a value: largest distance of the two cumulative distributions, 0..1.
        min_shift: Least drift of classes: total variation distance, the share of examples that changed class, 0..1.

    Returns:
        Every comparison, those without drift, too: inputs, labels, predictions.

    Source:
        Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6(2), 1979.
        Rabanser, Guennemann and Lipton, "Failing loudly", NeurIPS 2019 (univariate tests with a corrected alpha).
    """
    comparisons = [
        _compare_values(name, INPUTS, old.features[name], new.features[name], min_distance)
        for name in old.features
        if old.features[name] and new.features.get(name)
    ]
    comparisons.append(_compare_counts("classes", LABELS, old.class_counts, new.class_counts, min_shift))
    if old.num_predicted and new.num_predicted:
        comparisons += [
            _compare_counts("predicted classes", PREDICTIONS, old.predicted_counts, new.predicted_counts, min_shift),
            _compare_values("top probability", PREDICTIONS, old.top_probabilities, new.top_probabilities, min_distance),
        ]
    corrected = holm([comparison.p for comparison in comparisons])
    return tuple(_judge(comparison, p, alpha) for comparison, p in zip(comparisons, corrected, strict=True))


def drifted(drifts: Sequence[Drift]) -> tuple[Drift, ...]:
    """Keep the comparisons that found drift, the largest effect first."""
    return tuple(sorted((drift for drift in drifts if drift.drifted), key=lambda drift: -drift.effect))


def _compare_values(
    name: str, kind: str, old: Sequence[float], new: Sequence[float], min_distance: float
) -> _Comparison:
    """Kolmogorov-Smirnov; exact where both samples are small, where the asymptotic p is too low."""
    method = "exact" if max(len(old), len(new)) <= _MAX_EXACT else "asymp"
    found = stats.ks_2samp(old, new, method=method)
    before, after = np.quantile(old, (0.25, 0.5, 0.75)), np.quantile(new, (0.25, 0.5, 0.75))
    distance = float(found.statistic)
    return _Comparison(
        name=name,
        kind=kind,
        test="Kolmogorov-Smirnov",
        statistic=distance,
        p=float(found.pvalue),
        effect=distance,
        min_effect=min_distance,
        change=_movement(before, after),
        measure="KS",
        values={
            "old_median": float(before[1]),
            "new_median": float(after[1]),
            "num_old": len(old),
            "num_new": len(new),
        },
    )


def _movement(before: np.ndarray, after: np.ndarray) -> str:
    """Say which way the median went; if it stayed, what the middle half did."""
    medians = [f"{quartiles[1]:.3g}" for quartiles in (before, after)]
    if medians[0] != medians[1]:
        return f"moved {'up' if after[1] > before[1] else 'down'}: median {medians[0]} -> {medians[1]}"
    halves = [f"{quartiles[0]:.3g} to {quartiles[2]:.3g}" for quartiles in (before, after)]
    return f"spread differently: middle half {halves[0]} -> {halves[1]}"


def _compare_counts(name: str, kind: str, old: dict[str, int], new: dict[str, int], min_shift: float) -> _Comparison:
    """Chi-square of counts by class; its p value from the exact distribution, drawn, where counts are small."""
    names = [key for key in dict.fromkeys([*old, *new]) if old.get(key, 0) + new.get(key, 0)]
    table = np.array([[counts.get(key, 0) for key in names] for counts in (old, new)])
    test, statistic, p = _chi_square(table)
    shares = table / table.sum(axis=1, keepdims=True)
    most = int(np.abs(shares[1] - shares[0]).argmax())
    return _Comparison(
        name=name,
        kind=kind,
        test=test,
        statistic=statistic,
        p=p,
        effect=float(np.abs(shares[1] - shares[0]).sum() / 2),
        min_effect=min_shift,
        change=f"shifted: {names[most]!r} {shares[0][most]:.1%} -> {shares[1][most]:.1%}",
        measure="total variation",
        values={
            "cramers_v": float(np.sqrt(statistic / table.sum())),
            "num_old": int(table[0].sum()),
            "num_new": int(table[1].sum()),
        },
    )


def _chi_square(table: np.ndarray) -> tuple[str, float, float]:
    """Name of the test, statistic and p of counts ``[2, class]`` without empty classes.

    The drawn p is at least 1e-4, the reciprocal of the number of tables that it counts among.
    """
    if table.shape[1] < 2:
        return "chi-square", 0.0, 1.0
    if stats.contingency.expected_freq(table).min() >= _MIN_EXPECTED:
        found = stats.chi2_contingency(table, correction=False)
        return "chi-square", float(found.statistic), float(found.pvalue)
    draws = stats.MonteCarloMethod(n_resamples=_NUM_RESAMPLES, rng=np.random.default_rng(0))
    found = stats.chi2_contingency(table, correction=False, method=draws)
    return "chi-square, Monte Carlo", float(found.statistic), float(found.pvalue)


def _judge(comparison: _Comparison, p_holm: float, alpha: float) -> Drift:
    is_certain, is_large = p_holm <= alpha, comparison.effect >= comparison.min_effect
    numbers = f"{comparison.measure} {comparison.effect:.2g}, {_p_text(p_holm)}"
    subject = comparison.name[0].upper() + comparison.name[1:]
    if is_certain and is_large:
        reason = f"{subject} {comparison.change}, {numbers}."
    elif is_certain:
        reason = (
            f"{subject} {comparison.change}, too little to count as drift: {numbers}; {comparison.min_effect} would."
        )
    else:
        reason = f"{subject}: no drift shown, {numbers}."
    return Drift(
        name=comparison.name,
        kind=comparison.kind,
        test=comparison.test,
        statistic=comparison.statistic,
        p=comparison.p,
        p_holm=p_holm,
        effect=comparison.effect,
        min_effect=comparison.min_effect,
        drifted=is_certain and is_large,
        reason=reason,
        values=comparison.values,
    )


def _p_text(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
