"""Where the uncertainty of a mean over seeds and examples comes from, and how much more of either would take away.

Values x[s, i] of seed s and example i are taken as crossed random effects::

    x_si = mu + a_s + b_i + e_si        V(S, n) = var_seed / S + var_example / n + var_rest / (S n)

V is the variance of the mean over S seeds and n examples. Its parts come from the mean squares of a two-way analysis of
variance without replication, negative ones taken as 0, and its degrees of freedom from Satterthwaite.

Source:
    Searle, Casella, McCulloch, "Variance components", 1992, section 4.3 (ANOVA estimators).
    Satterthwaite, "An approximate distribution of estimates of variance components", Biometrics Bulletin 2(6), 1946.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy import special

_NUM_CASES = 8


@dataclass(frozen=True)
class MeanSquares:
    """A two-way analysis of variance of values ``[seed, example]``; 0 where an axis has a single entry.

    Attributes:
        seed: n times the variance of the seeds' means, S - 1 degrees of freedom.
        example: S times the variance of the examples' means, n - 1 degrees of freedom.
        rest: Mean square of what neither explains, (S - 1)(n - 1) degrees of freedom.
    """

    seed: float
    example: float
    rest: float


@dataclass(frozen=True)
class Pool:
    """What several contrasts together say about the seeds.

    Attributes:
        ratio: Mean of their ``seed / rest`` (mean squares), at least 1.
        df_per_seed: Degrees of freedom of that mean, divided by S - 1; 1 for a single contrast.
    """

    ratio: float
    df_per_seed: float


@dataclass(frozen=True)
class Variance:
    """The variance components of a mean, and how well they are known.

    Attributes:
        seed: Variance between seeds that all examples share (var_seed); or several cases of it, float64 ``[case]``.
        example: Variance between examples that all seeds share (var_example).
        rest: Variance of what neither explains (var_rest).
        df_per_seed: Degrees of freedom of the seeds' mean square, divided by S - 1.
        flip: Size of one example's change of answer; no variance is taken for smaller than that of one such example.
        overlap: Share of `seed` that no number of seeds takes away, because their training sets overlap.
    """

    seed: float | np.ndarray
    example: float = 0.0
    rest: float = 0.0
    df_per_seed: float = 1.0
    flip: float = 0.0
    overlap: float = 0.0

    def of_seeds(self, num_seeds: np.ndarray | float, num_examples: np.ndarray | float) -> np.ndarray:
        """Return the part of the mean's variance that more seeds would lower."""
        return np.asarray((self.seed + self.rest / np.asarray(num_examples)) / num_seeds)

    def of_mean(self, num_seeds: np.ndarray | float, num_examples: np.ndarray | float) -> np.ndarray:
        """Return the variance of a mean over so many seeds and examples."""
        shared = self.example / np.asarray(num_examples, np.float64) + self.overlap * self.seed
        total = self.of_seeds(num_seeds, num_examples) + shared
        return np.asarray(np.maximum(total, np.square(self.flip / np.asarray(num_examples, np.float64))))

    def df(self, num_seeds: np.ndarray | float, num_examples: np.ndarray | float) -> np.ndarray:
        """Return the degrees of freedom of that variance's estimate, at least 1 (Satterthwaite)."""
        seeds, examples = np.asarray(num_seeds, np.float64), np.asarray(num_examples, np.float64)
        of_seed, of_example = self.rest + examples * self.seed, self.rest + seeds * self.example
        spread = (
            of_seed**2 / np.maximum(self.df_per_seed * (seeds - 1), 1)
            + of_example**2 / np.maximum(examples - 1, 1)
            + self.rest**2 / np.maximum((seeds - 1) * (examples - 1), 1)
        )
        total = of_seed + seeds * self.example
        found = np.divide(total**2, spread, out=np.full_like(spread, np.inf), where=spread > 0)
        return np.asarray(np.clip(found, 1.0, 1e6))

    def cases(self, num_seeds: int, num_examples: int) -> "Variance":
        """Return what the seeds' variance may be in truth, if so many seeds showed this one.

        Returns:
            The same, but `seed` is float64 ``[case, 1]``, cases of equal probability: the seeds' mean square times
            ``df / chi^2``.
        """
        df = max(self.df_per_seed * (num_seeds - 1), 1.0)
        luck = df / special.chdtri(df, (np.arange(_NUM_CASES) + 0.5) / _NUM_CASES)
        squares = luck * (self.rest + num_examples * self.seed)
        return replace(self, seed=np.maximum(squares - self.rest, 0.0)[:, None] / num_examples)


def mean_squares(values: np.ndarray) -> MeanSquares:
    """Compute the mean squares of values, float64 ``[seed, example]``."""
    num_seeds, num_examples = values.shape
    mean = values.mean()
    of_seed, of_example = values.mean(axis=1) - mean, values.mean(axis=0) - mean
    rest = values - mean - of_seed[:, None] - of_example[None, :]
    return MeanSquares(
        seed=num_examples * float(np.square(of_seed).sum()) / max(num_seeds - 1, 1),
        example=num_seeds * float(np.square(of_example).sum()) / max(num_examples - 1, 1),
        rest=float(np.square(rest).sum()) / max((num_seeds - 1) * (num_examples - 1), 1),
    )


def variance_of(
    squares: MeanSquares, num_seeds: int, num_examples: int, *, pool: Pool | None = None, flip: float = 0.0
) -> Variance:
    """Turn mean squares into variance components.

    Args:
        squares: Mean squares of the values.
        num_seeds: S.
        num_examples: n.
        pool: What other contrasts say about the seeds. The seeds' mean square is then the average of the pool's (times
            this contrast's own `rest`) and its own, each with its degrees of freedom.
        flip: As in `Variance`.
    """
    own, df_per_seed = squares.seed, 1.0
    if pool is not None:
        df_per_seed = pool.df_per_seed
        own = (own + (df_per_seed - 1.0) * pool.ratio * squares.rest) / df_per_seed
    return Variance(
        seed=max(0.0, own - squares.rest) / num_examples,
        example=max(0.0, squares.example - squares.rest) / num_seeds,
        rest=squares.rest,
        df_per_seed=df_per_seed,
        flip=flip,
    )


def level_df_per_seed(num_levels: int) -> float:
    """Return `Pool.df_per_seed` of levels that are all compared with one baseline.

    The baseline is in every contrast, so pooling makes the degrees of freedom at most four times as many: with the
    formula of `assay.ablation.verdicts.find_pool`, 4 / (1 + 3/L).
    """
    return 4.0 / (1.0 + 3.0 / num_levels)


def interval(mean: float, variance: float, df: float, confidence: float) -> tuple[float, float]:
    """Return the ends of a t interval around a mean."""
    half = float(special.stdtrit(df, (1.0 + confidence) / 2.0)) * variance**0.5
    return mean - half, mean + half
