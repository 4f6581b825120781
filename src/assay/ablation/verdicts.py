"""From what all trials answered on val to one verdict a contrast.

A contrast is a weighted sum over variants, here of their contributions to the metric: a table x[seed, example] whose
mean is the difference. Seeds and examples are both samples, crossed (`assay.ablation.variance`): a claim is about
seeds and examples that nobody has seen, not about these seeds on this val set. The statistic is the mean over its
standard error, its distribution a t with Satterthwaite's degrees of freedom.

Few seeds say little about how much seeds vary: with three, one comparison of seventeen would need t = 18. So the
seeds' mean squares are pooled over the contrasts, each in units of its own rest, and averaged with the contrast's
own. The contrasts share the baseline and are no independent sources; the pool's degrees of freedom say so. This
assumes that seeds matter about as much, against the noise of single answers, for all variants. A contrast whose ratio
is more than ten times the median (a level that diverges with some seeds) is left out and judged by its own seeds.

It was chosen by simulation with the answers of real runs, see ``benchmarks/verdict_calibration.py`` and
``docs/adr/0012-verdicts.md``: it keeps the rate of false claims and finds more than a paired t over seeds. A test over
the examples alone claims something false in most ablations.

Source:
    Nadeau, Bengio, "Inference for the generalization error", Machine Learning 52, 2003, section 3 (overlapping splits).
    Schuirmann, "A comparison of the two one-sided tests procedure", J. Pharmacokinet. Biopharm. 15, 1987 (equivalence).
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from assay.ablation.contributions import orientation
from assay.ablation.variance import MeanSquares, Pool, Variance, interval, mean_squares, variance_of
from assay.corrections import holm
from assay.records.ablation import Contrast, Verdict

MOST_SEEDS = 1000
MOST_EXAMPLES = 1_000_000
OUTLYING = 10.0
"""A contrast is left out of the pool where its seeds vary more than so many times the median."""


@dataclass(frozen=True)
class Rules:
    """What a verdict has to meet.

    Attributes:
        metric: What is compared; see `assay.ablation.contributions.METRICS`.
        alpha: Highest chance that a family without any difference gets a ``helps`` or ``hurts``.
        confidence: Level of the intervals.
        margin: Differences within plus and minus this count as none.
        power: Probability that "would probably decide" stands for.
    """

    metric: str = "f1_macro"
    alpha: float = 0.05
    confidence: float = 0.95
    margin: float = 0.005
    power: float = 0.8

    @property
    def flip(self) -> float:
        """What one example's change of answer changes its contribution by, about; 0 where it may be any number."""
        return 0.0 if self.metric == "log_loss" else 1.0


@dataclass(frozen=True)
class Estimate:
    """A difference and how well it is known.

    Attributes:
        mean: The difference, oriented so that above 0 is better.
        variance: Its variance components.
        num_seeds: S.
        num_examples: n.
        is_known: Whether its variance is; one seed does not show how much the seed matters, nor one example.
    """

    mean: float
    variance: Variance
    num_seeds: int
    num_examples: int
    is_known: bool = True

    @property
    def variance_of_mean(self) -> float:
        """Variance of the difference."""
        return float(self.variance.of_mean(self.num_seeds, self.num_examples))

    @property
    def seed_share(self) -> float:
        """Share of that variance that more seeds would lower; the rest only more examples would."""
        of_seeds = float(self.variance.of_seeds(self.num_seeds, self.num_examples))
        return of_seeds / self.variance_of_mean if of_seeds else 0.0

    def interval(self, confidence: float) -> tuple[float, float]:
        """Return the ends of its confidence interval."""
        return interval(self.mean, self.variance_of_mean, self._df, confidence)

    def p_difference(self) -> float:
        """Return the two-sided p of no difference."""
        return min(1.0, 2.0 * self._tail(abs(self.mean)))

    def p_equivalence(self, margin: float) -> float:
        """Return the p of a difference of at least the margin: the larger one of two one-sided tests."""
        return self._tail(margin - abs(self.mean))

    @property
    def _df(self) -> float:
        return float(self.variance.df(self.num_seeds, self.num_examples))

    def _tail(self, distance: float) -> float:
        """Return P(T > distance / standard error)."""
        if not self.is_known:
            return 1.0
        if self.variance_of_mean == 0.0:
            return 0.0 if distance > 0.0 else 0.5 if distance == 0.0 else 1.0
        return float(special.stdtr(self._df, -distance / self.variance_of_mean**0.5))


