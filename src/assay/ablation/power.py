"""What an ablation can see before it is done: the smallest difference it would find, or the seeds a difference takes.

Two variants that do not differ still answer differently from seed to seed. How much is read off the baseline's own
seeds, and a contrast of two variants has twice that variance. A true difference is more than that noise: its examples
are a sample too, and at the least as many examples change their answer as the difference says (McNemar's setting), so
their variance is part of the sum.
"""

from dataclasses import dataclass

import numpy as np
from scipy import special
from scipy.optimize import brentq

from assay.ablation.variance import Variance, level_df_per_seed, mean_squares, variance_of

_NUM_CASES = 200


@dataclass(frozen=True)
class Noise:
    """The variance components of a difference between two variants that are equal.

    Attributes:
        seed: Variance between seeds that all examples share.
        rest: Variance of single answers from seed to seed.
        num_examples: Val examples.
        flip: Size of one example's change of answer: 1 for metrics that count answers, 0 for ``log_loss``.
    """

    seed: float
    rest: float
    num_examples: int
    flip: float = 1.0


def noise_of(contributions: np.ndarray, *, flip: float = 1.0) -> Noise:
    """Read the noise of a difference off one variant's seeds.

    Args:
        contributions: Of the baseline, float64 ``[seed, example]``, at least 2 seeds.
        flip: As in `Noise`.

    Raises:
        ValueError: A single seed says nothing about another.
    """
    num_seeds, num_examples = contributions.shape
    if num_seeds < 2:
        raise ValueError("noise_of: one seed given, at least 2 are needed to see how much the seed matters")
    found = variance_of(mean_squares(contributions), num_seeds, num_examples)
    return Noise(2.0 * float(found.seed), 2.0 * found.rest, num_examples, flip)


def detectable(noise: Noise, num_seeds: int, num_contrasts: int, alpha: float, power: float) -> float:
    """Compute the smallest true difference that is found with some probability, by the strictest step of Holm.

    Args:
        noise: Noise of a difference.
        num_seeds: Paired seeds, at least 2; with one nothing is ever found, and infinity is returned.
        num_contrasts: Contrasts in the family.
        alpha: Highest chance of a false claim in the family.
        power: Chance of finding it.

    Returns:
        The difference, above 0; infinity where none is found.
    """
    if num_seeds < 2:
        return float("inf")

    def surplus(effect: float) -> float:
        return found_probability(noise, effect, num_seeds, num_contrasts, alpha) - power

    high = 1e-6
    while surplus(high) < 0.0:
        high *= 2.0
        if high > 1e6:
            return float("inf")
    return float(brentq(surplus, 0.0, high, xtol=1e-7))


def seeds_to_detect(
    noise: Noise, effect: float, num_contrasts: int, alpha: float, power: float, most: int = 1000
) -> int | None:
    """Return the smallest number of seeds with which a true difference is found; None where `most` would not do."""
    if found_probability(noise, effect, most, num_contrasts, alpha) < power:
        return None
    low, high = 1, most  # found at high, not at low
    while high - low > 1:
        middle = (low + high) // 2
        if found_probability(noise, effect, middle, num_contrasts, alpha) < power:
            low = middle
        else:
            high = middle
    return high


def found_probability(noise: Noise, effect: float, num_seeds: int, num_contrasts: int, alpha: float) -> float:
    """Compute the probability that a true difference is found by the strictest step of Holm.

    The mean is normal, the seeds' mean square a chi-squared with the pool's degrees of freedom, and a claim is made as
    `assay.ablation.verdicts.judge` makes it. More changed answers mean a larger difference and more variance: the
    difference d that is just enough solves ``d^2 = t^2 (V_0 + d flip^2 / n)``.

    Args:
        noise: Noise of a difference.
        effect: The true difference.
        num_seeds: Paired seeds.
        num_contrasts: Contrasts in the family.
        alpha: Highest chance of a false claim in the family.
    """
    if num_seeds < 2:
        return 0.0
    effect, num_examples = abs(effect), noise.num_examples
    seen = _seen(noise, effect, num_seeds, level_df_per_seed(num_contrasts))
    critical = -special.stdtrit(seen.df(num_seeds, num_examples), alpha / num_contrasts / 2.0)
    flips = np.square(critical * noise.flip) / num_examples
    least = (flips + np.sqrt(flips**2 + 4.0 * critical**2 * seen.of_seeds(num_seeds, num_examples))) / 2.0
    least = np.maximum(least, critical * noise.flip / num_examples)
    true = Variance(seed=noise.seed, example=effect * noise.flip**2, rest=noise.rest)
    error = float(true.of_mean(num_seeds, num_examples)) ** 0.5
    if error == 0.0:
        return float(effect > 0.0)
    return float(special.ndtr((effect - least) / error).mean())


def _seen(noise: Noise, effect: float, num_seeds: int, df_per_seed: float) -> Variance:
    """Return the variance as so many seeds may show it: cases of equal probability of the seeds' mean square."""
    df = df_per_seed * (num_seeds - 1)
    luck = special.chdtri(df, (np.arange(_NUM_CASES) + 0.5) / _NUM_CASES) / df
    squares = luck * (noise.rest + noise.num_examples * noise.seed)
    return Variance(
        seed=np.maximum(squares - noise.rest, 0.0) / noise.num_examples,
        example=effect * noise.flip**2,
        rest=noise.rest,
        df_per_seed=df_per_seed,
    )
