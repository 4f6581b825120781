"""Which bytes are the data: ``data.dvc`` pins them, this module checks, fetches and pins.

``data.dvc`` is DVC's own file. Under its free-form ``meta`` key stand the facts that a run needs before it reads
a shard (classes, shape, counts) and each file's hash, so that a difference can be named on any clone.
Checking needs no DVC; only this module imports it, and only to pin and to fetch.
"""

import hashlib
import json
import logging
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from assay.data.staging import is_interrupted, settle, storage_errors
from assay.errors import AssayError, DataError, PinMismatchError, StorageError
from assay.progress import announce
from assay.project import Project, only_one
from assay.records import IMAGE, DataRef, Record, with_shape

if TYPE_CHECKING:
    from dvc.repo import Repo

IGNORED_FILES = (".DS_Store", "Thumbs.db", "desktop.ini")
"""Files that file managers leave behind; `DVC_FILES` tells DVC the same."""

DVC_FILES = {
    ".dvc/config": "[core]\n    analytics = false\n    check_update = false\n",
    ".dvc/.gitignore": "/config.local\n/tmp\n/cache\n",
    ".dvcignore": "# What DVC leaves out of data/: file managers' droppings.\n" + "\n".join(IGNORED_FILES) + "\n",
}
"""What makes a folder a DVC repository: relative path -> content."""


@dataclass(frozen=True)
class PinnedFile(Record):
    """One pinned file.

    Attributes:
        name: Path below the data folder, with ``/``.
        md5: MD5 (hex) of its bytes.
        size_bytes: Its size.
    """

    name: str
    md5: str
    size_bytes: int