@dataclass(frozen=True)
class _Family:
    """Corrected p values of all contrasts, in order, and how many are still open for each kind of claim."""

    p_holm: list[float]
    p_equivalence: list[float]
    num_open: int
    num_open_equivalence: int


def judge(
    contrasts: Sequence[Contrast],
    contributions: Mapping[str, np.ndarray],
    rules: Rules,
    *,
    unjudged: Mapping[str, tuple[str, str]] | None = None,
    early: Mapping[str, np.ndarray] | None = None,
    crossed: bool = True,
    num_train: int = 0,
    num_val: int | None = None,
) -> tuple[Verdict, ...]:
    """Judge all contrasts of an ablation, as one family.

    The order is: a difference (Holm over all contrasts at `rules.alpha`), else equivalence within the margin (Holm
    over all contrasts, as a family of its own), else undetermined, with what it would probably take.

    Args:
        contrasts: The family. All of it, so that stopping a level early makes no other claim easier.
        contributions: Variant name -> contributions to `rules.metric`, float64 ``[seed, example]``, not oriented; the
            same seeds in the same order, and the same val examples, for all variants.
        rules: What a verdict has to meet.
        unjudged: Contrast name -> verdict (``stopped``, ``incomplete``) and reason, for contrasts without data. They
            stay in the family with p = 1.
        early: Contrast name -> differences, float64 ``[seed, example]``, of those among them that were looked at before
            they were stopped. They say how much seeds vary, like all others, and nothing else: without them, stopping
            some levels would make the others' intervals wider.
        crossed: Whether all seeds answered the same val examples. Where every seed has a split of its own, only the
            seeds' means count: an example axis of length 1 will do.
        num_train: Training examples of a split; read where not `crossed`.
        num_val: Val examples of a split; None is the length of the example axis.

    Returns:
        One verdict a contrast, in order. ``num_diverged`` is left at 0.

    Raises:
        ValueError: Tables of different shapes, a value that is not finite, or splits without `num_train`.
    """
    unjudged = unjudged or {}
    tables = {c.name: combine(c, contributions, rules.metric) for c in contrasts if c.name not in unjudged}
    if crossed:
        found = _crossed_estimates(contrasts, tables, early or {}, rules)
    else:
        found = {name: _split_estimate(table, num_train, num_val) for name, table in tables.items()}
    family = _correct([found.get(contrast.name) for contrast in contrasts], rules)
    verdicts = []
    for index, contrast in enumerate(contrasts):
        if contrast.name in unjudged:
            word, reason = unjudged[contrast.name]
            verdicts.append(Verdict(contrast.name, contrast.kind, contrast.factors, word, reason, num_seeds=0))
        else:
            verdicts.append(_verdict(contrast, found[contrast.name], family, index, rules))
    return tuple(verdicts)


def combine(contrast: Contrast, contributions: Mapping[str, np.ndarray], metric: str) -> np.ndarray:
    """Add up a contrast's variants, oriented so that above 0 is better.

    Returns:
        float64 ``[seed, example]``; its mean is the difference.

    Raises:
        ValueError: Tables of different shapes, or a value that is not finite.
    """
    used = {name: weight for name, weight in contrast.weights.items() if weight}
    shapes = {name: contributions[name].shape for name in used}
    if len(set(shapes.values())) != 1 or 0 in next(iter(shapes.values())):
        raise ValueError(f"contrast {contrast.name}: contributions must be of one shape, found {shapes}")
    total = np.zeros(next(iter(shapes.values())))
    for name, weight in used.items():
        total += weight * contributions[name]
    if not np.isfinite(total).all():
        raise ValueError(f"contrast {contrast.name}: contributions must be finite")
    return orientation(metric) * total


