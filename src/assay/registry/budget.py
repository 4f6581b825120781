"""The budget of looks at a test set: what each look may spend of the chance of a false promotion."""


def spend(number: int, max_looks: int, alpha: float) -> float:
    """Return the chance of a false promotion that one look at a test set may spend.

    Look k of K may spend ``alpha (K + 1) / K / (k (k + 1))``. Over all K looks that sums to `alpha`, which so bounds
    the chance that any of them promotes falsely, however the challengers are related (union bound). Early looks get
    most, since most test sets see few. It also holds where a challenger was made after learning that the earlier ones
    were not promoted: up to the first promotion there is one sequence of challengers to bound. It is no proof against
    somebody who builds challengers from the numbers of earlier looks; the falling alpha makes that hard.

    Args:
        number: k, from 1.
        max_looks: K.
        alpha: For all looks together.

    Returns:
        The chance; 0 beyond the last look.

    Raises:
        ValueError: A look before the first.

    Source:
        Blum, Hardt, "The ladder: a reliable leaderboard for machine learning competitions", ICML 2015 (why few bits
        told about a test set keep it valid).
    """
    if number < 1:
        raise ValueError(f"spend: looks count from 1, found {number}")
    if number > max_looks:
        return 0.0
    return alpha * (max_looks + 1) / max_looks / (number * (number + 1))
