"""A copy of this project for tests that run the whole chain."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from assay.project import only_one
from tests import preloaded

ROOT = Path(__file__).resolve().parents[1]


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
        done = preloaded.run(arguments, self.root, self.environment | variables)
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
    "gate.in_run=false",
)


def clean_environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "ASSAY_"))}
    return kept | {"OMP_NUM_THREADS": "1"}


def copy_project(root: Path) -> Copy:
    """Copy what a project is made of into a new folder: params, flows, constraints; no data yet."""
    root.mkdir()
    for name in ("params.yaml", "constraints.txt"):
        shutil.copy(ROOT / name, root)
    shutil.copytree(ROOT / "flows", root / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    return Copy(root, clean_environment())


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


def digits_project(folder: Path) -> Copy:
    """Return the project into which the digits were imported and whose databases are made and empty.

    Args:
        folder: Where it is; of the processes that ask for it, the first one makes it.
    """
    copy, made = Copy(folder / "digits", clean_environment()), folder / "digits.made"
    with only_one(folder / "digits.lock", on_wait=lambda: None):
        if not made.exists():
            copy.root.mkdir()
            shutil.copy(ROOT / "params.yaml", copy.root)
            done = copy.assay("data", "import", "digits")
            assert done.returncode == 0, done.stderr
            subprocess.run([sys.executable, "-c", WARM_UP], cwd=copy.root, env=copy.environment, check=True)
            made.touch()
    return copy


def copy_data(source: Copy, target: Copy) -> None:
    """Copy a project's pinned data, as its import left it."""
    for name in ("data", ".dvc"):
        shutil.copytree(source.root / name, target.root / name, symlinks=True)
    shutil.copy(source.root / "data.dvc", target.root)


def copy_home(source: Copy, target: Copy) -> None:
    """Copy a project's databases, which saves their making; the target has no state folder yet."""
    shutil.copytree(source.home, target.home, ignore=shutil.ignore_patterns("cache", "downloads"))
