"""Writing files that a crash never leaves half done."""

import os
from pathlib import Path


def replace_file(path: Path, content: bytes, *, is_synced: bool = True) -> None:
    """Write a file so that a crash leaves the old one or the new one, whole and on disk.

    Args:
        path: Where to.
        content: All of it.
        is_synced: Whether to wait until it is on disk. Without, that holds for a process that crashes, but a machine
            that does may leave a damaged file: for what is checked when it is read, and quickly made again.

    Raises:
        OSError: The folder cannot be written or is full; the old file stays as it was.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with partial.open("wb") as file:
            file.write(content)
            if is_synced:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    if is_synced:
        _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
