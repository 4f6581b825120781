"""The ledger gives each night to one flow run, however many ask at once, and its database keeps what was decided."""

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from assay.errors import ServiceError
from assay.project import Project, find_project
from assay.registry import ledger as ledger_module
from assay.registry.ledger import DATABASE_VARIABLE, Ledger
from tests.registry.crowd import run_crowd
from tests.registry.postgres import database, postgres_folder

__all__ = ["database", "postgres_folder"]

NIGHT = datetime(2026, 11, 24, 2, 0, tzinfo=UTC)
BERLIN = ZoneInfo("Europe/Berlin")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "params.yaml").touch()
    return find_project(tmp_path)


@pytest.fixture
def ledger(project: Project, database: str) -> Iterator[Ledger]:
    with closing(Ledger(project)) as ledger:
        yield ledger


def test_a_night_is_taken_once_and_kept_by_its_run(ledger: Ledger) -> None:
    assert ledger.take_night(NIGHT, "first") is None
    assert ledger.take_night(NIGHT, "second") == "first"
    assert ledger.take_night(NIGHT, "first") is None
    assert ledger.take_night(NIGHT + timedelta(days=1), "second") is None


def test_a_night_is_the_same_in_every_time_zone(ledger: Ledger) -> None:
    assert ledger.take_night(NIGHT, "first") is None
    assert ledger.take_night(NIGHT.astimezone(timezone(timedelta(hours=5))), "second") == "first"
    twice_half_past_two = datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN)
    assert ledger.take_night(twice_half_past_two, "summer") is None
    assert ledger.take_night(twice_half_past_two.replace(fold=1), "winter") is None
    assert ledger.take_night(datetime(2026, 10, 25, 0, 30, tzinfo=UTC), "again") == "summer"


def test_the_outcome_of_the_last_night_is_kept(project: Project) -> None:
    assert Ledger(project).last_night() is None
    ledger = Ledger(project)
    ledger.take_night(NIGHT, "first")
    ledger.take_night(NIGHT - timedelta(days=1), "earlier")
    ledger.close_night(NIGHT, "trained mnist5k-cnn version 3")
    ledger.close()
    assert Ledger(project).last_night() == (NIGHT, "trained mnist5k-cnn version 3")
    assert (project.home / "ledger.db").stat().st_mode & 0o777 == 0o600


def test_a_night_keeps_a_record_of_any_length(ledger: Ledger) -> None:
    assert ledger.night(NIGHT) is None
    ledger.take_night(NIGHT, "first")
    assert [ledger.night(NIGHT)] == list(ledger.nights())
    long = '"' + "ä" * 100_000 + '"'
    ledger.close_night(NIGHT, "o" * 3000, long)
    ledger.close_night(NIGHT, "kept champion", long[:-1] + '!"')
    night = ledger.night(NIGHT)
    assert night is not None
    assert (night.due, night.flow_run_id, night.outcome) == (NIGHT, "first", "kept champion")
    assert night.record == long[:-1] + '!"'


def test_nights_are_listed_from_the_latest_on(ledger: Ledger) -> None:
    for days in (2, 0, 1):
        ledger.take_night(NIGHT - timedelta(days=days), f"run-{days}")
    assert [night.flow_run_id for night in ledger.nights()] == ["run-0", "run-1", "run-2"]
    assert [night.flow_run_id for night in ledger.nights(limit=2)] == ["run-0", "run-1"]


def test_of_1000_triggers_with_wrong_clocks_each_night_runs_once(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half past two in Berlin: twice on a night in October, never on one in March; a fifth is triggered twice."""
    first = datetime(2024, 1, 1, 2, 30)
    nights = [(first + timedelta(days=day)).replace(tzinfo=BERLIN) for day in range(1000)]
    triggers = [(night, f"run-{number}") for number, night in enumerate(nights)]
    triggers += [(night.astimezone(UTC), f"double-{number}") for number, night in enumerate(nights) if number % 5 == 0]
    triggers.sort(key=lambda trigger: trigger[0].timestamp())
    true_ms = ledger_module._now_ms()
    clock = iter(range(len(triggers)))
    monkeypatch.setattr(ledger_module, "_now_ms", lambda: true_ms + (next(clock) % 3 - 1) * 3_600_000)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda trigger: ledger.take_night(*trigger), triggers))
    won = {run for (_, run), answer in zip(triggers, answers, strict=True) if answer is None}
    assert len(triggers) == 1200 and len(won) == 1000
    kept = ledger.nights(limit=2000)
    assert {night.flow_run_id for night in kept} == won
    assert [night.due for night in kept] == sorted((night.astimezone(UTC) for night in nights), reverse=True)
    for (night, _), answer in zip(triggers, answers, strict=True):
        assert answer is None or (answer in won and answer.endswith(f"-{(night.date() - first.date()).days}"))


def test_of_many_that_open_a_new_ledger_at_once_one_gets_the_night(project: Project, database: str) -> None:
    ends = run_crowd("night", project.root, 16, NIGHT.isoformat())
    assert {code for code, _ in ends} == {0}, ends
    [winner] = [number for number, (_, answer) in enumerate(ends) if answer is None]
    assert {answer for _, answer in ends} == {None, f"run-{winner}"}


def test_a_ledger_with_nights_only_goes_on(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATABASE_VARIABLE, raising=False)
    with closing(sqlite3.connect(project.make_home() / "ledger.db")) as connection:
        connection.execute(
            "CREATE TABLE assay_nights (project VARCHAR(500) NOT NULL, due_ms BIGINT NOT NULL, flow_run_id VARCHAR(64) "
            "NOT NULL, taken_ms BIGINT NOT NULL, outcome VARCHAR(2000) NOT NULL, PRIMARY KEY (project, due_ms))"
        )
        row = (str(project.root), int(NIGHT.timestamp() * 1000), "old", 1, "trained")
        connection.execute("INSERT INTO assay_nights VALUES (?, ?, ?, ?, ?)", row)
        connection.commit()
    ledger = Ledger(project)
    assert ledger.take_night(NIGHT, "new") == "old"
    assert ledger.last_night() == (NIGHT, "trained")
    ledger.close_night(NIGHT, "trained again", "{}")
    [night] = ledger.nights()
    assert (night.outcome, night.record) == ("trained again", "{}")


def test_a_database_that_cannot_be_used_is_said_without_its_password(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATABASE_VARIABLE, "sqlite:////nowhere/at/all.db")
    with pytest.raises(ServiceError, match=r"/nowhere/at/all\.db: the ledger cannot be used"):
        Ledger(project)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("my database", "ASSAY_DATABASE_URL: not the address of a database"),
        ("mysql://me:s3cret@db/runs", r"mysql://me:\*\*\*@db/runs: the ledger can be kept in SQLite or PostgreSQL"),
        ("postgresql+pg8000://me:s3cret@db/runs", "its driver pg8000 is not installed. Install it: pip install"),
        ("postgresql+nothing://me:s3cret@db/runs", r"me:\*\*\*@db/runs: the ledger cannot be used"),
    ],
)
def test_an_address_of_no_database_is_a_request_that_was_wrong(
    project: Project, monkeypatch: pytest.MonkeyPatch, address: str, message: str
) -> None:
    monkeypatch.setenv(DATABASE_VARIABLE, address)
    with pytest.raises(ServiceError, match=message) as caught:
        Ledger(project)
    assert "s3cret" not in str(caught.value)