@dataclass(frozen=True)
class DataPin(Record):
    """What ``data.dvc`` says.

    Attributes:
        md5: DVC's hash of the folder (ends in ``.dir``).
        source: What the data was imported from.
        source_details: Version and hash of the source, or its folder's name.
        num_examples: Number of examples.
        class_names: Class names in label order.
        shape: Of one example, as in `DataRef`.
        files: Every pinned file, by name.
        written_with: Version of pyarrow that wrote the shards; another one may write other bytes.
        kind: Kind of data, as in `DataRef`.
        columns: Names of columns or channels, as in `DataRef`.
    """

    md5: str
    source: str
    source_details: dict[str, str]
    num_examples: int
    class_names: tuple[str, ...]
    shape: tuple[int, ...]
    files: tuple[PinnedFile, ...]
    written_with: str = ""
    kind: str = IMAGE
    columns: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Size of all pinned files."""
        return sum(file.size_bytes for file in self.files)

    def to_ref(self, folder: Path) -> DataRef:
        """Return the hand-over record of the data in `folder`."""
        return DataRef(
            path=str(folder),
            md5=self.md5,
            source=self.source,
            num_examples=self.num_examples,
            class_names=self.class_names,
            shape=self.shape,
            kind=self.kind,
            columns=self.columns,
        )


def folder_md5(files: tuple[PinnedFile, ...]) -> str:
    """Return DVC's hash of a folder with these files.

    Source: DVC 3, ``dvc_data.hashfile.tree.Tree.digest``: MD5 of the JSON list of md5 and relpath, by relpath.
    """
    listing = [{"md5": file.md5, "relpath": file.name} for file in sorted(files, key=lambda file: file.name)]
    return hashlib.md5(json.dumps(listing).encode(), usedforsecurity=False).hexdigest() + ".dir"


def hash_folder(folder: Path) -> tuple[PinnedFile, ...]:
    """Hash every file below a folder, by name; what file managers leave behind does not count.

    Raises:
        StorageError: A file cannot be read.
    """
    try:
        return tuple(_hash_file(path, name) for name, path in _files_below(folder))
    except OSError as error:
        raise StorageError(
            f"{error.filename or folder}: cannot be read ({error.strerror}). Make it readable."
        ) from error


def _files_below(folder: Path) -> list[tuple[str, Path]]:
    found = [path for path in folder.rglob("*") if not path.is_dir() and path.name not in IGNORED_FILES]
    return sorted((path.relative_to(folder).as_posix(), path) for path in found)


def _hash_file(path: Path, name: str) -> PinnedFile:
    with path.open("rb") as file:
        md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        return PinnedFile(name, md5, os.fstat(file.fileno()).st_size)


def read_pin(project: Project) -> DataPin:
    """Read ``data.dvc``.

    Raises:
        DataError: There is none.
        PinMismatchError: It is no pin of ours, or was changed by hand.
    """
    path = project.pin_file
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no data is pinned yet. Import some: assay data import mnist5k.") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PinMismatchError(f"{path}: cannot be read ({_first_line(error)}). Restore it, e.g. with git.") from error
    try:
        pin = DataPin.from_json({"md5": values["outs"][0]["md5"], **with_shape(values["meta"])})
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise PinMismatchError(
            f"{path}: does not say which examples it pins (no {error} in it). Restore it, or pin data/ as it is "
            "with: assay data add."
        ) from error
    if folder_md5(pin.files) != pin.md5:
        raise PinMismatchError(
            f"{path}: pins {pin.md5}, but the files that it lists have {folder_md5(pin.files)}: it was changed by "
            "hand or by dvc. Restore it, or pin data/ as it is with: assay data add."
        )
    return pin


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def verify(project: Project) -> DataRef:
    """Hash every byte of the data against the pin.

    Raises:
        DataError: No data is pinned.
        PinMismatchError: A file is missing, changed or not pinned; it is named with both hashes.
    """
    pin = read_pin(project)
    check_folder(project.data_dir, pin)
    return pin.to_ref(project.data_dir)


def check_folder(folder: Path, pin: DataPin) -> None:
    """Compare a folder with a pin, file by file.

    Raises:
        PinMismatchError: As for `verify`.
    """
    pinned = {file.name: file for file in pin.files}
    found = {file.name: file for file in hash_folder(folder)} if folder.is_dir() else {}
    if not found:
        raise PinMismatchError(f"{folder}: the pinned data is not there. Get it: assay data pull.")
    advice = "Get the pinned bytes back (remove the folder, then: assay data pull), or pin these: assay data add."
    for name in sorted(pinned.keys() | found.keys()):
        if name not in found:
            raise PinMismatchError(f"{folder / name}: is missing, pinned with md5 {pinned[name].md5}. {advice}")
        if name not in pinned:
            raise PinMismatchError(f"{folder / name}: is not pinned in data.dvc. Remove it, or pin it: assay data add.")
        if found[name] != pinned[name]:
            raise PinMismatchError(
                f"{folder / name}: has md5 {found[name].md5} ({found[name].size_bytes:,} bytes), data.dvc pins "
                f"{pinned[name].md5} ({pinned[name].size_bytes:,} bytes). {advice}"
            )


def has_data(project: Project) -> bool:
    """Whether there is any file in the data folder."""
    return project.data_dir.is_dir() and bool(_files_below(project.data_dir))


def materialize(project: Project) -> DataRef:
    """Make sure that the pinned bytes are on disk.

    Present data is hashed. Missing data comes from DVC's cache or remote if one has it, otherwise from the source
    that was pinned; either way every byte is compared with the pin before it is put in place.

    Args:
        project: The project.

    Raises:
        DataError: No data is pinned.
        PinMismatchError: The data differs from the pin, or the source gives other bytes today.
        SourceError: The data is nowhere and its source cannot be read.
    """
    if not has_data(project) or is_interrupted(project):
        with storage_errors(project.root), data_lock(project):
            settle(project)
            pin = read_pin(project)
            if not has_data(project):
                from assay.data.importing import restore

                restore(project, pin)
                return pin.to_ref(project.data_dir)
    return verify(project)


@contextmanager
def data_lock(project: Project) -> Iterator[None]:
    """Let one process at a time change the data.

    Raises:
        StorageError: The state folder cannot be written.
    """
    path = project.make_home() / "data.lock"
    with only_one(path, on_wait=lambda: announce("data", "another process is changing the data: waiting for it")):
        yield


def make_dvc_files(root: Path) -> None:
    """Make a folder a DVC repository; files that are there are left alone.

    Raises:
        OSError: The folder cannot be written.
    """
    for name, text in DVC_FILES.items():
        path = root / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


def write_pin(project: Project, staging: Path, pin: DataPin) -> Path:
    """Let DVC take ``<staging>/data`` into its cache and write a pin for it.

    Args:
        project: The project.
        staging: Folder in the project that holds ``data/``.
        pin: The facts to write beside DVC's own.

    Returns:
        ``<staging>/data.dvc``, ready to be moved to the project's root.

    Raises:
        StorageError: DVC cannot write its cache.
    """
    make_dvc_files(project.root)
    path = staging / "data.dvc"
    with _dvc_repo(project) as repo:
        repo.add(str(staging / "data"), relink=False)
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    if values["outs"][0]["md5"] != pin.md5:
        raise PinMismatchError(
            f"{staging / 'data'}: DVC counts {values['outs'][0]['md5']}, Assay {pin.md5}: a file changed meanwhile, or "
            ".dvcignore leaves one out. Try again."
        )
    facts = pin.to_json()
    del facts["md5"]
    with path.open("w", encoding="utf-8") as file:
        yaml.safe_dump({**values, "meta": facts}, file, sort_keys=False, width=120)
        file.flush()
        os.fsync(file.fileno())
    return path


def fetch_from_dvc(project: Project, pin: DataPin, folder: Path) -> list[str]:
    """Copy the pinned files out of DVC's cache, filled from the remote first if one is configured.

    Every file is hashed: DVC does not notice a flipped byte in a cache or remote.

    Args:
        project: The project.
        pin: What to fetch.
        folder: An empty folder for the files.

    Returns:
        Why it did not work, sentence by sentence; empty if all files are there and right.
    """
    if not (project.root / ".dvc").is_dir():
        return ["there is no DVC repository"]
    with _dvc_repo(project) as repo:
        problems = _copy_from_cache(repo, pin, folder)
        if not problems:
            return []
        if not repo.config["core"].get("remote"):
            return [*problems, "no DVC remote is configured"]
        try:
            repo.fetch(targets=[str(project.pin_file)])
        except Exception as error:  # Each remote's library has its own errors; all mean "not from there".
            return [*problems, f"the DVC remote did not deliver: {error}"]
        return _copy_from_cache(repo, pin, folder)


def _copy_from_cache(repo: "Repo", pin: DataPin, folder: Path) -> list[str]:
    """Copy and hash; an object whose bytes are wrong is removed, so that it can be fetched again."""
    problems = []
    for file in pin.files:
        cached = Path(repo.cache.local.oid_to_path(file.md5))
        target = folder / file.name
        if not cached.is_file():
            problems.append(f"DVC's cache lacks {file.name}")
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(cached, target)
        if _hash_file(target, file.name) != file:
            problems.append(f"DVC's cache held damaged bytes for {file.name}")
            cached.unlink()
            target.unlink()
    return problems


@contextmanager
def _dvc_repo(project: Project) -> "Iterator[Repo]":
    """Open the project's DVC repository: quiet, no telemetry, no git, scratch files in the state folder."""
    os.environ["DVC_NO_ANALYTICS"] = "1"
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.scm import NoSCM
    from dvc.ui import ui

    logger = logging.getLogger("dvc")
    level = logger.level
    logger.setLevel(logging.ERROR)
    ui.error_console.quiet = True
    scratch = str(project.cache_dir / "dvc")
    config: dict[str, Any] = {"core": {"site_cache_dir": scratch, "analytics": False, "check_update": False}}
    repo = None
    try:
        with warnings.catch_warnings():
            # DVC's use of pygtrie, nothing of ours.
            warnings.filterwarnings("ignore", "_NoneStep.value will soon", DeprecationWarning)
            repo = Repo(str(project.root), config=config, scm=NoSCM(str(project.root)), _wait_for_lock=True)
            _remove_torn_list(repo)
            yield repo
    except DvcException as error:
        raise _dvc_failed(project, error) from error
    finally:
        logger.setLevel(level)
        if repo:
            repo.close()


def _remove_torn_list(repo: "Repo") -> None:
    """Remove DVC's list of readers and writers if a killed process left half of it.

    DVC writes that list in place and from then on refuses every command, its own included. The processes in it are
    gone or hold DVC's guard, which is taken here for the look.
    """
    from dvc.lock import make_lock
    from dvc.rwlock import RWLOCK_FILE, RWLOCK_LOCK

    path = Path(repo.tmp_dir, RWLOCK_FILE)
    guard = make_lock(
        str(path.with_name(RWLOCK_LOCK)),
        tmp_dir=repo.tmp_dir,
        hardlink_lock=repo.config["core"].get("hardlink_lock", False),
        wait=True,
    )
    with guard:
        try:
            json.loads(path.read_bytes())
        except FileNotFoundError:
            pass
        except ValueError:
            path.unlink()


def _dvc_failed(project: Project, error: Exception) -> AssayError:
    reason = str(error) + (f": {error.__cause__}" if error.__cause__ else "")
    return StorageError(
        f"{project.root / '.dvc'}: DVC cannot do its part ({reason}). Check that the folder is writable and its "
        "config is sound, then try again."
    )
