"""A project of its own for each test that runs the whole chain, with scikit-learn's digits as its data."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from assay.project import only_one
from tests.copies import ROOT, Copy, clean_environment, copy_project


@pytest.fixture
def make_copy(tmp_path: Path) -> Callable[[], Copy]:
    """Copy what a project is made of: params, flows, constraints; no data yet."""

    def make() -> Copy:
        return copy_project(tmp_path / "project")

    return make


SERVE = """
import json, os, sys
from pathlib import Path
from assay.services.local_prefect import LocalPrefect, quiet_settings

home = Path(sys.argv[1])
with LocalPrefect(home) as prefect:
    prefect.ready()
    named = quiet_settings(home) | {name: os.environ[name] for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING")}
    print(json.dumps(named), flush=True)
    sys.stdin.read()
"""

WARM_UP = """
import psutil
from assay.project import find_project
from assay.services.local_prefect import LocalPrefect
from assay.tracking.runs import Tracker

project = find_project()
project.make_home()
with LocalPrefect(project.home / "prefect") as prefect:
    Tracker.open(project, "assay").client.search_experiments()
    prefect.ready()
    server = psutil.Process(prefect.pid)
server.wait()
"""


@pytest.fixture(scope="session")
def digits_data(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """A project into which the digits were imported, once for all processes; its databases are made and empty."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    copy, made = Copy(shared / "digits", clean_environment()), shared / "digits.made"
    with only_one(shared / "digits.lock", on_wait=lambda: None):
        if not made.exists():
            copy.root.mkdir()
            shutil.copy(ROOT / "params.yaml", copy.root)
            done = copy.assay("data", "import", "digits")
            assert done.returncode == 0, done.stderr
            subprocess.run([sys.executable, "-c", WARM_UP], cwd=copy.root, env=copy.environment, check=True)
            made.touch()
    return copy


@pytest.fixture
def fresh_project(make_copy: Callable[[], Copy], digits_data: Copy) -> Copy:
    """A project with the digits in it that nothing was ever run in."""
    copy = make_copy()
    for name in ("data", ".dvc"):
        shutil.copytree(digits_data.root / name, copy.root / name, symlinks=True)
    shutil.copy(digits_data.root / "data.dvc", copy.root)
    return copy


@pytest.fixture
def project(fresh_project: Copy, digits_data: Copy) -> Copy:
    """A project with the digits in it and no run yet; its databases are there, which saves their making."""
    shutil.copytree(digits_data.home, fresh_project.home, ignore=shutil.ignore_patterns("cache", "downloads"))
    return fresh_project


@pytest.fixture(scope="session")
def named_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Prefect server for many projects, as variables that name it."""
    command = [sys.executable, "-c", SERVE, str(tmp_path_factory.mktemp("prefect"))]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=clean_environment(), text=True
    ) as server:
        assert server.stdin is not None and server.stdout is not None
        named: dict[str, str] = json.loads(server.stdout.readline())
        yield named
        server.stdin.close()


@pytest.fixture
def served(project: Copy, named_server: dict[str, str]) -> Copy:
    """A project whose runs find a server that is there already, which saves them one of their own."""
    project.environment |= named_server
    return project
