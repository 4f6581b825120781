import itertools
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from assay.ablation.contributions import contributions
from assay.ablation.variance import MeanSquares, mean_squares, variance_of
from assay.ablation.verdicts import Rules, combine, find_pool, judge, mean_interval
from assay.corrections import holm
from assay.records.ablation import BASELINE, Contrast

ACCURACY = Rules("accuracy")


def level(name: str) -> Contrast:
    return Contrast(name, "level", ("train.l2",), {name: 1.0, BASELINE: -1.0})


def normal(num_seeds: int, num_examples: int, *, seed: int, sd: tuple[float, float, float]) -> np.ndarray:
    """Values whose seeds, examples and rest have these standard deviations."""
    rng = np.random.default_rng(seed)
    shapes = ((num_seeds, 1), (1, num_examples), (num_seeds, num_examples))
    return sum(size * rng.normal(size=shape) for size, shape in zip(sd, shapes, strict=True))


@pytest.fixture(scope="module")
def runs() -> dict[str, np.ndarray]:
    """Macro-F1 contributions ``[run, example]`` of real runs of two configurations with different seeds."""
    with np.load(Path(__file__).with_name("seed_runs.npz")) as arrays:
        found = {}
        for name in ("baseline", "dropout"):
            pairs = zip(arrays[f"{name}_predictions"], arrays[f"{name}_log_losses"], strict=True)
            found[name] = np.array(
                [contributions("f1_macro", arrays["labels"], one, losses, 10) for one, losses in pairs]
            )
        return found


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_mean_squares_by_hand():
    # Row means 2 and 4, column means 2 and 4, mean 3; rests are +-0.5 off the sum of effects... of [[1, 3], [3, 5]]: 0.
    assert mean_squares(np.array([[1.0, 3.0], [3.0, 5.0]])) == MeanSquares(seed=4.0, example=4.0, rest=0.0)
    assert mean_squares(np.array([[1.0, -1.0], [-1.0, 1.0]])) == MeanSquares(seed=0.0, example=0.0, rest=4.0)


def test_variance_components_are_found_again():
    sd = (0.3, 2.0, 1.0)
    table = normal(300, 400, seed=0, sd=sd)
    found = variance_of(mean_squares(table), 300, 400)
    assert (found.seed, found.example, found.rest) == pytest.approx(tuple(np.square(sd)), rel=0.2)
    assert found.of_mean(300, 400) == pytest.approx(found.seed / 300 + found.example / 400 + found.rest / 120_000)


def test_without_noise_of_examples_it_is_the_paired_t_over_seeds():
    # The seeds shift all examples alike, so that only their means say anything.
    shifts = np.array([0.01, 0.03, 0.02, 0.05])
    table = np.tile(shifts[:, None], (1, 50))
    (verdict,) = judge(
        [level("a")], {"a": table, BASELINE: np.zeros_like(table)}, Rules("log_loss", margin=0.1, alpha=0.01)
    )
    expected = stats.ttest_1samp(shifts, 0.0)
    assert verdict.p == pytest.approx(expected.pvalue)
    assert verdict.difference == pytest.approx(-shifts.mean())
    interval = expected.confidence_interval(0.95)
    assert (-verdict.high, -verdict.low) == pytest.approx((interval.low, interval.high))
    assert verdict.seed_share == pytest.approx(1.0)


def test_without_noise_of_seeds_it_is_the_paired_t_over_examples():
    values = np.random.default_rng(0).normal(0.1, 1.0, 300)
    table = np.tile(values, (5, 1))
    (verdict,) = judge([level("a")], {"a": table, BASELINE: np.zeros_like(table)}, ACCURACY)
    assert verdict.p == pytest.approx(stats.ttest_1samp(values, 0.0).pvalue)
    assert (verdict.seed_share, verdict.examples_share) == pytest.approx((0.0, 1.0))


def test_interval_of_one_variant_agrees_with_judge():
    table = normal(5, 200, seed=1, sd=(0.1, 1.0, 1.0))
    (verdict,) = judge([level("a")], {"a": table, BASELINE: np.zeros_like(table)}, ACCURACY)
    assert mean_interval(table, 0.95) == pytest.approx((verdict.difference, verdict.low, verdict.high))
    mean, low, high = mean_interval(table[:1], 0.95)
    expected = stats.ttest_1samp(table[0], 0.0).confidence_interval(0.95)
    assert (mean, low, high) == pytest.approx((table[0].mean(), expected.low, expected.high))