def find_pool(contrasts: Sequence[Contrast], squares: Mapping[str, MeanSquares]) -> tuple[Pool | None, set[str]]:
    """Pool what the contrasts say about their seeds.

    With R_k the contrasts' ``seed / rest`` and w_k their weights, the mean of R over K contrasts has the degrees of
    freedom of K^2 / sum_kl rho_kl^2 single ones, where rho_kl is the cosine between w_k and w_l: all K where they are
    orthogonal, as main effects are, and at most 4 for levels against one baseline.

    Args:
        contrasts: The family.
        squares: Contrast name -> mean squares, of those that have data.

    Returns:
        The pool, None where fewer than two contrasts have noise, and the names of the contrasts in it.
    """
    ratios = {name: found.seed / found.rest for name, found in squares.items() if found.rest > 0.0}
    if len(ratios) < 2:
        return None, set()
    limit = OUTLYING * float(np.median(list(ratios.values())))
    members = [contrast for contrast in contrasts if ratios.get(contrast.name, np.inf) <= limit]
    variants = sorted({variant for contrast in members for variant in contrast.weights})
    weights = np.array([[contrast.weights.get(variant, 0.0) for variant in variants] for contrast in members])
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    df_per_seed = len(members) ** 2 / float(np.square(weights @ weights.T).sum())
    ratio = float(np.mean([ratios[contrast.name] for contrast in members]))
    return Pool(max(1.0, ratio), df_per_seed), {contrast.name for contrast in members}


def decision_probability(
    found: Estimate,
    rules: Rules,
    num_open: int,
    num_open_equivalence: int,
    num_seeds: np.ndarray | int,
    num_examples: np.ndarray | int,
) -> np.ndarray:
    """Compute how probable a verdict is once there are more seeds or examples, those at hand among them.

    The true difference is not known, only that it lies about the estimate (flat prior). So the mean that will be
    found is normal about the present one with variance ``V(now) - V(then)``. A verdict is reached where it lies
    farther from 0 than the critical difference, or so near to it that a difference of the margin is ruled out. How
    much the seeds vary is not known either: cases of equal probability are averaged.

    Args:
        found: The difference now.
        rules: What a verdict has to meet.
        num_open: Contrasts without a ``helps`` or ``hurts``, this one among them: the step of Holm that it stands at.
        num_open_equivalence: The same for equivalence.
        num_seeds: Seeds in all, at least as many as now; int or int ``[case]``.
        num_examples: Val examples in all, the same.

    Returns:
        Probabilities, float64, of the broadcast shape.
    """
    # A difference changes at least as many answers as it says; few seeds often show less than that by chance.
    least = 0.0 if found.variance.overlap else abs(found.mean) * rules.flip**2
    cases = replace(found.variance, example=max(found.variance.example, least)).cases(
        found.num_seeds, found.num_examples
    )
    now = cases.of_mean(found.num_seeds, found.num_examples)
    variance, df = cases.of_mean(num_seeds, num_examples), cases.df(num_seeds, num_examples)
    spread = np.sqrt(np.maximum(now - variance, 1e-300))
    critical = -special.stdtrit(df, rules.alpha / num_open / 2.0) * np.sqrt(variance)
    nearest = rules.margin + special.stdtrit(df, rules.alpha / num_open_equivalence) * np.sqrt(variance)
    is_far = 1.0 - _within(found.mean, spread, critical)
    is_near = np.where(nearest > 0.0, _within(found.mean, spread, np.minimum(nearest, critical)), 0.0)
    return np.asarray((is_far + is_near).mean(axis=0))


