"""Two models' answers to the same examples: how sure is it that one is better?

Most examples say nothing, because both models are right or both are wrong. What counts are the discordant ones, so the
answers are always compared pair by pair. Three tools stand side by side, because each fails where another does not:

- McNemar's exact test keeps its level at any count, but knows accuracy only.
- The paired bootstrap takes any metric, but its interval has no width where no answer differs.
- Tango's score interval is good at small counts and rules a loss out even where no answer differs.

A training with another seed would have given another model. Where the standard deviation of the metric between seeds
is known, the difference of two trainings has 2 sd^2 more variance than the examples show, and intervals are stretched
about their estimate by ``sqrt(se^2 + 2 sd^2) / se``. McNemar's test cannot be stretched; it is never asked alone: a
challenger has to pass it and the stretched interval. Both together pass no more often than either one, so the level
is kept against the noise of seeds by the interval and at small counts by the test.

Source:
    McNemar, "Note on the sampling error of the difference between correlated proportions", Psychometrika 12, 1947.
    Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample design",
    Statistics in Medicine 17(8), 1998, equations 24 to 26.
    Efron, Tibshirani, "An introduction to the bootstrap", 1993, chapter 13 (percentile interval).
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import optimize, special, stats
from scipy.sparse import csr_array

METRICS = ("accuracy", "f1_macro", "recall_macro")
_SEED = 0
_LEAST_RESAMPLES, _MOST_RESAMPLES = 10_000, 400_000
_IN_TAIL = 20
_EXACT_FROM = 1e-12
_BLOCK_CELLS = 2_500_000


@dataclass(frozen=True)
class Counts:
    """The examples on which two models differ in being right.

    Attributes:
        only_first: Right by the first model alone.
        only_second: Right by the second model alone.
        num_examples: All examples.
    """

    only_first: int
    only_second: int
    num_examples: int

    @property
    def difference(self) -> float:
        """Accuracy of the first minus that of the second."""
        return (self.only_first - self.only_second) / self.num_examples


def count(first_right: np.ndarray, second_right: np.ndarray) -> Counts:
    """Count the examples that one of two models alone has right.

    Args:
        first_right: Whether the first model is right, bool ``[example]``.
        second_right: The same of the second model.
    """
    only_first, only_second = first_right & ~second_right, second_right & ~first_right
    return Counts(int(only_first.sum()), int(only_second.sum()), len(first_right))


def mcnemar(counts: Counts, *, two_sided: bool = False) -> float:
    """Return the p of McNemar's exact test: given what differs, each model is the right one with probability 1/2.

    Args:
        counts: Who is right where.
        two_sided: Ask for any difference, rather than for the first model being better.
    """
    discordant = counts.only_first + counts.only_second
    if not discordant:
        return 1.0
    alternative = "two-sided" if two_sided else "greater"
    return float(stats.binomtest(counts.only_first, discordant, 0.5, alternative=alternative).pvalue)


def tango_score(counts: Counts, difference: float) -> float:
    """Return Tango's score statistic of a supposed difference, standard normal if it is the true one.

    With b and c the examples that the first and the second model alone have right, n all examples and D the supposed
    difference, q is the most likely probability of c under D::

        T = (b - c - n D) / sqrt(n (2 q + D (1 - D)))        q = (sqrt(B^2 - 8 n C) - B) / (4 n)
        B = -b - c + (2 n - b + c) D                         C = -c D (1 - D)

    Args:
        counts: Who is right where.
        difference: D, in (-1, 1).
    """
    first, second, total = counts.only_first, counts.only_second, counts.num_examples
    linear = -first - second + (2 * total - first + second) * difference
    constant = -second * difference * (1.0 - difference)
    likely = (max(linear**2 - 8.0 * total * constant, 0.0) ** 0.5 - linear) / (4.0 * total)
    variance = total * (2.0 * likely + difference * (1.0 - difference))
    distance = first - second - total * difference
    if variance <= 0.0:
        return 0.0 if distance == 0 else float(np.copysign(np.inf, distance))
    return float(distance / variance**0.5)


def tango_low(counts: Counts, alpha: float) -> float:
    """Return the lower end of Tango's score interval: the difference that the test at one-sided `alpha` just keeps.

    Args:
        counts: Who is right where.
        alpha: Chance that the true difference is lower.
    """
    wanted = float(special.ndtri(1.0 - alpha))
    lowest, highest = -1.0 + 1e-12, min(counts.difference, 1.0 - 1e-12)
    if highest <= lowest or tango_score(counts, lowest) <= wanted:
        return -1.0
    if tango_score(counts, highest) >= wanted:
        return counts.difference
    found = optimize.brentq(lambda value: tango_score(counts, value) - wanted, lowest, highest, xtol=1e-12)
    return float(found)


def tango_high(counts: Counts, alpha: float) -> float:
    """Return the upper end of Tango's score interval at one-sided `alpha`."""
    return -tango_low(Counts(counts.only_second, counts.only_first, counts.num_examples), alpha)