def tables_of(differences: dict[str, float], *, noise: float, num_seeds: int = 5, num_examples: int = 2000):
    tables = {BASELINE: normal(num_seeds, num_examples, seed=0, sd=(0.0, 0.3, noise))}
    for index, (name, difference) in enumerate(differences.items(), start=1):
        tables[name] = tables[BASELINE] + difference + normal(num_seeds, num_examples, seed=index, sd=(0, 0, noise))
    return tables


def test_each_verdict():
    tables = tables_of({"up": 0.05, "down": -0.05, "same": 0.0, "little": 0.008}, noise=0.05)
    rules = Rules("accuracy", margin=0.02)
    up, down, same, little = judge([level(name) for name in list(tables)[1:]], tables, rules)
    assert [one.verdict for one in (up, down, same, little)] == ["helps", "hurts", "no difference", "helps"]
    assert "accuracy is better by 0.0494 (95% interval +0.0483 to +0.0505, 5 seeds)" in up.reason
    assert "accuracy is worse by 0.0489 (95% interval -0.0502 to -0.0476, 5 seeds)" in down.reason
    assert "differs by less than 0.02" in same.reason
    assert "real, but smaller than the 0.02 that matter" in little.reason
    assert "real" not in up.reason
    assert up.p_holm <= 0.05 and same.p_holm > 0.05 and same.p_equivalence <= 0.05 < up.p_equivalence
    for verdict in (up, down, same, little):
        assert verdict.low < verdict.difference < verdict.high
        assert verdict.num_seeds == 5 and verdict.seeds_needed is None and verdict.examples_needed is None


def test_lower_log_loss_helps():
    tables = tables_of({"lower": -0.05}, noise=0.05)
    (verdict,) = judge([level("lower")], tables, Rules("log_loss"))
    assert verdict.verdict == "helps" and verdict.difference == pytest.approx(0.05, abs=0.01)


def test_the_equivalence_margin_is_corrected_as_a_family_of_its_own():
    tables = tables_of({f"level {index}": 0.0 for index in range(20)}, noise=0.3)
    contrasts = [level(name) for name in list(tables)[1:]]
    rules = Rules("accuracy", margin=0.012)
    alone = [judge([contrast], tables, rules)[0] for contrast in contrasts]
    together = judge(contrasts, tables, rules)
    assert sum(one.verdict == "no difference" for one in alone) > sum(
        one.verdict == "no difference" for one in together
    )


def test_levels_without_data_stay_in_the_family():
    tables = tables_of({"a": 0.009, "b": 0.0}, noise=0.1)
    contrasts = [level("a"), level("b")]
    stopped = [level(f"stopped {index}") for index in range(4)]
    unjudged = {one.name: ("stopped", "It was behind after 3 epochs.") for one in stopped}
    few = judge(contrasts, tables, ACCURACY)
    many = judge([*contrasts, *stopped], tables, ACCURACY, unjudged=unjudged)
    assert many[0].p == few[0].p
    assert many[0].p_holm == pytest.approx(min(1.0, 3 * few[0].p_holm))
    assert many[1].p_equivalence >= few[1].p_equivalence
    for verdict in many[2:]:
        assert (verdict.verdict, verdict.reason) == ("stopped", "It was behind after 3 epochs.")
        assert (verdict.p_holm, verdict.p_equivalence, verdict.num_seeds) == (1.0, 1.0, 0)


def test_an_interaction_and_a_main_effect():
    effects = {"00": 0.0, "10": 0.1, "01": 0.0, "11": 0.3}
    tables = {name: effect + normal(5, 500, seed=int(name), sd=(0, 0, 0.1)) for name, effect in effects.items()}
    main = Contrast("a", "main effect", ("a",), {"00": -0.5, "10": 0.5, "01": -0.5, "11": 0.5})
    both = Contrast("a x b", "interaction", ("a", "b"), {"00": 1.0, "10": -1.0, "01": -1.0, "11": 1.0})
    found = judge([main, both], tables, ACCURACY)
    assert [one.difference for one in found] == pytest.approx([0.2, 0.2], abs=0.02)
    assert [one.kind for one in found] == ["main effect", "interaction"]
    assert found[0].factors == ("a",)
    assert found[0].high - found[0].low < found[1].high - found[1].low


