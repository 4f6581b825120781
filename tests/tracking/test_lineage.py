import subprocess
from pathlib import Path

import pytest

from assay.params import Params
from assay.tracking.lineage import git_state, lineage_tags
from tests.tracking.parts import make_data, make_key, make_project


def git(root: Path, *arguments: str) -> str:
    options = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", "-C", str(root), *options, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "a.py").write_text("a = 1\n")
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "--quiet", "--message", "one")
    return tmp_path


def test_a_clean_checkout(checkout: Path) -> None:
    state = git_state(checkout)
    assert (state.commit, state.dirty) == (git(checkout, "rev-parse", "HEAD"), False)


@pytest.mark.parametrize("name", ["a.py", "new.py"])
def test_a_changed_or_new_file_makes_it_dirty(checkout: Path, name: str) -> None:
    (checkout / name).write_text("a = 2\n")
    assert git_state(checkout).dirty is True


def test_an_ignored_file_does_not(checkout: Path) -> None:
    (checkout / ".git" / "info" / "exclude").write_text("ignored\n")
    (checkout / "ignored").write_text("x")
    assert git_state(checkout).dirty is False


def test_outside_git_it_says_so(tmp_path: Path) -> None:
    state = git_state(tmp_path)
    assert (state.commit, state.dirty) == (None, None)
    assert "not a git repository" in state.note


def test_before_the_first_commit_it_says_so(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    assert git_state(tmp_path).note == "no commit yet"


def test_without_git_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path).note == "git is not installed"


def test_tags_lead_back_to_data_code_and_params(checkout: Path) -> None:
    project = make_project(checkout)
    tags = lineage_tags(project, make_key(), Params(), make_data(checkout))
    assert tags["assay.data.md5"] == "d" * 32 + ".dir"
    assert tags["mlflow.source.git.commit"] == tags["assay.git.commit"] == git(checkout, "rev-parse", "HEAD")
    assert tags["assay.git.dirty"] == "true"
    other = lineage_tags(project, make_key(), Params.model_validate({"train": {"l1": 0.1}}), make_data(checkout))
    assert other["assay.params.sha256"] != tags["assay.params.sha256"]
