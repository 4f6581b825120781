"""A project of its own for each test that runs the whole chain, with scikit-learn's digits as its data."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.copies import Copy, clean_environment, copy_data, copy_home, copy_project
from tests.tracking.parts import shared


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


@pytest.fixture
def fresh_project(make_copy: Callable[[], Copy], digits_data: Copy) -> Copy:
    """A project with the digits in it that nothing was ever run in."""
    copy = make_copy()
    copy_data(digits_data, copy)
    return copy


@pytest.fixture
def project(fresh_project: Copy, digits_data: Copy) -> Copy:
    """A project with the digits in it and no run yet; its databases are there, which saves their making."""
    copy_home(digits_data, fresh_project)
    return fresh_project


@contextmanager
def prefect_server(home: Path, databases: Path) -> Iterator[str]:
    """A Prefect server for many projects; yields the variables that name it, as JSON."""
    shutil.copytree(databases, home)
    command = [sys.executable, "-c", SERVE, str(home)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=clean_environment(), text=True
    ) as server:
        assert server.stdin is not None and server.stdout is not None
        yield server.stdout.readline()
        server.stdin.close()


@pytest.fixture(scope="session")
def named_server(shared_folder: Path, digits_data: Copy) -> Iterator[dict[str, str]]:
    """A Prefect server for many projects, the same for all processes, as variables that name it."""
    folder = shared_folder / "prefect-server"
    with shared(folder, prefect_server(folder / "prefect", digits_data.home / "prefect")) as named:
        yield json.loads(named)


@pytest.fixture
def served(project: Copy, named_server: dict[str, str]) -> Copy:
    """A project whose runs find a server that is there already, which saves them one of their own."""
    project.environment |= named_server
    shutil.rmtree(project.home / "prefect")
    (project.home / "prefect").symlink_to(named_server["PREFECT_HOME"])
    return project
