"""A project is found upward; its state folder is its owner's only."""

import stat
from pathlib import Path

import pytest

from assay.errors import ProjectError, StorageError
from assay.project import find_project


def test_found_from_a_folder_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ASSAY_HOME", raising=False)
    (tmp_path / "params.yaml").touch()
    (tmp_path / "a" / "b").mkdir(parents=True)
    project = find_project(tmp_path / "a" / "b")
    assert project.root == tmp_path.resolve()
    assert project.home == tmp_path.resolve() / ".assay"


def test_no_project_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match=f"{tmp_path}: no params.yaml"):
        find_project(tmp_path)


def test_home_is_for_its_owner_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "params.yaml").touch()
    monkeypatch.setenv("ASSAY_HOME", str(tmp_path / "state" / "deep"))
    home = find_project(tmp_path).make_home()
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


def test_a_file_in_the_way_of_the_home_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "params.yaml").touch()
    (tmp_path / "taken").touch()
    monkeypatch.setenv("ASSAY_HOME", str(tmp_path / "taken"))
    with pytest.raises(StorageError, match="taken: cannot create the state folder"):
        find_project(tmp_path).make_home()
