import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.data.importing import import_data
from assay.data.versioning import (
    DVC_FILES,
    PinnedFile,
    folder_md5,
    hash_folder,
    make_dvc_files,
    materialize,
    read_pin,
    verify,
)
from assay.errors import DataError, PinMismatchError, SourceError
from assay.project import Project
from tests.data.made import snapshot

SHARD = "examples-00000-of-00001.parquet"


@pytest.fixture
def digits(project: Project) -> Project:
    import_data(project, "digits")
    return project


def remove_data(project: Project) -> None:
    shutil.rmtree(project.data_dir)


def remove_cache(project: Project) -> None:
    shutil.rmtree(project.root / ".dvc" / "cache")


def flip(path: Path) -> None:
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cached_shard(root: Path) -> Path:
    """The shard's object in DVC's cache or remote: the largest file."""
    return max((path for path in root.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


@settings(deadline=None, max_examples=100)
@given(st.dictionaries(st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1), st.binary()))
def test_our_folder_hash_is_dvcs(files: dict[str, bytes]) -> None:
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.tree import Tree

    pinned = tuple(PinnedFile(name, hashlib.md5(data).hexdigest(), len(data)) for name, data in files.items())
    tree = Tree()
    for file in pinned:
        tree.add((file.name,), None, HashInfo("md5", file.md5))
    tree.digest()
    assert folder_md5(pinned) == tree.hash_info.value


def test_dvc_itself_agrees_with_the_pin(digits: Project) -> None:
    from dvc.repo import Repo
    from dvc.scm import NoSCM

    pin = read_pin(digits)
    with Repo(str(digits.root), scm=NoSCM(str(digits.root))) as repo:
        assert repo.status() == {}
        (stage,) = repo.index.stages
        assert stage.outs[0].hash_info.value == pin.md5
        assert stage.outs[0].meta.size == pin.size_bytes
        assert stage.meta["source"] == "digits"


def test_dvcs_command_line_reads_the_pin_in_a_git_clone(digits: Project) -> None:
    subprocess.run(["git", "init", "-q", digits.root], check=True)
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "status"], cwd=digits.root, capture_output=True, text=True, check=True
    )
    assert "up to date" in done.stdout


def test_verify_returns_what_is_pinned(digits: Project) -> None:
    ref = verify(digits)
    assert (ref.source, ref.num_examples, ref.image_shape) == ("digits", 1797, (8, 8, 1))
    assert ref.class_names == tuple("0123456789")
    assert ref.path == str(digits.data_dir)
    assert ref.md5 == folder_md5(hash_folder(digits.data_dir))