def mean_interval(values: np.ndarray, confidence: float) -> tuple[float, float, float]:
    """Return one variant's mean and the ends of its interval, over seeds and examples.

    Args:
        values: Contributions, float64 ``[seed, example]``. With one seed the interval covers the examples only.
        confidence: Level of the interval.
    """
    num_seeds, num_examples = values.shape
    variance = variance_of(mean_squares(values), num_seeds, num_examples)
    found = Estimate(float(values.mean()), variance, num_seeds, num_examples)
    return (found.mean, *found.interval(confidence))


def _crossed_estimates(
    contrasts: Sequence[Contrast], tables: Mapping[str, np.ndarray], early: Mapping[str, np.ndarray], rules: Rules
) -> dict[str, Estimate]:
    """Estimate every contrast from its table ``[seed, example]``."""
    squares = {name: mean_squares(table) for name, table in tables.items()}
    pool, members = find_pool(contrasts, squares | {name: mean_squares(table) for name, table in early.items()})
    found = {}
    for name, table in tables.items():
        num_seeds, num_examples = table.shape
        variance = variance_of(
            squares[name], num_seeds, num_examples, pool=pool if name in members else None, flip=rules.flip
        )
        found[name] = Estimate(float(table.mean()), variance, num_seeds, num_examples, min(table.shape) > 1)
    return found


def _split_estimate(table: np.ndarray, num_train: int, num_val: int | None) -> Estimate:
    """Estimate a contrast whose seeds have splits of their own: the corrected resampled t."""
    num_seeds, num_examples = table.shape[0], num_val or table.shape[1]
    if num_train < 1:
        raise ValueError("judge: seeds with splits of their own need num_train, the training examples of a split")
    means = table.mean(axis=1)
    spread = float(means.var(ddof=1)) if num_seeds > 1 else 0.0
    variance = Variance(seed=spread, overlap=num_examples / num_train)
    return Estimate(float(means.mean()), variance, num_seeds, num_examples, num_seeds > 1)


def _correct(found: Sequence[Estimate | None], rules: Rules) -> _Family:
    """Correct the p values of all contrasts; one without data has p = 1."""
    p_holm = holm([1.0 if one is None else one.p_difference() for one in found])
    p_equivalence = holm([1.0 if one is None else one.p_equivalence(rules.margin) for one in found])
    num_open, num_open_equivalence = (sum(p > rules.alpha for p in ps) for ps in (p_holm, p_equivalence))
    return _Family(p_holm, p_equivalence, num_open, num_open_equivalence)


def _verdict(contrast: Contrast, found: Estimate, family: _Family, index: int, rules: Rules) -> Verdict:
    p_holm, p_equivalence = family.p_holm[index], family.p_equivalence[index]
    low, high = found.interval(rules.confidence)
    num_seeds_needed, num_examples_needed = None, None
    if p_holm <= rules.alpha:
        word = "helps" if found.mean > 0.0 else "hurts"
        reason = _reason_difference(found, low, high, rules)
    elif p_equivalence <= rules.alpha:
        word = "no difference"
        reason = f"{rules.metric} differs by less than {rules.margin:g}{_evidence(found, low, high, rules)}."
    else:
        word = "undetermined"
        num_seeds_needed, num_examples_needed, reason = _what_it_takes(found, family, rules)
        if found.p_difference() <= rules.alpha:
            reason = (
                f"p = {found.p_difference():.2g} by itself, {p_holm:.2g} as one of {len(family.p_holm)} comparisons; "
                f"{reason}"
            )
    return Verdict(
        name=contrast.name,
        kind=contrast.kind,
        factors=contrast.factors,
        verdict=word,
        reason=reason,
        num_seeds=found.num_seeds,
        difference=found.mean,
        low=low,
        high=high,
        p=found.p_difference(),
        p_holm=p_holm,
        p_equivalence=p_equivalence,
        seed_share=found.seed_share,
        examples_share=1.0 - found.seed_share if found.variance_of_mean else 0.0,
        seeds_needed=num_seeds_needed,
        examples_needed=num_examples_needed,
    )


