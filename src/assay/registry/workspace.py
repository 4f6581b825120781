"""A folder in which a version's past stands again: its commit, its data pin, its params; nothing of today's state."""

import configparser
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assay.errors import ProjectError, StorageError
from assay.project import Project

PARAMS_FILE = "params.reproduced.json"
_STATE_VARIABLES = ("ASSAY_HOME", "ASSAY_DATABASE_URL", "MLFLOW_TRACKING_URI", "PREFECT_API_URL", "PYTHONPATH")
_COPIED = ("flows", "src", "params.yaml", "constraints.txt")


@dataclass(frozen=True)
class Workspace:
    """A project restored in a folder of its own.

    Attributes:
        project: The restored project; its state lies below it.
        environment: Environment of commands that run in it: its own source first, no shared state.
        note: Where its source comes from, for people.
    """

    project: Project
    environment: Mapping[str, str]
    note: str


@contextmanager
def restored(project: Project, commit: str | None, pin: str, params: Mapping[str, Any]) -> Iterator[Workspace]:
    """Restore a project as it was; the folder is removed afterwards.

    Args:
        project: The project as it is now; its DVC cache and remotes are read.
        commit: Commit to check out; None takes the source files as they are now, where there is no git.
        pin: Text of the ``data.dvc`` of then.
        params: All params of then, written as JSON.

    Yields:
        The workspace.

    Raises:
        ProjectError: The commit is not in this repository.
        StorageError: The folder cannot be written.
    """
    scratch = project.make_home() / "cache" / "reproduce"
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=scratch))
    except OSError as error:
        raise StorageError(f"{scratch}: cannot be written ({error.strerror}). Free some space.") from error
    try:
        root, note = _check_out(project, commit, folder / "project")
        (root / "data.dvc").write_text(pin)
        (root / PARAMS_FILE).write_text(json.dumps(params))
        _share_data(project, root)
        environment = {name: value for name, value in os.environ.items() if name not in _STATE_VARIABLES}
        if (root / "src" / "assay").is_dir():
            environment["PYTHONPATH"] = str(root / "src")
        yield Workspace(Project(root, root / ".assay"), environment, note)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if commit is not None:
            _git(project, "worktree", "prune")


def _check_out(project: Project, commit: str | None, folder: Path) -> tuple[Path, str]:
    """Bring the source files of a commit; returns the project's root among them and a note."""
    if commit is None:
        folder.mkdir()
        for name in _COPIED:
            source = project.root / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            elif source.is_file():
                shutil.copy(source, folder / name)
        return folder, "the source files as they are now: no commit was recorded"
    _git(project, "worktree", "prune")  # what a killed command left
    done = _git(project, "worktree", "add", "--quiet", "--detach", str(folder), commit)
    if done.returncode != 0:
        words = (done.stderr.strip().splitlines() or ["git failed"])[-1].removeprefix("fatal: ")
        raise ProjectError(
            f"{project.root}: commit {commit} cannot be checked out ({words}). Fetch it (git fetch), then try again."
        )
    below = _git(project, "rev-parse", "--show-prefix").stdout.strip()
    root = folder / below
    if not (root / "params.yaml").is_file():
        raise ProjectError(f"{project.root}: commit {commit} holds no params.yaml at {below or 'its top'}.")
    return root, f"commit {commit[:12]}"


def _git(project: Project, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = ["git", "-C", str(project.root), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"LC_ALL": "C"})
    except FileNotFoundError as error:
        raise ProjectError("git: is not installed, and the version was made from a git commit. Install it.") from error


def _share_data(project: Project, root: Path) -> None:
    """Let DVC in the workspace read this project's cache and remotes, passwords included.

    Paths in DVC's settings count from the folder of the file that they are in, so those of this project's are made
    absolute.

    Raises:
        ProjectError: DVC's settings cannot be read.
    """
    theirs, ours = root / ".dvc", project.root / ".dvc"
    if not ours.is_dir():
        return
    theirs.mkdir(exist_ok=True)
    shared, own = (_dvc_settings(ours / name) for name in ("config", "config.local"))
    if not own.has_section("cache"):
        own.add_section("cache")
    own["cache"].setdefault("dir", shared.get("cache", "dir", fallback=str(ours / "cache")))
    own["cache"]["dir"] = _absolute(own["cache"]["dir"], ours)
    for settings, name in ((shared, "config"), (own, "config.local")):
        for section in settings.sections():
            if "remote" in section and "url" in settings[section]:
                settings[section]["url"] = _absolute(settings[section]["url"], ours)
        (theirs / name).unlink(missing_ok=True)
        descriptor = os.open(theirs / name, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            settings.write(file)


def _dvc_settings(file: Path) -> configparser.ConfigParser:
    settings = configparser.ConfigParser(interpolation=None)
    try:
        settings.read(file)
    except (configparser.Error, UnicodeDecodeError) as error:
        raise ProjectError(f"{file}: cannot be read ({str(error).splitlines()[0]}). Mend it (dvc config).") from error
    return settings


def _absolute(place: str, folder: Path) -> str:
    """Make a path absolute, in the quotes that DVC reads; an address with a scheme stays as it is."""
    bare = place.strip("\"'")
    return place if "://" in bare else f'"{folder / Path(bare).expanduser()}"'
