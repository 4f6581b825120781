"""Looks at a test set: counted in the ledger before anything is seen, so that chance is not tried until it helps."""

import time

from sqlalchemy import Connection, func, select

from assay.records import Look
from assay.registry.budget import spend
from assay.registry.ledger import Ledger
from assay.registry.schema import looks

_ROUNDING = 1e-9
"""Part of alpha below which what is left of it is the rounding of sums."""


def take_look(
    ledger: Ledger,
    registry: str,
    test_set: str,
    model_name: str,
    version: int,
    champion: int,
    max_looks: int,
    alpha: float,
) -> Look:
    """Count a look at a test set, in a transaction of its own.

    The same challenger against the same champion on the same test set gets its first look again, as it was: what was
    cut short goes on, and nothing is counted twice. A look past the budget, or for which none of `alpha` is left since
    the budget was changed in between, is not counted: nothing is seen with it.

    Args:
        ledger: The project's ledger.
        registry: The MLflow store that versions live in; its models share the budget of a test set.
        test_set: Digest of the data's md5 and of the test rows.
        model_name: Registered model.
        version: The challenger.
        champion: The champion that it meets.
        max_looks: The budget.
        alpha: Highest chance of one false promotion in all looks at the test set together.

    Returns:
        The look; `Look.is_spent` where the comparison may not be made.

    Raises:
        ServiceError: The database fails.
    """
    key = {"registry": registry, "test_set": test_set}
    pair = {"model_name": model_name, "version": version, "champion": champion}
    with ledger.writing(f"looks {registry} {test_set}") as connection:
        columns = (looks.c.number, looks.c.max_looks, looks.c.alpha)
        row = connection.execute(select(*columns).filter_by(**key, **pair)).first()
        if row is not None:
            return Look(test_set, row.number, row.max_looks, row.alpha)
        look = _next_look(connection, registry, test_set, max_looks, alpha)
        if not look.is_spent:
            values = {"number": look.number, "max_looks": max_looks, "alpha": look.alpha}
            decided = {"decided_ms": int(time.time() * 1000)}
            connection.execute(looks.insert().values(key | pair | values | decided))
    return look


def _next_look(connection: Connection, registry: str, test_set: str, max_looks: int, alpha: float) -> Look:
    query = select(func.count(), func.coalesce(func.sum(looks.c.alpha), 0.0))
    mine = (looks.c.registry == registry) & (looks.c.test_set == test_set)
    taken, spent = connection.execute(query.where(mine)).one()
    left = alpha - float(spent)
    if left <= alpha * _ROUNDING:
        max_looks = min(max_looks, taken)
    return Look(test_set, taken + 1, max_looks, max(0.0, min(spend(taken + 1, max_looks, alpha), left)))
