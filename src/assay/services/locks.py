"""Kernel file locks that say who holds them: a lock dies with its process, however the process dies."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def hold(file: Path, about: Mapping[str, Any], *, wait: bool) -> Iterator[bool]:
    """Hold a lock while the block runs.

    Args:
        file: The lock's file; made when missing, never removed.
        about: What `holder` tells about who holds it, besides the process id.
        wait: Whether to wait for another holder to let go.

    Yields:
        Whether the lock is held; always True with `wait`.
    """
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), **about}).encode(), 0)
        yield True
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def holder(file: Path) -> dict[str, Any] | None:
    """Say who holds a lock.

    Args:
        file: The lock's file.

    Returns:
        What the holder wrote about itself (at least ``pid``, empty in the instant before it has), or None where
        nobody holds it.
    """
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        # A shared lock, so that two who look at the same time do not see each other.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        text = os.pread(descriptor, 65536, 0)
    finally:
        os.close(descriptor)
    try:
        about = json.loads(text)
    except ValueError:
        return {}
    return about if isinstance(about, dict) else {}
