"""The ledger gives each night to one flow run, however many ask at once."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from assay.errors import ServiceError
from assay.project import Project, find_project
from assay.registry.ledger import DATABASE_VARIABLE, Ledger

NIGHT = datetime(2026, 11, 24, 2, 0, tzinfo=UTC)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "params.yaml").touch()
    return find_project(tmp_path)


def test_a_night_is_taken_once_and_kept_by_its_run(project: Project) -> None:
    ledger = Ledger(project)
    assert ledger.take_night(NIGHT, "first") is None
    assert ledger.take_night(NIGHT, "second") == "first"
    assert ledger.take_night(NIGHT, "first") is None
    assert ledger.take_night(NIGHT + timedelta(days=1), "second") is None


def test_a_night_is_the_same_in_every_time_zone(project: Project) -> None:
    ledger = Ledger(project)
    assert ledger.take_night(NIGHT, "first") is None
    assert ledger.take_night(NIGHT.astimezone(timezone(timedelta(hours=5))), "second") == "first"


def test_the_outcome_of_the_last_night_is_kept(project: Project) -> None:
    assert Ledger(project).last_night() is None
    ledger = Ledger(project)
    ledger.take_night(NIGHT, "first")
    ledger.take_night(NIGHT - timedelta(days=1), "earlier")
    ledger.close_night(NIGHT, "trained mnist5k-cnn version 3")
    ledger.close()
    assert Ledger(project).last_night() == (NIGHT, "trained mnist5k-cnn version 3")
    assert (project.home / "ledger.db").stat().st_mode & 0o777 == 0o600


TAKE = """
import sys
from datetime import datetime
from pathlib import Path
from assay.project import find_project
from assay.registry.ledger import Ledger

ledger = Ledger(find_project(Path(sys.argv[1])))
print("ready", flush=True)
sys.stdin.readline()
print(ledger.take_night(datetime.fromisoformat(sys.argv[2]), sys.argv[3]))
"""


def test_of_many_that_ask_at_once_one_gets_it(project: Project) -> None:
    Ledger(project)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TAKE, str(project.root), NIGHT.isoformat(), f"run-{number}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(6)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    answers = [process.communicate()[0].strip() for process in processes]
    winners = [number for number, answer in enumerate(answers) if answer == "None"]
    assert len(winners) == 1
    assert set(answers) == {"None", f"run-{winners[0]}"}


def test_a_database_that_cannot_be_used_is_said_without_its_password(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATABASE_VARIABLE, "sqlite:////nowhere/at/all.db")
    with pytest.raises(ServiceError, match=r"/nowhere/at/all\.db: the ledger cannot be used"):
        Ledger(project)