def _reason_difference(found: Estimate, low: float, high: float, rules: Rules) -> str:
    direction = "better" if found.mean > 0.0 else "worse"
    reason = f"{rules.metric} is {direction} by {abs(found.mean):.4f}{_evidence(found, low, high, rules)}"
    if -rules.margin < low and high < rules.margin:
        reason += f"; real, but smaller than the {rules.margin:g} that matter"
    return f"{reason}."


def _evidence(found: Estimate, low: float, high: float, rules: Rules) -> str:
    return f" ({rules.confidence:.0%} interval {low:+.4f} to {high:+.4f}, {found.num_seeds} seeds)"


def _what_it_takes(found: Estimate, family: _Family, rules: Rules) -> tuple[int | None, int | None, str]:
    """Return the seeds, or else the examples, that would probably decide, and a sentence that says so."""
    if found.num_seeds < 2:
        return (
            None,
            None,
            "one seed does not show how much the seed matters; the interval covers the val examples only.",
        )
    if not found.is_known:
        return None, None, "one val example says nothing about others."

    def decides(num_seeds: np.ndarray | int, num_examples: np.ndarray | int) -> np.ndarray:
        num_open, num_open_equivalence = family.num_open, family.num_open_equivalence
        found_then = decision_probability(found, rules, num_open, num_open_equivalence, num_seeds, num_examples)
        return np.asarray(found_then >= rules.power)

    seeds = _two_digits(found.num_seeds + 1, max(MOST_SEEDS, 10 * found.num_seeds))
    needed = _first(seeds, lambda some: decides(some, found.num_examples))
    if needed is not None:
        return needed, None, f"{needed:,} seeds in all would probably decide it."
    if found.variance.overlap:
        return None, None, "more seeds would not decide it: their splits overlap, so that only more data would."
    limit = f"more seeds would not decide it: the {found.num_examples:,} val examples are the limit"
    examples = _two_digits(found.num_examples + 1, MOST_EXAMPLES)
    for num_seeds in (found.num_seeds, 10 * found.num_seeds, MOST_SEEDS):
        needed = _first(examples, lambda some, num_seeds=num_seeds: decides(num_seeds, some))  # type: ignore[misc]
        if needed is not None:
            besides = f" with {num_seeds:,} seeds" if num_seeds > found.num_seeds else ""
            return None, needed, f"{limit}; about {needed:,}{besides} would."
    return None, None, f"{limit}, and {MOST_EXAMPLES:,} would not do either."


def _first(values: np.ndarray, holds: Callable[[np.ndarray], np.ndarray]) -> int | None:
    """Return the first of some rising values that a condition holds for; looks at every tenth and then between."""
    coarse = np.append(np.arange(0, len(values) - 1, 10), len(values) - 1)
    hits = np.flatnonzero(holds(values[coarse]))
    if not hits.size:
        return None
    start = coarse[hits[0] - 1] + 1 if hits[0] else 0
    between = values[start : coarse[hits[0]] + 1]
    return int(between[np.flatnonzero(holds(between))[0]])


@functools.cache
def _two_digits(low: int, high: int) -> np.ndarray:
    """Return the whole numbers of at most two significant digits from `low` to `high`, int64 ``[number]``."""
    powers = 10 ** np.arange(len(str(high)))
    numbers = np.unique(np.outer(powers, np.arange(1, 100)))
    return np.asarray(numbers[(numbers >= low) & (numbers <= high)], dtype=np.int64)


def _within(mean: float, spread: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """Return P(-limit < X < limit) for X normal about `mean`."""
    return np.asarray(special.ndtr((limit - mean) / spread) - special.ndtr((-limit - mean) / spread))