def test_pool_counts_independent_contrasts_only():
    squares = {name: MeanSquares(2.0, 1.0, 1.0) for name in "abcdef"}
    levels, _ = find_pool([level(name) for name in "abcdef"], squares)
    assert levels.df_per_seed == pytest.approx(4 / (1 + 3 / 6))
    signs = np.array(list(itertools.product([-1, 1], repeat=3)))
    orthogonal = [
        Contrast(name, "main effect", (name,), {str(row): float(sign) for row, sign in enumerate(column)})
        for name, column in zip("abc", signs.T, strict=True)
    ]
    main_effects, _ = find_pool(orthogonal, {name: squares[name] for name in "abc"})
    assert main_effects.df_per_seed == pytest.approx(3)
    assert main_effects.ratio == 2.0


def test_a_contrast_whose_seeds_are_far_noisier_is_judged_by_its_own_seeds():
    squares = {name: MeanSquares(1.5, 1.0, 1.0) for name in "abcd"} | {"wild": MeanSquares(90.0, 1.0, 1.0)}
    pool, members = find_pool([level(name) for name in squares], squares)
    assert members == set("abcd") and pool.ratio == 1.5
    assert find_pool([level("a")], {"a": squares["a"]}) == (None, set())


def test_a_level_that_diverges_once_takes_nothing_from_the_others():
    tables = tables_of({"a": 0.05, "b": 0.0, "c": 0.0, "wild": 0.0}, noise=0.2, num_seeds=3)
    contrasts = [level(name) for name in ("a", "b", "c", "wild")]
    tables["wild"][1] = -5.0
    verdicts = judge(contrasts, tables, ACCURACY)
    assert [one.verdict for one in verdicts] == ["helps", "undetermined", "undetermined", "undetermined"]
    assert verdicts[-1].low < 0.0 < verdicts[-1].high


def test_one_seed_decides_nothing_and_says_so():
    tables = {name: table[:1] for name, table in tables_of({"a": 0.5}, noise=0.1).items()}
    (verdict,) = judge([level("a")], tables, ACCURACY)
    assert verdict.verdict == "undetermined"
    assert "one seed does not show how much the seed matters" in verdict.reason
    assert (verdict.p, verdict.p_holm, verdict.p_equivalence) == (1.0, 1.0, 1.0)
    assert (verdict.seeds_needed, verdict.examples_needed) == (None, None)
    assert verdict.low < 0.5 < verdict.high


@pytest.mark.parametrize("metric", ["accuracy", "log_loss"])
@pytest.mark.parametrize("num_seeds", [1, 2, 5])
@pytest.mark.parametrize("num_examples", [1, 50, 2000])
@pytest.mark.parametrize("difference", [0.0, 1.0])
def test_identical_answers_give_numbers(metric, num_seeds, num_examples, difference):
    table = np.ones((num_seeds, num_examples))
    (verdict,) = judge([level("a")], {"a": table + difference, BASELINE: table}, Rules(metric))
    numbers = [verdict.difference, verdict.low, verdict.high, verdict.p, verdict.p_holm, verdict.p_equivalence]
    assert np.isfinite([*numbers, verdict.seed_share, verdict.examples_share]).all()
    assert 0.0 <= verdict.seed_share <= 1.0 and 0.0 <= verdict.examples_share <= 1.0
    assert np.isfinite(mean_interval(table, 0.95)).all()
    if num_seeds == 1 or num_examples == 1:
        assert verdict.verdict == "undetermined"
    elif difference:
        assert verdict.verdict == ("helps" if metric == "accuracy" else "hurts")


def test_that_no_answer_changed_shows_only_so_much():
    # One changed answer of 100 would be 0.01, of 2000 0.0005: only the latter is well within the margin of 0.005.
    tables = {size: np.ones((5, size)) for size in (100, 2000)}
    verdicts = {size: judge([level("a")], {"a": table, BASELINE: table}, ACCURACY)[0] for size, table in tables.items()}
    assert verdicts[2000].verdict == "no difference"
    assert verdicts[100].verdict == "undetermined"
    assert verdicts[100].seeds_needed is None
    assert 300 < verdicts[100].examples_needed < 2000
    assert "the 100 val examples are the limit" in verdicts[100].reason


def test_more_seeds_are_asked_for_where_seeds_are_the_noise():
    table = 0.02 + normal(4, 4000, seed=5, sd=(0.03, 0.0, 0.1))
    (verdict,) = judge([level("a")], {"a": table, BASELINE: np.zeros_like(table)}, Rules("log_loss", margin=0.005))
    assert verdict.verdict == "undetermined" and verdict.seed_share > 0.95
    assert verdict.seeds_needed > 4 and verdict.examples_needed is None
    assert verdict.reason.startswith(f"{verdict.seeds_needed} seeds in all would probably decide it")


