import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from assay.ablation.contributions import contributions
from assay.ablation.power import Noise, detectable, found_probability, noise_of, seeds_to_detect
from assay.ablation.verdicts import Rules, judge
from assay.records.ablation import BASELINE, Contrast

NOISE = Noise(seed=0.0001, rest=0.05, num_examples=500)


@pytest.fixture(scope="module")
def accuracy() -> np.ndarray:
    """Accuracy contributions ``[run, example]`` of real runs with different seeds."""
    with np.load(Path(__file__).with_name("seed_runs.npz")) as runs:
        pairs = zip(runs["baseline_predictions"], runs["baseline_log_losses"], strict=True)
        return np.array([contributions("accuracy", runs["labels"], one, losses, 10) for one, losses in pairs])


def test_the_noise_of_a_difference_is_that_of_two_variants():
    rng = np.random.default_rng(0)
    num_seeds, num_examples = 400, 300
    seeds, examples = rng.normal(0, 0.2, (num_seeds, 1)), rng.normal(0, 5.0, num_examples)
    noise = noise_of(seeds + examples + rng.normal(0, 1.5, (num_seeds, num_examples)))
    assert noise.seed == pytest.approx(2 * 0.2**2, rel=0.2)
    assert noise.rest == pytest.approx(2 * 1.5**2, rel=0.02)
    assert noise.num_examples == num_examples


def test_one_seed_tells_no_noise():
    with pytest.raises(ValueError, match="at least 2"):
        noise_of(np.ones((1, 5)))
    assert detectable(NOISE, 1, 6, 0.05, 0.8) == math.inf


@pytest.mark.parametrize("num_seeds", [3, 5, 30])
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_detectable_is_found_with_just_that_power(num_seeds, flip):
    noise = Noise(NOISE.seed, NOISE.rest, NOISE.num_examples, flip)
    effect = detectable(noise, num_seeds, 6, 0.05, 0.8)
    assert found_probability(noise, effect, num_seeds, 6, 0.05) == pytest.approx(0.8, abs=0.001)


def test_what_makes_a_difference_harder_to_detect():
    effect = detectable(NOISE, 5, 6, 0.05, 0.8)
    assert detectable(NOISE, 4, 6, 0.05, 0.8) > effect
    assert detectable(NOISE, 5, 17, 0.05, 0.8) > effect
    assert detectable(NOISE, 5, 6, 0.01, 0.8) > effect
    assert detectable(NOISE, 5, 6, 0.05, 0.9) > effect
    assert detectable(Noise(0.0002, 0.05, 500), 5, 6, 0.05, 0.8) > effect
    assert detectable(Noise(0.0001, 0.05, 400), 5, 6, 0.05, 0.8) > effect


def test_with_many_seeds_the_val_examples_remain():
    # A difference d changes at least d n answers, and t^2 / n of them, here 2.8^2 (two-sided 5%, power 80%), have to.
    least = detectable(NOISE, 100_000, 1, 0.05, 0.8)
    assert 3 / 500 < least < 2.8**2 / 500
    assert seeds_to_detect(NOISE, 0.9 * least, 1, 0.05, 0.8) is None


@pytest.mark.parametrize("num_contrasts", [1, 6])
def test_where_only_seeds_are_noise_it_is_the_power_of_a_t_test(num_contrasts):
    noise = Noise(seed=0.0001, rest=0.0, num_examples=500, flip=0.0)
    df = 4 * 4 / (1 + 3 / num_contrasts)  # five seeds; levels share the baseline
    expected = stats.nct.sf(stats.t.isf(0.025 / num_contrasts, df), df, 0.02 / (0.01 / 5**0.5))
    assert found_probability(noise, 0.02, 5, num_contrasts, 0.05) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("effect", [0.03, 0.05, 0.1])
def test_seeds_to_detect_is_the_inverse_of_detectable(effect):
    num_seeds = seeds_to_detect(NOISE, effect, 6, 0.05, 0.8)
    assert num_seeds is not None
    assert detectable(NOISE, num_seeds, 6, 0.05, 0.8) <= effect
    assert detectable(NOISE, num_seeds - 1, 6, 0.05, 0.8) > effect


def test_no_noise_at_all():
    silent = Noise(0.0, 0.0, 500, flip=0.0)
    assert detectable(silent, 2, 6, 0.05, 0.8) < 1e-5
    assert 0.0 < detectable(Noise(0.0, 0.0, 500), 5, 6, 0.05, 0.8) < 0.1


def noise_of_drawing(table: np.ndarray, num_examples: int) -> Noise:
    """The noise of a difference where these runs and examples are all there are, and are drawn with replacement."""
    of_run = table.mean(axis=1).var()
    rest = table.var(axis=0).mean() - of_run
    return Noise(2 * float(of_run), 2 * float(rest), num_examples)


@pytest.mark.parametrize("num_seeds", [3, 10])
def test_an_announced_difference_is_found_as_often_as_announced(accuracy, num_seeds):
    num_levels, num_ablations, num_examples = 2, 150, 300
    effect = detectable(noise_of_drawing(accuracy, num_examples), num_seeds, num_levels, 0.05, 0.8)
    rng = np.random.default_rng(0)
    names = [BASELINE, *(f"level {index}" for index in range(num_levels))]
    contrasts = [Contrast(name, "level", ("factor",), {name: 1.0, BASELINE: -1.0}) for name in names[1:]]
    found = 0
    for _ in range(num_ablations):
        examples = rng.integers(accuracy.shape[1], size=num_examples)
        tables = {name: accuracy[rng.integers(len(accuracy), size=num_seeds)][:, examples] for name in names}
        is_spoilt = rng.random(num_examples) < effect / accuracy.mean()
        tables[names[-1]] = np.where(is_spoilt, 0.0, tables[names[-1]])
        found += judge(contrasts, tables, Rules("accuracy"))[-1].verdict == "hurts"
    assert found / num_ablations == pytest.approx(0.8, abs=0.1)
