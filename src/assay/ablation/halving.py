"""Which variants go on at a look: successive halving over variants, with all seeds of a variant together.

A variant is stopped or goes on with all of its seeds. Stopping one seed of it and not another would leave the lucky
ones and bias what is left; this way the trials of every variant that reaches the end are all of its trials, and its
comparison with the baseline is the one that the full grid would have made.

Source:
    Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization", AISTATS 2016.
"""

import math
from collections.abc import Mapping, Sequence


def look_epochs(num_epochs: int, shares: Sequence[float], reduction: int, num_variants: int) -> tuple[int, ...]:
    """Return the epochs after which variants are looked at; the last one is the end.

    Where fewer looks come from `num_variants` down to one, the first ones are left out: a later one knows more.

    Args:
        num_epochs: Epochs of a whole trial, ``E``.
        shares: Shares ``s`` of them; a look is after ``ceil(s E)`` epochs.
        reduction: One in so many variants goes on at each look.
        num_variants: Variants that can be stopped.
    """
    halvings = num_halvings(num_variants, reduction)
    used = sorted(shares)[max(0, len(shares) - halvings) :]
    looks = {max(1, math.ceil(share * num_epochs - 1e-9)) for share in used}
    return tuple(sorted(looks | {num_epochs}))


def num_halvings(num_variants: int, reduction: int) -> int:
    """Return how many times `num_variants` can be cut to one in `reduction` before there is one left."""
    return math.ceil(math.log(num_variants, reduction) - 1e-9) if num_variants > 1 else 0


def go_on(scores: Mapping[str, float], reduction: int) -> tuple[str, ...]:
    """Choose the variants that go on: the best one in `reduction`, rounded up; at equal scores the earlier one.

    Args:
        scores: Variant -> mean over its seeds, oriented so that higher is better, in the order of the design.
        reduction: One in so many goes on.

    Returns:
        Their names, in the order of the design.
    """
    num_kept = math.ceil(len(scores) / reduction)
    ranked = sorted(scores, key=lambda name: -scores[name])  # stable: the earlier one stays ahead
    kept = set(ranked[:num_kept])
    return tuple(name for name in scores if name in kept)
