"""What `assay up` starts depends on where the results go."""

from pathlib import Path

import pytest

from assay.params import Params
from assay.project import Project, find_project
from assay.services.up import _mlflow_url, _servers


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "params.yaml").touch()
    return find_project(tmp_path)


def test_both_servers_by_default(project: Project) -> None:
    servers = _servers(project, Params())
    assert [server.name for server in servers] == ["prefect", "mlflow"]
    assert _mlflow_url(project, servers) == "http://127.0.0.1:5000"


def test_an_mlflow_server_that_is_named_is_not_started_again(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://anna:secret@mlflow.example.org")
    servers = _servers(project, Params())
    assert [server.name for server in servers] == ["prefect"]
    assert _mlflow_url(project, servers).endswith("mlflow.example.org")
    assert "secret" not in _mlflow_url(project, servers)
