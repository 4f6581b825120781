"""Rows of arrays that are larger than memory, read without keeping them."""

import mmap
import os
from typing import TypeGuard

import numpy as np

MAPPED_BYTES = 1 << 30
"""Arrays up to this size are read through their memory map, which is quickest for small rows."""


def take_rows(array: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Read some rows of an array, which may be memory-mapped.

    What is read through a memory map counts as memory of the process until the kernel wants it back, and a container
    may be ended for it. So rows of a large one are read out of its file: the page cache is the same.

    Args:
        array: ``[row, ...]``.
        rows: Row numbers, int64 ``[row]``, from 0 on.

    Returns:
        A copy of these rows.

    Raises:
        OSError: The file cannot be read.
    """
    if not is_large_file(array):
        return np.asarray(array).take(rows, axis=0)
    found = np.empty((len(rows), *array.shape[1:]), array.dtype)
    row_bytes = found[:1].nbytes
    file = _open(array)
    try:
        places = memoryview(found.reshape(-1).view(np.uint8).data)
        for number, row in enumerate(rows.tolist()):
            place = places[number * row_bytes : (number + 1) * row_bytes]
            if os.preadv(file, [place], array.offset + row * row_bytes) != row_bytes:
                raise OSError(f"{array.filename} breaks off at row {row}")
    finally:
        os.close(file)
    return found


def expect_rows(array: np.memmap, rows: np.ndarray) -> None:
    """Say which rows will be read soon, so that the disk brings what is not in memory meanwhile.

    Args:
        array: ``[row, ...]``, for which `is_large_file` holds.
        rows: Row numbers, int64 ``[row]``.

    Source:
        posix_fadvise(2), POSIX_FADV_WILLNEED.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    row_bytes = array.nbytes // len(array)
    file = _open(array)
    try:
        for row in rows.tolist():
            os.posix_fadvise(file, array.offset + row * row_bytes, row_bytes, os.POSIX_FADV_WILLNEED)
    finally:
        os.close(file)


def is_large_file(array: np.ndarray) -> TypeGuard[np.memmap]:
    """Whether rows are read out of a file: those of a large memory map, but not of a view, which begins elsewhere."""
    if not isinstance(array, np.memmap) or array.nbytes <= MAPPED_BYTES or array.filename is None:
        return False
    owner: object = array.base
    return isinstance(owner, mmap.mmap)


def _open(array: np.memmap) -> int:
    """Open the file of an array for which `is_large_file` holds."""
    return os.open(str(array.filename), os.O_RDONLY)
