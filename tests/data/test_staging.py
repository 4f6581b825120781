import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from assay.data import staging
from assay.data.staging import (
    check_space,
    is_interrupted,
    replace_data_and_pin,
    settle,
    staging_folder,
    storage_errors,
)
from assay.errors import StorageError
from assay.project import Project

OLD, NEW = {"data/x": b"old", "data.dvc": b"old pin"}, {"data/x": b"new", "data.dvc": b"new pin"}


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours runs after it."""


def lay(project: Project, has_old: bool) -> Path:
    if has_old:
        project.data_dir.mkdir()
        (project.data_dir / "x").write_bytes(b"old")
        project.pin_file.write_bytes(b"old pin")
    folder = project.root / staging.STAGING
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "x").write_bytes(b"new")
    (folder / "data.dvc").write_bytes(b"new pin")
    return folder


def contents(project: Project) -> dict[str, bytes]:
    return {
        path.relative_to(project.root).as_posix(): path.read_bytes()
        for path in project.root.rglob("*")
        if path.is_file() and path.name != "params.yaml"
    }


def steps(monkeypatch: pytest.MonkeyPatch, stop_at: int, error: BaseException) -> Iterator[None]:
    """Let the renames go through up to the one at `stop_at`."""
    number = 0
    rename, replace = Path.rename, staging.os.replace

    def counted(done):
        def step(*args):
            nonlocal number
            number += 1
            if number == stop_at:
                raise error
            return done(*args)

        return step

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", counted(rename))
        patch.setattr(staging.os, "replace", counted(replace))
        yield


@pytest.mark.parametrize("has_old", [True, False])
def test_the_new_takes_the_place_of_the_old(project: Project, has_old: bool) -> None:
    folder = lay(project, has_old)
    replace_data_and_pin(project, folder)
    settle(project)
    assert contents(project) == NEW
    assert not is_interrupted(project)


@pytest.mark.parametrize(("has_old", "stop_at"), [*((True, n) for n in (1, 2, 3, 4)), *((False, n) for n in (1, 2, 3))])
def test_a_rename_that_fails_leaves_the_old(
    project: Project, monkeypatch: pytest.MonkeyPatch, has_old: bool, stop_at: int
) -> None:
    folder = lay(project, has_old)
    error = OSError(errno.EIO, "input/output error")
    for _ in steps(monkeypatch, stop_at, error):
        with pytest.raises(OSError, match="input/output"):
            replace_data_and_pin(project, folder)
    settle(project)
    assert contents(project) == (OLD if has_old else {})


@pytest.mark.parametrize(("has_old", "stop_at"), [*((True, n) for n in (1, 2, 3, 4)), *((False, n) for n in (1, 2, 3))])
def test_killed_at_any_rename_the_next_command_settles_it(
    project: Project, monkeypatch: pytest.MonkeyPatch, has_old: bool, stop_at: int
) -> None:
    folder = lay(project, has_old)
    monkeypatch.setattr(staging, "_roll_back", lambda *_: None)
    for _ in steps(monkeypatch, stop_at, Killed()):
        with pytest.raises(Killed):
            replace_data_and_pin(project, folder)
    assert is_interrupted(project)
    settle(project)
    assert contents(project) == ((OLD if has_old else {}) if stop_at == 1 else NEW)


@pytest.mark.parametrize("roll_back_stop", [1, 2])
def test_killed_while_undoing_nothing_is_lost(
    project: Project, monkeypatch: pytest.MonkeyPatch, roll_back_stop: int
) -> None:
    folder = lay(project, True)
    (folder / "data.dvc").rename(folder / "ready.dvc")
    project.data_dir.rename(folder / "previous")
    (folder / "data").rename(project.data_dir)
    for _ in steps(monkeypatch, roll_back_stop, Killed()):
        with pytest.raises(Killed):
            staging._roll_back(project, folder)
    settle(project)
    assert contents(project) == NEW


def test_the_staging_folder_goes_whatever_happens(project: Project) -> None:
    with pytest.raises(ValueError), staging_folder(project) as folder:
        (folder / "x").touch()
        raise ValueError
    assert not is_interrupted(project)


def test_too_little_space_is_said_beforehand(tmp_path: Path) -> None:
    check_space(tmp_path, 1)
    with pytest.raises(StorageError, match=r"MiB are free and this takes about .* Nothing was changed"):
        check_space(tmp_path, 2**60)


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.ENOSPC, "Free some"), (errno.EROFS, "writable"), (errno.EACCES, "writable"), (errno.EIO, "Check the disk")],
)
def test_what_the_system_says_gets_advice(tmp_path: Path, number: int, advice: str) -> None:
    with pytest.raises(StorageError, match=advice) as caught, storage_errors(tmp_path):
        raise OSError(number, "what a library says")
    assert f"{tmp_path}: cannot be written ({os.strerror(number)})" in str(caught.value)
