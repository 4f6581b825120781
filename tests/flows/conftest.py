"""A project of its own for each test that runs the whole chain, with scikit-learn's digits as its data."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Copy:
    """A copy of this project in a folder of its own.

    Attributes:
        root: Its folder.
        environment: Variables of the commands that run in it.
    """

    root: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        return self.root / ".assay"

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "assay.cli.main", *arguments]

    def assay(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run one command in the copy; a traceback is never right."""
        done = subprocess.run(
            self.command(*arguments),
            cwd=self.root,
            env=self.environment | variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def run(self, *overrides: str, **variables: str) -> dict[str, Any]:
        """``assay run --json``: the record of a run that ended well."""
        done = self.assay("run", "--json", *QUICK, *overrides, **variables)
        assert done.returncode == 0, done.stderr
        record: dict[str, Any] = json.loads(done.stdout)
        return record


QUICK = (
    "train.num_epochs=2",
    "train.augmentation.kind=none",
    "model.channels=[8,16]",
    "evaluation.num_bootstrap=100",
    "device.num_threads=1",
)


def clean_environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "ASSAY_"))}
    return kept | {"OMP_NUM_THREADS": "1"}


@pytest.fixture
def make_copy(tmp_path: Path) -> Callable[[], Copy]:
    """Copy what a project is made of: params, flows, constraints; no data yet."""

    def make() -> Copy:
        root = tmp_path / "project"
        root.mkdir()
        for name in ("params.yaml", "constraints.txt"):
            shutil.copy(ROOT / name, root)
        shutil.copytree(ROOT / "flows", root / "flows", ignore=shutil.ignore_patterns("__pycache__"))
        return Copy(root, clean_environment())

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
