import importlib.metadata
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.tracking.parts import REPOSITORY as ROOT


def test_the_folder_does_not_hide_the_installed_package() -> None:
    reply = subprocess.run(
        [sys.executable, "-c", "import mlflow.version; print(mlflow.__file__, mlflow.version.VERSION)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    file, version = reply.stdout.split()
    assert version == importlib.metadata.version("mlflow")
    assert ROOT / "mlflow" not in Path(file).parents


def test_the_folder_holds_no_python() -> None:
    assert (ROOT / "mlflow" / "README.md").is_file()
    assert not list((ROOT / "mlflow").rglob("*.py*"))


def ask(uri: str, headers: dict[str, str], body: bytes | None = None) -> int:
    request = urllib.request.Request(uri, data=body, headers={"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize("host", ["10.evil.example", "evil.example", "localhost"])
def test_the_configured_server_refuses_other_hosts(server_uri: str, host: str) -> None:
    page = f"{server_uri}/api/2.0/mlflow/experiments/get?experiment_id=0"
    assert ask(page, {}) == 200
    assert ask(page, {"Host": host}) == 403


def test_the_configured_server_refuses_other_origins(server_uri: str) -> None:
    page = f"{server_uri}/api/2.0/mlflow/experiments/create"
    assert ask(page, {"Origin": "http://evil.example"}, b'{"name": "from elsewhere"}') == 403
    assert ask(page, {"Origin": server_uri}, b'{"name": "from here"}') == 200
