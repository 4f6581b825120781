"""MLflow's aliases ``champion``, ``previous`` and ``challenger``, as the ledger has them."""

from collections.abc import Iterable
from dataclasses import dataclass

from assay.errors import AssayError
from assay.registry.promotions import Promotions, champions_in_line
from assay.tracking.runs import Tracker, service_errors

CHAMPION = "champion"
PREVIOUS = "previous"
CHALLENGER = "challenger"


@dataclass(frozen=True)
class Aliases:
    """Where a model's aliases point.

    Attributes:
        champion: The champion; None where there is none.
        previous: What a rollback would go to; None where it could go nowhere.
        challenger: The latest version that met the gate and is not champion; None where there is none.
        moved: Aliases that had to be set or taken away.
    """

    champion: int | None
    previous: int | None
    challenger: int | None
    moved: tuple[str, ...]


def sync_aliases(tracker: Tracker, promotions: Promotions, model_name: str) -> Aliases:
    """Point a model's aliases to where the ledger says, whoever moved them; doing it again changes nothing.

    Nobody can change the model's champion meanwhile, so of two processes none leaves the older one. An alias whose
    version is gone from the registry is taken away.

    Args:
        tracker: The open store.
        promotions: The ledger's lines of that store.
        model_name: Registered model.

    Returns:
        Where they point now.

    Raises:
        AssayError: The champion is gone from the registry; the other aliases are right, and nothing is champion.
        ServiceError: The store or the ledger's database fails.
    """
    with promotions.held(model_name) as (history, met_gate), service_errors(tracker.store):
        line = champions_in_line(history)
        champion = _first_registered(tracker, model_name, line[-1:])
        previous = _first_registered(tracker, model_name, (v for v in reversed(line[:-1]) if v not in line[-1:]))
        challenger = _first_registered(tracker, model_name, (v for v in met_gate if v not in line[-1:]))
        wanted = {CHAMPION: champion, PREVIOUS: previous, CHALLENGER: challenger}
        moved = _point(tracker, model_name, wanted)
    if line and champion is None:
        raise _champion_is_gone(tracker, model_name, line[-1], previous)
    return Aliases(champion, previous, challenger, moved)


def _point(tracker: Tracker, name: str, wanted: dict[str, int | None]) -> tuple[str, ...]:
    """Set and take away aliases; returns those that were not right."""
    present = _read_aliases(tracker, name)
    moved = tuple(alias for alias, version in wanted.items() if present.get(alias) != version)
    for alias in moved:
        version = wanted[alias]
        if version is None:
            tracker.client.delete_registered_model_alias(name, alias)
        else:
            tracker.client.set_registered_model_alias(name, alias, str(version))
    return moved


def _read_aliases(tracker: Tracker, name: str) -> dict[str, int]:
    from mlflow.exceptions import MlflowException

    try:
        aliases = tracker.client.get_registered_model(name).aliases
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return {}
    return {alias: int(version) for alias, version in aliases.items()}


def _first_registered(tracker: Tracker, name: str, versions: Iterable[int]) -> int | None:
    return next((version for version in versions if _is_registered(tracker, name, version)), None)


def _is_registered(tracker: Tracker, name: str, version: int) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        tracker.client.get_model_version(name, str(version))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    return True


def _champion_is_gone(tracker: Tracker, name: str, version: int, previous: int | None) -> AssayError:
    todo = "Promote another version by hand: assay models promote V --force --reason TEXT."
    if previous is not None:
        todo = f"Roll back to version {previous}, which is still there: assay models rollback --to {previous}."
    return AssayError(
        f"models:/{name}/{version}: the champion was deleted from {tracker.store.shown_uri}, so the alias "
        f"{CHAMPION} points to nothing. {todo}"
    )
