import itertools

import numpy as np
import pytest
from scipy import optimize, stats
from sklearn.metrics import accuracy_score, f1_score, recall_score

from assay.evaluation.bootstrap import resample
from assay.registry.budget import spend
from assay.registry.paired import (
    Counts,
    compare,
    count,
    examples_to_tell,
    mcnemar,
    tango_high,
    tango_low,
    tango_score,
)


def answers(counts: Counts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels and answers of two models, two classes, with these counts and everything else right."""
    labels = np.arange(counts.num_examples) % 2
    first, second = labels.copy(), labels.copy()
    second[: counts.only_first] = 1 - second[: counts.only_first]
    rest = slice(counts.only_first, counts.only_first + counts.only_second)
    first[rest] = 1 - first[rest]
    return labels, first, second


def noisy(num_examples: int, num_classes: int, *, seed: int, share: float = 0.2) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(num_classes, size=num_examples)
    wrong = [rng.random(num_examples) < share for _ in range(2)]
    return labels, *[np.where(one, rng.integers(num_classes, size=num_examples), labels) for one in wrong]


def test_counts_by_hand():
    first = np.array([True, True, False, False, True])
    second = np.array([True, False, True, False, False])
    assert count(first, second) == Counts(2, 1, 5)
    assert Counts(2, 1, 5).difference == pytest.approx(0.2)


def test_mcnemar_is_the_binomial_test_of_the_discordant_ones():
    assert mcnemar(Counts(5, 0, 100)) == pytest.approx(1 / 32)
    assert mcnemar(Counts(5, 0, 100), two_sided=True) == pytest.approx(1 / 16)
    assert mcnemar(Counts(0, 5, 100)) == 1.0
    assert mcnemar(Counts(0, 0, 100)) == 1.0
    assert mcnemar(Counts(14, 4, 100)) == pytest.approx(stats.binom.sf(13, 18, 0.5))


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [
        # Fagerland, Lydersen, Laake, Statistics in Medicine 33, 2014, airway hyper-responsiveness, 95%: -0.517, -0.026.
        (Counts(1, 7, 21), -0.517, -0.026),
        # R's PropCIs::scoreci.mp(20, 60, 1000, 0.95).
        (Counts(60, 20, 1000), 0.0231, 0.0584),
    ],
)
def test_tango_gives_the_published_intervals(counts: Counts, low: float, high: float):
    assert tango_low(counts, 0.025) == pytest.approx(low, abs=5e-4)
    assert tango_high(counts, 0.025) == pytest.approx(high, abs=5e-4)


@pytest.mark.parametrize("counts", [Counts(3, 9, 40), Counts(12, 0, 25), Counts(0, 4, 30), Counts(40, 31, 500)])
@pytest.mark.parametrize("difference", [-0.3, -0.04, 0.02, 0.25])
def test_tango_is_the_score_at_the_most_likely_table(counts: Counts, difference: float):
    first, second, total = counts.only_first, counts.only_second, counts.num_examples

    def unlikely(q: float) -> float:
        shares = np.array([q + difference, q, 1.0 - 2.0 * q - difference])
        return -float(np.array([first, second, total - first - second]) @ np.log(np.maximum(shares, 1e-300)))

    least, most = max(0.0, -difference), (1.0 - difference) / 2.0
    q = optimize.minimize_scalar(unlikely, bounds=(least, most), method="bounded", options={"xatol": 1e-12}).x
    variance = (2.0 * q + difference - difference**2) * total
    assert tango_score(counts, difference) == pytest.approx((first - second - total * difference) / variance**0.5, 1e-4)


def test_tango_ends_solve_the_score_and_mirror():
    for first, second, total in [(3, 9, 40), (12, 0, 25), (0, 0, 30), (200, 150, 5000)]:
        counts, mirrored = Counts(first, second, total), Counts(second, first, total)
        low = tango_low(counts, 0.05)
        assert tango_score(counts, low) == pytest.approx(1.6449, abs=1e-4)
        assert low < counts.difference < tango_high(counts, 0.05)
        assert tango_high(mirrored, 0.05) == pytest.approx(-low)
        assert tango_low(counts, 0.001) < low
        assert tango_low(counts, 0.5) == pytest.approx(counts.difference, abs=1e-6)
    assert tango_low(Counts(0, 20, 20), 0.05) == -1.0
    assert tango_high(Counts(20, 0, 20), 0.05) == 1.0


@pytest.mark.parametrize("total", [30, 60])
def test_tango_keeps_its_level_at_small_counts(total: int):
    # The exact probability over all outcomes that the lower end is above the truth; the bootstrap's for comparison.
    pairs = [(b, c) for b in range(total + 1) for c in range(total + 1 - b)]
    lows = np.array([tango_low(Counts(b, c, total), 0.05) for b, c in pairs])
    table = np.array([(b, c, total - b - c) for b, c in pairs])
    for first, second in itertools.product((0.01, 0.05, 0.1), (0.02, 0.06, 0.15)):
        chances = stats.multinomial.pmf(table, total, [first, second, 1.0 - first - second])
        assert chances[lows > first - second].sum() < 0.07


def test_the_examples_that_it_takes_to_tell():
    assert examples_to_tell(0.05, 0.05) == 52
    assert tango_low(Counts(0, 0, 52), 0.05) > -0.05 > tango_low(Counts(0, 0, 51), 0.05)


def test_all_looks_together_spend_alpha():
    for max_looks in (1, 2, 20, 1000):
        spent = [spend(number, max_looks, 0.05) for number in range(1, max_looks + 1)]
        assert sum(spent) == pytest.approx(0.05)
        assert spent == sorted(spent, reverse=True)
    assert spend(1, 20, 0.05) == pytest.approx(0.02625)
    assert spend(21, 20, 0.05) == 0.0
    with pytest.raises(ValueError, match="from 1"):
        spend(0, 20, 0.05)


@pytest.mark.parametrize(
    ("metric", "ours"),
    [
        ("accuracy", accuracy_score),
        ("f1_macro", lambda labels, given: f1_score(labels, given, average="macro", zero_division=0.0)),
        ("recall_macro", lambda labels, given: recall_score(labels, given, average="macro", zero_division=0.0)),
    ],
)
@pytest.mark.filterwarnings("ignore:.*:sklearn.exceptions.UndefinedMetricWarning")
def test_values_are_scikit_learns(metric: str, ours):
    labels, first, second = noisy(200, 7, seed=1, share=0.4)
    labels[labels == 6] = 5  # a class that is answered and never true
    found = compare(labels, first, second, metric, alpha=0.05)
    assert (found.first, found.second) == pytest.approx((ours(labels, first), ours(labels, second)))


@pytest.mark.parametrize("metric", ["accuracy", "f1_macro", "recall_macro"])
def test_the_bootstrap_is_the_one_of_the_evaluation(metric: str):
    labels, first, second = noisy(400, 4, seed=2)
    found = compare(labels, first, second, metric, alpha=0.05)
    drawn = [resample(labels, np.eye(4)[given], 4000, 5).metrics[metric] for given in (first, second)]
    differences = drawn[0] - drawn[1]
    assert found.examples_error == pytest.approx(differences.std(), rel=0.05)
    ends = found.resampled[np.searchsorted(found.cumulative, [0.05, 0.95])]
    assert ends == pytest.approx(np.quantile(differences, [0.05, 0.95]), abs=0.1 * differences.std())
    assert np.array_equal(found.resampled, compare(labels, first, second, metric, alpha=0.05).resampled)


def test_it_is_sensitive_to_pairs():
    # The same accuracies, once from the same examples and once from others.
    same, other = Counts(10, 0, 1000), Counts(110, 100, 1000)
    lows = [compare(*answers(counts), "accuracy", alpha=0.05).low(0.05) for counts in (same, other)]
    assert lows[0] > 0.0 > lows[1]


def test_seeds_stretch_the_interval():
    data = answers(Counts(120, 80, 2000))
    plain, stretched = (compare(*data, "accuracy", alpha=0.02, seed_sd=sd) for sd in (0.0, 0.01))
    assert plain.standard_error == pytest.approx((200 / 2000**2) ** 0.5, rel=0.03)
    assert stretched.standard_error == pytest.approx((plain.standard_error**2 + 2 * 0.01**2) ** 0.5)
    ratio = (stretched.value - stretched.low(0.02)) / (plain.value - plain.low(0.02))
    assert ratio == pytest.approx(stretched.stretch, rel=0.02)
    assert plain.low(0.02) > 0.0 > stretched.low(0.02)


def test_equal_answers_are_neither_better_nor_certain():
    labels = np.arange(1000) % 10
    for metric in ("accuracy", "f1_macro", "recall_macro"):
        found = compare(labels, labels, labels, metric, alpha=0.02)
        assert found.value == 0.0
        assert -0.02 < found.low(0.02) < -0.0015
        assert found.p(0.0) == 1.0


@pytest.mark.parametrize("metric", ["accuracy", "f1_macro"])
@pytest.mark.parametrize("seed_sd", [0.0, 0.002])
def test_p_is_where_the_lower_end_reaches_it(metric: str, seed_sd: float):
    found = compare(*answers(Counts(70, 40, 1000)), metric, alpha=0.001, seed_sd=seed_sd)
    p = found.p(0.0)
    assert 1e-4 < p < 0.1
    assert found.low(p * 0.9) < 0.0 < found.low(p * 1.1)
    assert found.p(-0.01) < p


def test_the_smallest_alpha_can_still_be_met():
    alpha = spend(500, 500, 0.01)
    found = compare(*answers(Counts(400, 100, 2000)), "accuracy", alpha=alpha)
    assert 0.0 < found.low(alpha) < found.low(1e-4)
    assert found.p(0.0) < alpha


@pytest.mark.parametrize("counts", [Counts(0, 0, 40), Counts(5, 0, 12), Counts(0, 7, 7), Counts(9, 4, 60)])
def test_the_distribution_over_resamples_is_exact(counts: Counts):
    total = counts.num_examples
    found = compare(*answers(counts), "accuracy", alpha=0.05)
    up, down = counts.only_first / total, counts.only_second / total
    shares = {value: 0.0 for value in range(-total, total + 1)}
    for first, second in itertools.product(range(total + 1), repeat=2):
        if first + second <= total:
            chance = stats.multinomial.pmf([first, second, total - first - second], total, [up, down, 1.0 - up - down])
            shares[first - second] += chance
    assert np.diff(found.cumulative, prepend=0.0) == pytest.approx(np.array(list(shares.values())), abs=1e-13)
    assert found.resampled == pytest.approx(np.array(list(shares)) / total)


def test_what_cannot_be_compared():
    labels = np.zeros(3, np.int64)
    for metric, size, sd in (("log_loss", 3, 0.0), ("accuracy", 0, 0.0), ("accuracy", 3, np.nan)):
        with pytest.raises(ValueError, match=metric):
            compare(labels[:size], labels[:size], labels[:size], metric, alpha=0.05, seed_sd=sd)
