from pathlib import Path

import pytest

from assay.project import Project
from assay.tracking.runs import Tracker
from tests.tracking.parts import make_project


@pytest.fixture(scope="session")
def template_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder with an empty MLflow database, so that not every test pays for the migrations."""
    project = make_project(tmp_path_factory.mktemp("template"))
    assert Tracker.open(project, "unit").client
    return project.home


@pytest.fixture
def project(tmp_path: Path, template_home: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project with an empty SQLite store."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    project = make_project(tmp_path / "project")
    project.make_home()
    (project.home / "mlflow.db").write_bytes((template_home / "mlflow.db").read_bytes())
    return project


@pytest.fixture
def sqlite_tracker(project: Project) -> Tracker:
    return Tracker.open(project, "unit")


@pytest.fixture(params=["sqlite", "server"])
def tracker(request: pytest.FixtureRequest, project: Project, monkeypatch: pytest.MonkeyPatch) -> Tracker:
    """A tracker on SQLite, and one on a real server, in an experiment of the test's own."""
    if request.param == "server":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", request.getfixturevalue("server_uri"))
    return Tracker.open(project, f"unit {request.node.name}")