def examples_to_tell(margin: float, alpha: float) -> int:
    """Return the least number of examples on which Tango's interval can rule out a loss of `margin`.

    Where no answer differs its lower end is ``-z^2 / (n + z^2)``; with fewer examples even equal models would fail.
    """
    squared = float(special.ndtri(1.0 - alpha)) ** 2
    return int(np.floor(squared * (1.0 - margin) / margin)) + 1


@dataclass(frozen=True, eq=False)
class Difference:
    """The difference of a metric between two models, and how well it is known.

    Attributes:
        metric: One of `METRICS`.
        first: The first model's value.
        second: The second model's value.
        resampled: Differences that resamples have, float64 ``[value]``, rising.
        cumulative: Share of the resamples that have each of them or a lower one, float64 ``[value]``.
        finest: Smallest alpha whose quantile these shares give.
        one_answer: The most that one changed answer moves the metric; no standard error is taken for smaller.
        seed_sd: Standard deviation of the metric between seeds; 0 where it is not known.
        counts: Who is right where.
    """

    metric: str
    first: float
    second: float
    resampled: np.ndarray
    cumulative: np.ndarray
    finest: float
    one_answer: float
    seed_sd: float
    counts: Counts

    @property
    def value(self) -> float:
        """The first model's value minus the second's."""
        return self.first - self.second

    @cached_property
    def examples_error(self) -> float:
        """Standard error for the choice of examples."""
        shares = np.diff(self.cumulative, prepend=0.0)
        mean = float(np.sum(shares * self.resampled))
        variance = float(np.sum(shares * np.square(self.resampled - mean)))
        return max(math.sqrt(variance), self.one_answer)

    @cached_property
    def standard_error(self) -> float:
        """Standard error for the choice of examples and the seeds of both trainings."""
        return float(np.hypot(self.examples_error, self.seed_sd * 2.0**0.5))

    @property
    def stretch(self) -> float:
        """How much wider intervals are for the seeds."""
        return self.standard_error / self.examples_error

    def low(self, alpha: float) -> float:
        """Return the lower end of the interval at one-sided `alpha`: the lowest of what three methods say.

        The quantile of the resamples, where there are enough of them; the estimate minus so many standard errors; and,
        of accuracy, Tango's. The first and last are stretched.
        """
        ends = [self.value - float(special.ndtri(1.0 - alpha)) * self.standard_error]
        if alpha >= self.finest:
            quantile = float(self.resampled[int(np.searchsorted(self.cumulative, alpha))])
            ends.append(self.value + self.stretch * (quantile - self.value))
        if self.metric == "accuracy":
            ends.append(self.value + self.stretch * (tango_low(self.counts, alpha) - self.value))
        return max(-1.0, min(ends))

    def p(self, least: float) -> float:
        """Return the p of a true difference of `least` or lower: the `alpha` at which `low` reaches it; 1 above 1/2."""
        if self.low(0.5) <= least:
            return 1.0
        smallest = 1e-15
        if self.low(smallest) > least:
            return smallest
        power = optimize.brentq(lambda log: self.low(float(np.exp(log))) - least, np.log(smallest), np.log(0.5))
        return float(np.exp(power))


def compare(
    labels: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    metric: str,
    *,
    alpha: float,
    seed_sd: float = 0.0,
) -> Difference:
    """Compare two models' answers to the same examples by the paired bootstrap; the same input, the same numbers.

    A resample draws n examples with replacement, and both models are measured on it. The difference of accuracy of all
    possible resamples has a known distribution, which is used as it is. Of other metrics resamples are drawn: examples
    with the same label and answers are alike, so one is a draw from a multinomial distribution over such cells, which
    is what `assay.evaluation.bootstrap` draws, counted. There are `_IN_TAIL` of them below the `alpha` quantile, as
    long as they are no more than `_MOST_RESAMPLES` in all.

    Args:
        labels: True classes, int64 ``[example]``.
        first: The first model's answers, int64 ``[example]``.
        second: The second model's answers, int64 ``[example]``.
        metric: One of `METRICS`, as `assay.evaluation.metrics` defines it.
        alpha: Smallest one-sided alpha that the interval will be asked for.
        seed_sd: Standard deviation of the metric between seeds; 0 where it is not known.

    Raises:
        ValueError: An unknown metric, no examples, or a standard deviation below 0 or not finite.
    """
    if metric not in METRICS or not len(labels) or not (np.isfinite(seed_sd) and seed_sd >= 0.0):
        raise ValueError(f"compare: metric {metric!r} on {len(labels)} examples with seed_sd {seed_sd}")
    counts = count(first == labels, second == labels)
    if metric == "accuracy":
        first_value, second_value = float(np.mean(first == labels)), float(np.mean(second == labels))
        spread = _accuracy_resamples(counts)
        return Difference(metric, first_value, second_value, *spread, 1.0 / len(labels), seed_sd, counts)
    num_classes = int(max(labels.max(), first.max(), second.max())) + 1
    cells, sizes = _cells(labels, first, second, num_classes)
    values = [float(_measure(cells[0], answers, sizes[:, None], metric, num_classes)[0]) for answers in cells[1:]]
    spread = _resample(cells, sizes, metric, num_classes, _num_resamples(alpha))
    support = np.bincount(labels)
    one_answer = 1.0 / (np.count_nonzero(support) * int(support[support > 0].min()))
    return Difference(metric, values[0], values[1], *spread, one_answer, seed_sd, counts)