def test_verify_needs_neither_dvc_nor_numpy(digits: Project) -> None:
    code = (
        "import sys; from assay.project import find_project; from assay.data.versioning import materialize\n"
        "materialize(find_project())\nprint([name for name in ('dvc', 'numpy', 'pyarrow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=digits.root, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_changed_byte_is_named_with_both_hashes(digits: Project) -> None:
    pinned = read_pin(digits).files[0].md5
    flip(digits.data_dir / SHARD)
    found = hash_folder(digits.data_dir)[0].md5
    for check in (verify, materialize):
        with pytest.raises(PinMismatchError) as caught:
            check(digits)
        assert all(text in str(caught.value) for text in (SHARD, pinned, found, "assay data pull", "assay data add"))


def test_missing_and_unpinned_files_are_named(digits: Project) -> None:
    (digits.data_dir / "deep").mkdir()
    (digits.data_dir / "deep" / "extra").touch()
    with pytest.raises(PinMismatchError, match=r"deep/extra: is not pinned"):
        verify(digits)
    (digits.data_dir / SHARD).unlink()
    (digits.data_dir / "deep" / "extra").rename(digits.data_dir / "zzz")
    with pytest.raises(PinMismatchError, match=rf"{SHARD}: is missing, pinned with md5"):
        verify(digits)
    remove_data(digits)
    with pytest.raises(PinMismatchError, match=r"the pinned data is not there\. Get it: assay data pull"):
        verify(digits)


def test_what_file_managers_leave_behind_does_not_count(digits: Project) -> None:
    (digits.data_dir / ".DS_Store").touch()
    verify(digits)


def test_no_pin_says_how_to_get_one(project: Project) -> None:
    for check in (verify, materialize):
        with pytest.raises(DataError, match=r"no data is pinned yet\. Import some: assay data import mnist5k"):
            check(project)


def retyped(text: str) -> str:
    values = yaml.safe_load(text)
    values["meta"]["files"][0]["md5"] = "0" * 32
    return yaml.safe_dump(values)


def without(key: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        values = yaml.safe_load(text)
        del values[key]
        return yaml.safe_dump(values)

    return change


@pytest.mark.parametrize(
    "change",
    [
        retyped,
        without("meta"),
        without("outs"),
        lambda text: "",
        lambda text: "[",
        lambda text: "a: b",
        lambda text: text[:300],
    ],
)
def test_a_pin_changed_by_hand_is_refused(digits: Project, change: Callable[[str], str]) -> None:
    digits.pin_file.write_text(change(digits.pin_file.read_text()))
    with pytest.raises(PinMismatchError, match=r"data\.dvc: .*[Rr]estore it"):
        verify(digits)


def test_missing_data_comes_back_from_dvcs_cache(digits: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(digits.root)
    remove_data(digits)
    monkeypatch.setattr("assay.data.importing.open_source", lambda *_, **__: pytest.fail("went to the source"))
    assert materialize(digits) == verify(digits)
    assert snapshot(digits.root) == before


def test_missing_data_is_imported_again_and_proves_equal(digits: Project) -> None:
    before = snapshot(digits.root)
    remove_data(digits)
    remove_cache(digits)
    materialize(digits)
    assert snapshot(digits.root) == before


@pytest.fixture
def remote(digits: Project, tmp_path: Path) -> Path:
    """A DVC remote that has the data; DVC's cache is empty."""
    from dvc.repo import Repo
    from dvc.scm import NoSCM

    config = digits.root / ".dvc" / "config"
    config.write_text(
        config.read_text() + f"    remote = store\n['remote \"store\"']\n    url = {tmp_path / 'remote'}\n"
    )
    with Repo(str(digits.root), scm=NoSCM(str(digits.root))) as repo:
        repo.push()
    remove_cache(digits)
    remove_data(digits)
    return tmp_path / "remote"


def test_missing_data_comes_from_the_remote(digits: Project, remote: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("assay.data.importing.open_source", lambda *_, **__: pytest.fail("went to the source"))
    assert materialize(digits) == verify(digits)


def test_flipped_bytes_in_cache_and_remote_never_reach_a_run(digits: Project, remote: Path) -> None:
    flip(cached_shard(remote))
    materialize(digits)
    verify(digits)


def test_a_flipped_byte_in_the_cache_is_fetched_again(
    digits: Project, remote: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    materialize(digits)
    flip(cached_shard(digits.root / ".dvc" / "cache"))
    remove_data(digits)
    monkeypatch.setattr("assay.data.importing.open_source", lambda *_, **__: pytest.fail("went to the source"))
    materialize(digits)
    verify(digits)


def test_a_remote_that_is_gone_falls_back_to_the_source(digits: Project, remote: Path) -> None:
    shutil.rmtree(remote)
    materialize(digits)
    verify(digits)


def test_a_source_that_gives_other_bytes_is_refused(digits: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    remove_data(digits)
    remove_cache(digits)
    monkeypatch.setattr("assay.data.shards._GROUP_ROWS", 999)
    with pytest.raises(
        PinMismatchError, match=rf"{SHARD}: digits gives md5 \w+, data.dvc pins \w+ \(written with pyarrow"
    ):
        materialize(digits)
    assert not digits.data_dir.exists()
    assert not (digits.root / ".data-staging").exists()


def test_a_folder_that_is_gone_says_what_to_do(project: Project, two_classes: Path) -> None:
    import_data(project, "image-folder", two_classes)
    remove_data(project)
    remove_cache(project)
    with pytest.raises(
        SourceError, match=r"image-folder 'pictures'\) is not there, and DVC does not have it"
    ) as caught:
        materialize(project)
    assert "assay data import image-folder PATH" in str(caught.value)


def test_pinning_is_quiet_and_leaves_the_rest_alone(
    project: Project, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    subprocess.run(["git", "init", "-q", project.root], check=True)
    (project.root / ".gitignore").write_text("/data/\n/.assay/\n")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    level = logging.getLogger("dvc").level
    import_data(project, "digits")
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("dvc").level == level
    assert (project.root / ".gitignore").read_text() == "/data/\n/.assay/\n"
    assert not (tmp_path / "home").exists()
    status = subprocess.run(
        ["git", "status", "--short", "-uall"], cwd=project.root, capture_output=True, text=True, check=True
    )
    assert status.stdout.split() == [
        *("??", ".dvc/.gitignore"),
        *("??", ".dvc/config"),
        *("??", ".dvcignore"),
        *("??", ".gitignore"),
        *("??", "data.dvc"),
        *("??", "params.yaml"),
    ]


def test_dvc_files_that_are_there_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    remote = mine\n")
    make_dvc_files(tmp_path)
    assert (tmp_path / ".dvc" / "config").read_text() == "[core]\n    remote = mine\n"
    assert all((tmp_path / name).exists() for name in DVC_FILES)


def test_the_committed_dvc_files_are_these() -> None:
    root = Path(__file__).parents[2]
    for name, text in DVC_FILES.items():
        assert (root / name).read_text() == text


def test_a_read_only_project_can_still_verify(digits: Project) -> None:
    for path in (digits.root, digits.data_dir):
        os.chmod(path, 0o555)
    try:
        assert materialize(digits) == verify(digits)
    finally:
        for path in (digits.root, digits.data_dir):
            os.chmod(path, 0o755)


def test_two_processes_materialize_at_once(digits: Project) -> None:
    remove_data(digits)
    code = "import assay.data.versioning as v, assay.project as p; v.materialize(p.find_project())"
    running = [subprocess.Popen([sys.executable, "-c", code], cwd=digits.root) for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    verify(digits)
    assert not (digits.root / ".data-staging").exists()


@pytest.mark.parametrize("torn", [b"", b'{"write": {"/da', b"\xff"])
def test_a_list_of_readers_that_dvc_was_killed_over_is_no_end(digits: Project, torn: bytes) -> None:
    (digits.root / ".dvc" / "tmp" / "rwlock").write_bytes(torn)
    import_data(digits, "digits")
    remove_data(digits)
    assert materialize(digits).num_examples == 1797


def test_a_list_of_readers_that_is_whole_is_left_to_dvc(digits: Project) -> None:
    path = digits.root / ".dvc" / "tmp" / "rwlock"
    reader = {"pid": os.getpid(), "cmd": "dvc push"}
    path.write_text(json.dumps({"read": {str(digits.root / "elsewhere"): [reader]}}))
    import_data(digits, "digits")
    assert json.loads(path.read_text())["read"][str(digits.root / "elsewhere")] == [reader]
