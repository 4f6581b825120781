"""All or nothing: new data and its pin are made beside the old and take their place in a few renames.

``.data-staging/`` in the project holds ``data/`` (the shards) and ``data.dvc`` (their pin). Once both are
complete the pin is renamed to ``ready.dvc``; from then on the change only goes forward: killed before, the old
data stands untouched; killed after, the next command finishes the renames.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from assay.errors import StorageError
from assay.project import Project

STAGING = ".data-staging"
"""Name of the folder, in the project's root: renames need one file system."""

_SPARE_BYTES = 32 * 2**20
_FULL_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def staging_folder(project: Project) -> Iterator[Path]:
    """Make the staging folder, and remove it whatever happens. The caller holds the data lock."""
    staging = project.root / STAGING
    staging.mkdir()
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def is_interrupted(project: Project) -> bool:
    """Whether a change of the data is under way, or was killed."""
    return (project.root / STAGING).exists()


def settle(project: Project) -> None:
    """Finish or clear away a change that was killed. The caller holds the data lock."""
    staging = project.root / STAGING
    if (staging / "ready.dvc").exists():
        _put_in_place(project, staging)
    if staging.exists():
        shutil.rmtree(staging)


def replace_data_and_pin(project: Project, staging: Path) -> None:
    """Put the staged data and pin in place of the old, or leave the old as it was.

    Args:
        project: The project.
        staging: Holds ``data/`` and ``data.dvc``, both complete.

    Raises:
        OSError: A rename failed; the old data and pin are in place again.
    """
    (staging / "data.dvc").rename(staging / "ready.dvc")
    try:
        _put_in_place(project, staging)
    except BaseException:
        _roll_back(project, staging)
        raise


def replace_data(project: Project, staging: Path) -> None:
    """Put the staged data in place where there is none yet; the pin stays."""
    if project.data_dir.exists():
        project.data_dir.rename(staging / "previous")
    (staging / "data").rename(project.data_dir)


def _put_in_place(project: Project, staging: Path) -> None:
    """Go forward from wherever the renames stand."""
    fresh = staging / "data"
    if fresh.exists():
        if project.data_dir.exists():
            project.data_dir.rename(staging / "previous")
        fresh.rename(project.data_dir)
    os.replace(staging / "ready.dvc", project.pin_file)


def _roll_back(project: Project, staging: Path) -> None:
    """Undo the renames, newest first; going forward again stays possible until the last one."""
    fresh, previous = staging / "data", staging / "previous"
    if not fresh.exists():
        project.data_dir.rename(fresh)
    if previous.exists():
        previous.rename(project.data_dir)
    (staging / "ready.dvc").unlink(missing_ok=True)


def check_space(folder: Path, size_bytes: int) -> None:
    """Refuse to start what will not fit.

    Args:
        folder: Where it goes.
        size_bytes: What it takes.

    Raises:
        StorageError: Less than that and a little to spare is free.
    """
    needed, free = size_bytes + _SPARE_BYTES, shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"{folder}: {free / 2**20:,.0f} MiB are free and this takes about {needed / 2**20:,.0f} MiB. Nothing was "
            "changed. Free some disk space."
        )


@contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """Turn what the operating system says about a folder into a `StorageError`."""
    try:
        yield
    except OSError as error:
        place = error.filename or folder
        if error.errno in _FULL_ERRORS:
            advice = "Free some disk space."
        elif error.errno in {errno.EROFS, errno.EACCES, errno.EPERM}:
            advice = "Make the folder writable for this user."
        else:
            advice = "Check the disk and the folder's permissions."
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise StorageError(f"{place}: cannot be written ({reason}). Nothing was changed. {advice}") from error