def _accuracy_resamples(counts: Counts) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the distribution of accuracy's difference over all resamples: values, cumulative shares, finest alpha.

    A resample's n examples each add 1, -1 or 0 with the shares of the discordant and the other examples, so the
    characteristic function of their sum is ``(p_0 + p_1 e^it + p_-1 e^-it)^n``; its discrete Fourier transform at
    2n + 1 points is the distribution, but for rounding.
    """
    total = counts.num_examples
    size = 2 * total + 1
    up, down = counts.only_first / total, counts.only_second / total
    turn = np.exp(2j * np.pi * np.arange(size) / size)
    shares = np.fft.fft((1.0 - up - down + up * turn + down / turn) ** total).real / size
    shares = np.clip(np.roll(shares, total), 0.0, None)
    cumulative = np.cumsum(shares)
    return np.arange(-total, total + 1) / total, cumulative / cumulative[-1], _EXACT_FROM


def _num_resamples(alpha: float) -> int:
    return int(np.clip(np.ceil(_IN_TAIL / alpha), _LEAST_RESAMPLES, _MOST_RESAMPLES))


def _cells(
    labels: np.ndarray, first: np.ndarray, second: np.ndarray, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Group equal examples: label and both answers, int64 ``[3, cell]``, and their numbers, int64 ``[cell]``."""
    codes = (labels.astype(np.int64) * num_classes + first) * num_classes + second
    found, sizes = np.unique(codes, return_counts=True)
    return np.stack([found // num_classes**2, found // num_classes % num_classes, found % num_classes]), sizes


def _resample(
    cells: np.ndarray, sizes: np.ndarray, metric: str, num_classes: int, num_resamples: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Draw resamples in blocks and return what `_accuracy_resamples` does."""
    rng = np.random.default_rng(_SEED)
    total, block = int(sizes.sum()), max(1, _BLOCK_CELLS // len(sizes))
    found = []
    for start in range(0, num_resamples, block):
        size = min(block, num_resamples - start)
        weights = np.ascontiguousarray(rng.multinomial(total, sizes / total, size=size).T)
        first, second = (_measure(cells[0], answers, weights, metric, num_classes) for answers in cells[1:])
        found.append(first - second)
    shares = np.arange(1, num_resamples + 1) / num_resamples
    return np.sort(np.concatenate(found)), shares, _IN_TAIL / 2 / num_resamples


def _measure(labels: np.ndarray, answers: np.ndarray, weights: np.ndarray, metric: str, num_classes: int) -> np.ndarray:
    """Compute macro F1 or recall of weighted cells, float64 ``[resample]``, from weights int64 ``[cell, resample]``."""
    right = answers == labels
    as_label = _by_class(labels, weights, num_classes)
    as_answer = _by_class(answers, weights, num_classes)
    as_both = _by_class(labels[right], weights[right], num_classes)
    hits, possible = (2 * as_both, as_label + as_answer) if metric == "f1_macro" else (as_both, as_label)
    ratios = np.divide(hits, possible, out=np.zeros(hits.shape), where=possible > 0)
    return np.asarray(ratios.sum(axis=0) / np.count_nonzero(as_label + as_answer, axis=0))


def _by_class(classes: np.ndarray, weights: np.ndarray, num_classes: int) -> np.ndarray:
    """Add up the weights ``[cell, resample]`` of each class: int64 ``[class, resample]``."""
    ones = np.ones(len(classes), dtype=np.int64)
    matrix = csr_array((ones, (classes, np.arange(len(classes)))), shape=(num_classes, len(classes)))
    return np.asarray(matrix @ weights)
