"""MLflow's aliases ``champion``, ``previous`` and ``challenger``, as the ledger has them."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from assay.errors import AssayError
from assay.registry.promotions import Promotions, champions_in_line
from assay.tracking.alias_table import point_aliases, versions_and_aliases
from assay.tracking.lookup import SlowLookupError
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
        store = _open_store(tracker, model_name)
        champion = _first(store, line[-1:])
        previous = _first(store, (v for v in reversed(line[:-1]) if v not in line[-1:]))
        challenger = _first(store, (v for v in met_gate if v not in line[-1:]))
        wanted = {CHAMPION: champion, PREVIOUS: previous, CHALLENGER: challenger}
        moved = tuple(alias for alias, version in wanted.items() if store.aliases.get(alias) != version)
        store.point({alias: wanted[alias] for alias in moved})
    if line and champion is None:
        raise _champion_is_gone(tracker, model_name, line[-1], previous)
    return Aliases(champion, previous, challenger, moved)


class _Store(Protocol):
    """One model's versions and aliases."""

    aliases: Mapping[str, int]

    def has(self, version: int) -> bool:
        """Whether a version is registered."""

    def point(self, wanted: Mapping[str, int | None]) -> None:
        """Set aliases and take them away."""


class _Tables:
    """Of a SQLite file, read and written without importing MLflow."""

    def __init__(self, database: Path, name: str) -> None:
        self._database, self._name = database, name
        self.aliases: Mapping[str, int]
        self._versions, self.aliases = versions_and_aliases(database, name)

    def has(self, version: int) -> bool:
        return version in self._versions

    def point(self, wanted: Mapping[str, int | None]) -> None:
        if wanted:
            point_aliases(self._database, self._name, wanted)


class _Client:
    """Of any store, through MLflow."""

    def __init__(self, tracker: Tracker, name: str) -> None:
        self._tracker, self._name = tracker, name
        self.aliases: Mapping[str, int] = _read_aliases(tracker, name)

    def has(self, version: int) -> bool:
        return _is_registered(self._tracker, self._name, version)

    def point(self, wanted: Mapping[str, int | None]) -> None:
        for alias, version in wanted.items():
            if version is None:
                self._tracker.client.delete_registered_model_alias(self._name, alias)
            else:
                self._tracker.client.set_registered_model_alias(self._name, alias, str(version))


def _open_store(tracker: Tracker, name: str) -> _Store:
    database = tracker.store.database
    if database is not None:
        with suppress(SlowLookupError):
            return _Tables(database, name)
    return _Client(tracker, name)


def _first(store: _Store, versions: Iterable[int]) -> int | None:
    return next((version for version in versions if store.has(version)), None)


def _read_aliases(tracker: Tracker, name: str) -> dict[str, int]:
    from mlflow.exceptions import MlflowException

    try:
        aliases = tracker.client.get_registered_model(name).aliases
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return {}
    return {alias: int(version) for alias, version in aliases.items()}


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
