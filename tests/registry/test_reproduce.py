"""A version's past stands again in a folder of its own, and what comes of it gets a verdict."""

import json
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from dvc.config import Config

from assay.errors import AssayError, ModelFileError, ProjectError, RunFailedError, StorageError
from assay.project import Project
from assay.records import ModelRef, RunRecord
from assay.registry.load import find_version
from assay.registry.reproduce import (
    DIFFERENT,
    IDENTICAL,
    WITHIN_NOISE,
    _load_key,
    _read_record,
    _trained_params,
    judge,
)
from assay.registry.workspace import PARAMS_FILE, restored
from assay.tracking.runs import Tracker
from tests.registry.gated import add_version, make_bench, make_params, make_pictures
from tests.tracking.parts import make_record

PIN = "outs: []\nmeta: then\n"
GIT = ("git", "-c", "user.email=a@example.org", "-c", "user.name=a")


@pytest.mark.parametrize(
    ("is_same", "differences", "difference", "tolerance", "verdict", "words"),
    [
        (True, (), 0.0, None, IDENTICAL, "the weights are the same bytes"),
        (True, ("numpy 1 -> 2",), 0.0, 0.1, IDENTICAL, "the weights are the same bytes, although numpy 1 -> 2"),
        (False, ("train.seed 0 -> 1",), 0.0, 0.1, DIFFERENT, "first in what they depend on: train.seed 0 -> 1"),
        (False, ("a", "b", "c"), 0.0, 0.1, DIFFERENT, "first in what they depend on: a and 2 more"),
        (False, (), 0.02, 0.02, WITHIN_NOISE, "two seeds differ by as much (up to 0.0200)"),
        (False, (), -0.02, 0.02, WITHIN_NOISE, "two seeds differ by as much (up to 0.0200)"),
        (False, (), 0.0201, 0.02, DIFFERENT, "more than two seeds do (0.0200)"),
        (False, (), -0.0201, 0.02, DIFFERENT, "more than two seeds do (0.0200)"),
        (False, (), 0.0, None, DIFFERENT, "nobody measured the spread of seeds"),
        (False, (), 0.0, 0.0, WITHIN_NOISE, "yet the weights do"),
    ],
)
def test_verdicts(
    is_same: bool,
    differences: tuple[str, ...],
    difference: float,
    tolerance: float | None,
    verdict: str,
    words: str,
) -> None:
    found, reason = judge(is_same, differences, difference, tolerance)
    assert found == verdict and words in reason and not reason.endswith(".")


def test_params_go_back_as_they_were_written() -> None:
    """A commit of then would refuse what has become a param since, and its gate has nothing to say."""
    written = {"train": {"seed": 3}, "ablation": {"in_run": True, "num_seeds": 4}, "gate": {"alpha": 0.1}}
    assert _trained_params(written) == {"train": {"seed": 3}, "ablation": {"in_run": False, "num_seeds": 4}}
    assert _trained_params({"train": {}}) == {"train": {}}
    assert written["ablation"]["in_run"] is True


def test_what_the_run_said_last_is_its_record_or_its_error() -> None:
    record = make_record("7")
    said = json.dumps(record.to_json() | {"of_a_later_version": 1})
    assert _read_record(f"noise\n{said}\n", "", 3) == record
    error = json.dumps({"error": {"kind": "DataError", "message": "the data is gone."}})
    with pytest.raises(ModelFileError, match=r"did not come to an end: the data is gone\."):
        _read_record(error, "words", 2)
    with pytest.raises(RunFailedError, match=r"did not come to an end: the last line"):
        _read_record("", "a line\nthe last line\n", 1)
    with pytest.raises(AssayError, match="exit code -9"):
        _read_record("", "", -9)
    assert isinstance(_read_record(said, "", 0), RunRecord)


