"""Where a project and its state live on disk.

A project is a folder with a ``params.yaml``, found upward from the current one. Its state is ``.assay/``
(or ``ASSAY_HOME``), readable by its owner only.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from assay.errors import ProjectError, StorageError


@dataclass(frozen=True)
class Project:
    """The paths of one project; nothing is created until `make_home` is called.

    Attributes:
        root: Folder that holds ``params.yaml``.
        home: State folder, ``.assay`` below the root unless ``ASSAY_HOME`` names another.
    """

    root: Path
    home: Path

    @property
    def params_file(self) -> Path:
        """The project's ``params.yaml``."""
        return self.root / "params.yaml"

    @property
    def data_dir(self) -> Path:
        """Parquet shards, pinned by `pin_file`."""
        return self.root / "data"

    @property
    def pin_file(self) -> Path:
        """``data.dvc``: the pin of `data_dir`."""
        return self.root / "data.dvc"

    @property
    def cache_dir(self) -> Path:
        """Whatever can be made again."""
        return self.home / "cache"

    @property
    def runs_dir(self) -> Path:
        """Work folders of runs (checkpoints, figures), one for each run key."""
        return self.home / "runs"

    @property
    def flow_file(self) -> Path:
        """The flow that ``assay run`` runs."""
        return self.root / "flows" / "pipeline.py"

    def dataset(self, name: str) -> "Project":
        """Return where data beside `data_dir` lives: a folder of the state with ``data.dvc`` and ``data/`` of its own.

        Args:
            name: Name of the data, a single folder.
        """
        return Project(root=self.home / "datasets" / name, home=self.home)

    def make_home(self) -> Path:
        """Create the state folder with mode 0700.

        Returns:
            The state folder.

        Raises:
            StorageError: The folder cannot be created or written.
        """
        try:
            self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"{self.home}: cannot create the state folder ({error.strerror}). Make its parent writable, "
                "or set ASSAY_HOME to a folder that is."
            ) from error
        if not os.access(self.home, os.W_OK | os.X_OK):
            raise StorageError(
                f"{self.home}: the state folder is read-only. Make it writable, or set ASSAY_HOME to a folder that is."
            )
        return self.home


def find_project(start: Path | None = None) -> Project:
    """Find the project at or above a folder.

    Args:
        start: Folder to start from; the current one by default.

    Returns:
        The project, with ``ASSAY_HOME`` (relative paths count from the root) applied.

    Raises:
        ProjectError: No ``params.yaml`` at or above `start`.
    """
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / "params.yaml").is_file():
            return project_at(folder)
    raise ProjectError(
        f"{here}: no params.yaml here or in any folder above. Change into a project, or make one: assay new DIR."
    )


def project_at(root: Path) -> Project:
    """Return the project of a folder, whether or not its ``params.yaml`` is there yet.

    Args:
        root: The folder, an absolute path; ``ASSAY_HOME`` is applied as for `find_project`.
    """
    home = Path(os.environ.get("ASSAY_HOME") or ".assay").expanduser()
    return Project(root=root, home=home if home.is_absolute() else root / home)


@contextmanager
def only_one(lock_file: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Let one process at a time into the block; the kernel frees the lock of a process that dies.

    Args:
        lock_file: A file for the lock alone; made when missing, never removed.
        on_wait: Called once if another process is inside, before waiting for it.
    """
    lock_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with lock_file.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