def test_more_examples_are_asked_for_where_examples_are_the_noise():
    table = np.tile(np.random.default_rng(3).normal(0.0, 0.3, 500), (5, 1)) + normal(5, 500, seed=1, sd=(0, 0, 0.01))
    (verdict,) = judge([level("a")], {"a": table, BASELINE: np.zeros_like(table)}, ACCURACY)
    assert verdict.verdict == "undetermined" and verdict.examples_share > 0.95
    assert verdict.seeds_needed is None and verdict.examples_needed > 5000
    assert f"the 500 val examples are the limit; about {verdict.examples_needed:,} would" in verdict.reason


def test_a_small_p_that_correction_took_away_is_explained():
    tables = tables_of({"a": 0.009} | {f"null {index}": 0.0 for index in range(16)}, noise=0.2)
    verdict = judge([level(name) for name in list(tables)[1:]], tables, ACCURACY)[0]
    assert verdict.p <= 0.05 < verdict.p_holm
    assert "as one of 17 comparisons" in verdict.reason


def test_splits_of_their_own_use_the_corrected_resampled_t():
    # Nadeau and Bengio: variance (1/S + n_val/n_train) s^2, S - 1 degrees of freedom.
    means = np.array([0.02, 0.05, 0.03, 0.04])
    tables = {"a": means[:, None], BASELINE: np.zeros((4, 1))}
    (verdict,) = judge([level("a")], tables, ACCURACY, crossed=False, num_train=800, num_val=100)
    error = np.sqrt((1 / 4 + 100 / 800) * means.var(ddof=1))
    assert verdict.p == pytest.approx(2 * stats.t.sf(means.mean() / error, 3))
    assert verdict.seed_share == pytest.approx((1 / 4) / (1 / 4 + 100 / 800))
    with pytest.raises(ValueError, match="num_train"):
        judge([level("a")], tables, ACCURACY, crossed=False)


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(ValueError, match="of one shape"):
        combine(level("a"), {"a": np.zeros((3, 5)), BASELINE: np.zeros((2, 5))}, "accuracy")
    with pytest.raises(ValueError, match="finite"):
        combine(level("a"), {"a": np.full((3, 5), np.nan), BASELINE: np.zeros((3, 5))}, "accuracy")


@pytest.mark.parametrize("num_seeds", [3, 5])
def test_equal_variants_of_real_runs_rarely_get_a_claim(runs, num_seeds):
    # At most 5% is what the rules ask; of 100 ablations 10% are two standard errors above it.
    rng = np.random.default_rng(0)
    names = [f"level {index}" for index in range(4)]
    false = false_by_examples = 0
    for _ in range(100):
        examples = rng.integers(400, size=400)
        tables = {name: runs["baseline"][rng.integers(20, size=num_seeds)][:, examples] for name in [BASELINE, *names]}
        verdicts = judge([level(name) for name in names], tables, Rules())
        false += any(one.verdict in ("helps", "hurts") for one in verdicts)
        means = [(tables[name] - tables[BASELINE]).mean(axis=0) for name in names]
        false_by_examples += min(stats.ttest_1samp(np.array(means), 0.0, axis=1).pvalue) * 4 <= 0.05
    assert false / 100 <= 0.10
    assert false_by_examples / 100 > 0.15  # what taking the seeds for given would do


@pytest.mark.parametrize("num_seeds", [3, 10])
def test_the_interval_covers_the_true_difference_of_real_runs(runs, num_seeds):
    rng = np.random.default_rng(0)
    true = runs["dropout"].mean() - runs["baseline"].mean()
    covered = covered_by_examples = 0
    for _ in range(200):
        examples = rng.integers(400, size=200)
        drawn = {name: table[rng.integers(20, size=num_seeds)][:, examples] for name, table in runs.items()}
        (verdict,) = judge([level("dropout")], drawn, Rules())
        covered += verdict.low <= true <= verdict.high
        mean = (drawn["dropout"] - drawn["baseline"]).mean(axis=0)
        low, high = stats.ttest_1samp(mean, 0.0).confidence_interval(0.95)
        covered_by_examples += low <= true <= high
    assert 0.90 <= covered / 200 <= 1.0
    assert covered_by_examples < covered
