"""A project of its own for each test that runs the whole chain, with scikit-learn's digits as its data."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.copies import ROOT, Copy, clean_environment, copy_project


@pytest.fixture
def make_copy(tmp_path: Path) -> Callable[[], Copy]:
    """Copy what a project is made of: params, flows, constraints; no data yet."""

    def make() -> Copy:
        return copy_project(tmp_path / "project")

    return make


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
    """A project into which the digits were imported, once; its databases are made and empty."""
    copy = Copy(tmp_path_factory.mktemp("digits"), clean_environment())
    shutil.copy(ROOT / "params.yaml", copy.root)
    done = copy.assay("data", "import", "digits")
    assert done.returncode == 0, done.stderr
    subprocess.run([sys.executable, "-c", WARM_UP], cwd=copy.root, env=copy.environment, check=True)
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
