"""A copy of this project for tests that run the whole chain."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
