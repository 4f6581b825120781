"""A night that fails ends in its record, whatever else is broken at the time."""

import json
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from assay.errors import ParamsError, ServiceError
from assay.params import NightlyParams
from assay.project import Project
from assay.records import NightRecord
from assay.registry.ledger import Ledger
from flows import nightly, page
from tests.ports import free_port
from tests.tracking.parts import make_project

DUE = datetime(2026, 3, 1, 2, tzinfo=UTC)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path / "project")


@pytest.fixture
def ledger(project: Project) -> Iterator[Ledger]:
    with closing(Ledger(project)) as ledger:
        assert ledger.take_night(DUE, "flow-7") is None
        yield ledger


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[NightRecord]:
    """What a message would be sent about; the page, for which a server would be needed, is left out."""
    records: list[NightRecord] = []

    def notify(schedule: NightlyParams, record: NightRecord) -> bool:
        records.append(record)
        return True

    monkeypatch.setattr(nightly, "notify", notify)
    monkeypatch.setattr(page, "show_night", lambda record: None)
    return records


def kept(ledger: Ledger) -> NightRecord:
    night = ledger.night(DUE)
    assert night is not None and night.outcome.startswith("failed: ")
    return NightRecord.from_json(json.loads(night.record))


def test_params_that_cannot_be_read_fail_the_night(project: Project, ledger: Ledger, told: list[NightRecord]) -> None:
    project.params_file.write_text("train: {num_epoch: 3}\n")
    with pytest.raises(ParamsError, match="num_epoch") as raised:
        nightly._run_night(project, ledger, DUE, "flow-7")
    record = kept(ledger)
    assert (record.outcome, record.reason, record.flow_run_id) == ("failed", str(raised.value), "flow-7")
    assert told == [], "nobody knows whom to tell"


@pytest.mark.parametrize("error", [ServiceError("the store is gone."), ZeroDivisionError("half")])
def test_a_night_that_fails_with_the_store_is_kept_and_told(
    project: Project,
    ledger: Ledger,
    told: list[NightRecord],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    def fail(*_: object) -> NightRecord:
        raise error

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr(nightly, "decide_night", fail)
    with pytest.raises(type(error)) as raised:
        nightly._run_night(project, ledger, DUE, "flow-7")
    assert raised.value is error, "what went wrong first is what is said"
    record = kept(ledger)
    assert record.reason in (str(error), "ZeroDivisionError: half")
    assert told == [record]
    assert "The night was not written down whole: " in caplog.text
