"""Kernel file locks that say who holds them: a lock dies with its process, however the process dies.

They are locks of the open file (``F_OFD_SETLK``): unlike ``flock`` they can be asked about without being taken, so
that a look never stands in the way of somebody who takes one at that moment.

Source:
    fcntl(2), "Open file description locks (non-POSIX)".
"""

import fcntl
import json
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_FLOCK = "hhqqi4x"  # l_type, l_whence, l_start, l_len (0: all), l_pid


@contextmanager
def hold(file: Path, about: Mapping[str, Any], *, wait: bool) -> Iterator[bool]:
    """Hold a lock while the block runs.

    Args:
        file: The lock's file; made when missing. Only its holder may remove it.
        about: What `holder` tells about who holds it, besides the process id.
        wait: Whether to wait for another holder to let go.

    Yields:
        Whether the lock is held; always True with `wait`.
    """
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = _take(file, wait)
    if descriptor is None:
        yield False
        return
    try:
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
        found = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _all_of_it())
        if struct.unpack(_FLOCK, found)[0] == fcntl.F_UNLCK:
            return None
        text = os.pread(descriptor, 65536, 0)
    finally:
        os.close(descriptor)
    try:
        about = json.loads(text)
    except ValueError:
        return {}
    return about if isinstance(about, dict) else {}


def _take(file: Path, wait: bool) -> int | None:
    """Return the descriptor of a locked file, or None where somebody else has it."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, _all_of_it())
            if _is_still(file, descriptor):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its last holder removed the file meanwhile: a lock on it means nothing


def _is_still(file: Path, descriptor: int) -> bool:
    """Whether a path leads to the open file."""
    try:
        return os.path.samestat(os.stat(file), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _all_of_it() -> bytes:
    return struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
