"""MLflow's aliases follow the ledger, whoever moved them and whatever was deleted."""

from collections.abc import Iterator
from contextlib import closing
from threading import Thread

import pytest

from assay.errors import AssayError
from assay.project import Project
from assay.records import KEPT, REFUSED
from assay.registry.aliases import Aliases, sync_aliases
from assay.registry.ledger import DATABASE_VARIABLE, Ledger
from assay.registry.promotions import Promotions
from assay.tracking.runs import Tracker
from tests.registry.crowd import MODEL, REGISTRY, FileTracker, make_decision, promote
from tests.registry.postgres import database, postgres_folder

__all__ = ["database", "postgres_folder"]


@pytest.fixture
def promotions(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Promotions]:
    """Of a store with four versions."""
    monkeypatch.delenv(DATABASE_VARIABLE, raising=False)
    start_over(tracker)
    run = tracker.client.create_run("0")
    for _ in range(4):
        tracker.client.create_model_version(MODEL, f"{run.info.artifact_uri}/model", run.info.run_id)
    with closing(Ledger(tracker.project)) as ledger:
        yield Promotions(ledger, tracker.store.shown_uri)
    start_over(tracker)


def start_over(tracker: Tracker) -> None:
    """The server is shared by tests."""
    if tracker.client.search_registered_models(f"name = '{MODEL}'"):
        tracker.client.delete_registered_model(MODEL)
    tracker.client.create_registered_model(MODEL)


def read(tracker: Tracker) -> dict[str, int]:
    aliases = tracker.client.get_registered_model(MODEL).aliases
    return {alias: int(version) for alias, version in aliases.items()}


def test_aliases_follow_promotions_and_rollbacks(tracker: Tracker, promotions: Promotions) -> None:
    assert sync_aliases(tracker, promotions, MODEL) == Aliases(None, None, None, ())
    promote(promotions, 1)
    assert sync_aliases(tracker, promotions, MODEL) == Aliases(1, None, None, ("champion",))
    promote(promotions, 2)
    promotions.record_decision(make_decision(3, promotions.champion(MODEL), outcome=KEPT))
    synced = sync_aliases(tracker, promotions, MODEL)
    assert synced == Aliases(2, 1, 3, ("champion", "previous", "challenger"))
    assert read(tracker) == {"champion": 2, "previous": 1, "challenger": 3}
    assert sync_aliases(tracker, promotions, MODEL).moved == ()
    promotions.rollback(MODEL)
    assert sync_aliases(tracker, promotions, MODEL) == Aliases(1, None, 3, ("champion", "previous"))
    assert read(tracker) == {"champion": 1, "challenger": 3}


def test_what_was_moved_by_hand_is_moved_back(tracker: Tracker, promotions: Promotions) -> None:
    promote(promotions, 1)
    promote(promotions, 2)
    promotions.record_decision(make_decision(3, promotions.champion(MODEL), outcome=REFUSED))
    sync_aliases(tracker, promotions, MODEL)
    tracker.client.set_registered_model_alias(MODEL, "champion", "3")
    tracker.client.delete_registered_model_alias(MODEL, "previous")
    tracker.client.set_registered_model_alias(MODEL, "theirs", "4")
    assert sync_aliases(tracker, promotions, MODEL).moved == ("champion", "previous")
    assert read(tracker) == {"champion": 2, "previous": 1, "challenger": 3, "theirs": 4}


def test_a_version_that_no_gate_saw_is_no_champion(tracker: Tracker, promotions: Promotions) -> None:
    tracker.client.set_registered_model_alias(MODEL, "champion", "3")
    assert sync_aliases(tracker, promotions, MODEL) == Aliases(None, None, None, ("champion",))
    assert read(tracker) == {}


def test_a_champion_that_was_deleted_is_said_with_what_to_do(tracker: Tracker, promotions: Promotions) -> None:
    for version in (1, 2, 3):
        promote(promotions, version)
    sync_aliases(tracker, promotions, MODEL)
    tracker.client.delete_model_version(MODEL, "3")
    with pytest.raises(AssayError, match=r"/3: the champion was deleted from .* rollback --to 2\."):
        sync_aliases(tracker, promotions, MODEL)
    assert read(tracker) == {"previous": 2, "challenger": 2}
    tracker.client.delete_model_version(MODEL, "2")
    with pytest.raises(AssayError, match=r"/3: the champion was deleted from .* rollback --to 1\."):
        sync_aliases(tracker, promotions, MODEL)
    promotions.rollback(MODEL, versions={1, 4})
    assert sync_aliases(tracker, promotions, MODEL).champion == 1
    assert read(tracker) == {"champion": 1}


def test_a_model_that_was_deleted_whole_has_no_champion(tracker: Tracker, promotions: Promotions) -> None:
    promote(promotions, 1)
    sync_aliases(tracker, promotions, MODEL)
    tracker.client.delete_registered_model(MODEL)
    with pytest.raises(AssayError, match=r"the champion was deleted from .* Promote another version"):
        sync_aliases(tracker, promotions, MODEL)
    assert sync_aliases(tracker, promotions, "never registered") == Aliases(None, None, None, ())


def test_nobody_is_promoted_while_aliases_are_set(project: Project, database: str) -> None:
    """Else the slower of two would leave the older champion."""
    with closing(Ledger(project)) as ledger:
        promotions, tracker = Promotions(ledger, REGISTRY), FileTracker(project.home)
        promote(promotions, 1)
        other = Thread(target=promote, args=(promotions, 2))
        waited: list[bool] = []

        def let_the_other_try() -> None:
            if not waited:
                other.start()
                other.join(timeout=0.5)
                waited.append(other.is_alive())

        tracker.before_and_after_set = let_the_other_try
        assert sync_aliases(tracker, promotions, MODEL).champion == 1
        other.join()
        assert waited == [True]
        assert sync_aliases(tracker, promotions, MODEL).champion == 2