def test_a_run_that_lost_its_key_is_said(sqlite_tracker: Tracker) -> None:
    bench = make_bench(sqlite_tracker, make_pictures(120), make_params())
    ref: ModelRef = add_version(bench, "first")
    info = find_version(sqlite_tracker, ref.name, ref.version)
    with sqlite_tracker.artifact(ref.run_id, "lineage.json") as path:
        path.unlink()
    with pytest.raises(ModelFileError, match=r"models:/pets/1: its run .* lineage\.json is gone"):
        _load_key(sqlite_tracker, info)


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run([*GIT, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def commit(folder: Path, message: str) -> str:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", message)
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture(params=["", "models/pets"])
def repository(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Project, str]:
    """A project at the top of a git repository, or in a folder of it, that has gone on since a commit."""
    top = tmp_path / "repository"
    root = top / request.param
    (root / "flows").mkdir(parents=True)
    git(top, "init", "--quiet")
    (top / ".gitignore").write_text(".assay/\nconfig.local\n")
    (root / "params.yaml").write_text("then: true\n")
    (root / "flows" / "pipeline.py").write_text("then = True\n")
    (root / "data.dvc").write_text("of another day\n")
    (root / "src" / "assay").mkdir(parents=True)
    (root / "src" / "assay" / "__init__.py").write_text("")
    then = commit(top, "then")
    (root / "params.yaml").write_text("now: true\n")
    (root / "flows" / "pipeline.py").write_text("now = True\n")
    commit(top, "now")
    (root / "flows" / "pipeline.py").write_text("uncommitted = True\n")
    return Project(root, root / ".assay"), then


def left_behind(project: Project) -> list[Path]:
    return list((project.home / "cache" / "reproduce").iterdir())


def test_commit_pin_and_params_stand_again(repository: tuple[Project, str], monkeypatch: pytest.MonkeyPatch) -> None:
    project, then = repository
    for name in ("ASSAY_HOME", "MLFLOW_TRACKING_URI", "ASSAY_DATABASE_URL", "PREFECT_API_URL", "PYTHONPATH"):
        monkeypatch.setenv(name, "today's")
    head = git(project.root, "rev-parse", "HEAD")
    with restored(project, then, PIN, {"train": {"seed": 3}}) as workspace:
        root = workspace.project.root
        assert root != project.root and root.is_relative_to(project.home)
        assert (root / "params.yaml").read_text() == "then: true\n"
        assert (root / "flows" / "pipeline.py").read_text() == "then = True\n"
        assert (root / "data.dvc").read_text() == PIN
        assert json.loads((root / PARAMS_FILE).read_text()) == {"train": {"seed": 3}}
        assert workspace.project.home == root / ".assay"
        assert "today's" not in workspace.environment.values()
        assert workspace.environment["PYTHONPATH"] == str(root / "src")
        assert workspace.note == f"commit {then[:12]}"
        assert len(git(project.root, "worktree", "list").splitlines()) == 2
    assert left_behind(project) == []
    assert len(git(project.root, "worktree", "list").splitlines()) == 1
    assert (project.root / "flows" / "pipeline.py").read_text() == "uncommitted = True\n"
    assert git(project.root, "rev-parse", "HEAD") == head


def test_nothing_is_left_where_the_body_fails(repository: tuple[Project, str]) -> None:
    project, then = repository
    with pytest.raises(KeyboardInterrupt), restored(project, then, PIN, {}) as workspace:
        (workspace.project.root / "model").write_text("half")
        raise KeyboardInterrupt
    assert left_behind(project) == []
    assert len(git(project.root, "worktree", "list").splitlines()) == 1


def test_a_commit_that_is_not_here_is_said(repository: tuple[Project, str]) -> None:
    project, _ = repository
    with (
        pytest.raises(ProjectError, match=rf"commit {'b' * 40} cannot be checked out \(.*\)\. Fetch it"),
        restored(project, "b" * 40, PIN, {}),
    ):
        pass
    assert left_behind(project) == []


def test_a_commit_before_the_project_was_there_is_said(tmp_path: Path) -> None:
    top = tmp_path / "repository"
    top.mkdir()
    git(top, "init", "--quiet")
    (top / "README").write_text("first\n")
    before = commit(top, "before")
    root = top / "pets"
    root.mkdir()
    (root / "params.yaml").write_text("")
    project = Project(root, root / ".assay")
    with pytest.raises(ProjectError, match=r"holds no params\.yaml at pets/"), restored(project, before, PIN, {}):
        pass
    assert left_behind(project) == []
    assert len(git(top, "worktree", "list").splitlines()) == 1


@pytest.fixture
def plain(tmp_path: Path) -> Project:
    """A project outside git."""
    root = tmp_path / "plain"
    (root / "flows" / "__pycache__").mkdir(parents=True)
    (root / "flows" / "pipeline.py").write_text("now = True\n")
    (root / "params.yaml").write_text("now: true\n")
    (root / "data").mkdir()
    return Project(root, root / ".assay")


def test_without_a_commit_the_files_of_now_are_taken_and_that_is_said(plain: Project) -> None:
    with restored(plain, None, PIN, {}) as workspace:
        root = workspace.project.root
        found = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
        assert found == ["data.dvc", "flows/pipeline.py", PARAMS_FILE, "params.yaml"]
        assert (root / "data.dvc").read_text() == PIN
        assert "PYTHONPATH" not in workspace.environment
        assert "no commit was recorded" in workspace.note
    assert left_behind(plain) == []


def test_a_commit_without_git_is_said(plain: Project) -> None:
    with (
        pytest.raises(ProjectError, match=r"cannot be checked out .*not a git repository"),
        restored(plain, "b" * 40, PIN, {}),
    ):
        pass
    assert left_behind(plain) == []


def test_a_folder_that_cannot_be_made_is_said(plain: Project) -> None:
    plain.make_home()
    plain.cache_dir.write_text("a file where a folder should be")
    with pytest.raises(StorageError, match="reproduce: cannot be written"), restored(plain, None, PIN, {}):
        pass


@pytest.fixture
def write_config(plain: Project) -> Callable[[str, str], None]:
    def write(shared: str, local: str) -> None:
        folder = plain.root / ".dvc"
        folder.mkdir()
        (folder / "config").write_text(shared)
        if local:
            (folder / "config.local").write_text(local)

    return write


def dvc_settings(root: Path) -> dict[str, dict[str, dict[str, str]]]:
    """What DVC itself reads there."""
    settings: dict[str, dict[str, dict[str, str]]] = dict(Config(dvc_dir=str(root / ".dvc")))
    return settings


def test_dvc_reads_this_projects_cache_and_remotes(plain: Project, write_config: Callable[[str, str], None]) -> None:
    write_config(
        '[core]\n    analytics = false\n    remote = store\n[\'remote "store"\']\n    url = "../backup, old"\n'
        "['remote \"bucket\"']\n    url = s3://bucket/path\n",
        "['remote \"bucket\"']\n    secret_access_key = 50%of it\n",
    )
    with restored(plain, None, PIN, {}) as workspace:
        settings = dvc_settings(workspace.project.root)
        local = workspace.project.root / ".dvc" / "config.local"
        assert stat.S_IMODE(local.stat().st_mode) == 0o600
        assert stat.S_IMODE(plain.home.stat().st_mode) == 0o700
    assert settings["cache"]["dir"] == str(plain.root / ".dvc" / "cache")
    assert Path(settings["remote"]["store"]["url"]).resolve() == plain.root / "backup, old"
    bucket = settings["remote"]["bucket"]
    assert (bucket["url"], bucket["secret_access_key"]) == ("s3://bucket/path", "50%of it")
    assert settings["core"]["remote"] == "store"
    assert left_behind(plain) == [], "the password is gone with the folder"


@pytest.mark.parametrize("where", ["config", "config.local"])
def test_a_cache_that_is_elsewhere_is_shared_too(
    plain: Project, write_config: Callable[[str, str], None], where: str
) -> None:
    setting = "[cache]\n    dir = ../../shared 50% cache\n"
    write_config(setting if where == "config" else "[core]\n", setting if where == "config.local" else "")
    with restored(plain, None, PIN, {}) as workspace:
        found = dvc_settings(workspace.project.root)["cache"]["dir"]
    assert Path(found).resolve() == plain.root.parent / "shared 50% cache"


def test_settings_of_dvc_that_cannot_be_read_are_said(plain: Project, write_config: Callable[[str, str], None]) -> None:
    write_config("no section = 1\n", "")
    with pytest.raises(ProjectError, match=r"\.dvc/config: cannot be read"), restored(plain, None, PIN, {}):
        pass
    assert left_behind(plain) == []


def test_a_committed_file_of_secrets_does_not_lend_its_mode(tmp_path: Path) -> None:
    root = tmp_path / "repository"
    (root / ".dvc").mkdir(parents=True)
    (root / "params.yaml").write_text("")
    for name in ("config", "config.local"):
        (root / ".dvc" / name).write_text("[core]\n")
    git(root, "init", "--quiet")
    then = commit(root, "by mistake")
    with restored(Project(root, root / ".assay"), then, PIN, {}) as workspace:
        local = workspace.project.root / ".dvc" / "config.local"
        assert stat.S_IMODE(local.stat().st_mode) == 0o600
        shutil.rmtree(workspace.project.root / ".dvc")
