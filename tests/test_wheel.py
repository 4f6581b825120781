"""The wheel alone, away from the repository: a project is made, data imported, a model trained."""

import json
import os
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Installed:
    """A virtual environment that holds the wheel, and borrows all other packages.

    Attributes:
        python: Its interpreter.
        home: The home folder of its commands.
    """

    python: Path
    home: Path

    def run(self, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "LANG", "LC_"))}
        own = {"HOME": str(self.home), "PATH": f"{self.python.parent}:/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, cwd=folder, env=kept | own, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    pytest.importorskip("hatchling", reason="the wheel is built with hatchling, offline")
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    python = folder / "venv" / "bin" / "python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(subprocess.check_output([python, "-c", where], text=True).strip())
    theirs = subprocess.check_output([sys.executable, "-c", where], text=True)
    (packages / "borrowed.pth").write_text(theirs)  # the .pth files there, and with them a checkout, are not read
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "--quiet"]
    subprocess.run([*install, "--ignore-installed", *map(str, folder.glob("*.whl"))], check=True)
    (folder / "home").mkdir()
    return Installed(python, folder / "home")


@pytest.mark.slow
def test_a_project_of_the_wheel_trains_away_from_the_repository(installed: Installed, tmp_path: Path) -> None:
    where = installed.run(tmp_path, str(installed.python), "-c", "import assay; print(assay.__file__)")
    assert where.stdout.strip().startswith(str(installed.python.parents[1])), where.stderr
    made = installed.run(tmp_path, "assay", "new", "shop")
    assert made.returncode == 0, made.stderr
    shop = tmp_path / "shop"
    for folder in ("flows", "mlflow"):
        assert {file.name for file in (shop / folder).iterdir() if file.is_file()} == {
            file.name for file in (ROOT / folder).iterdir() if file.is_file()
        }
    imported = installed.run(shop, "assay", "data", "import", "digits")
    assert imported.returncode == 0, imported.stderr
    choices = ["train.num_epochs=2", "evaluation.num_bootstrap=100", "gate.in_run=false"]
    done = installed.run(shop, "assay", "run", "--json", *choices)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["model_name"] == "shop"
    assert record["metrics"]["accuracy"] > 0.3
    again = installed.run(shop, "assay", "run", "--json", *choices)
    assert json.loads(again.stdout)["reused"] is True


@pytest.mark.slow
def test_a_folder_in_use_is_refused(installed: Installed, tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "mine.txt").touch()
    done = installed.run(tmp_path, "assay", "new", "shop")
    assert done.returncode == 2
    assert done.stderr.startswith("assay: ") and "is not empty (mine.txt)" in done.stderr
    assert [entry.name for entry in (tmp_path / "shop").iterdir()] == ["mine.txt"]
