"""Rows of arrays that are larger than memory, read without keeping them."""

import mmap
import os

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
    if not isinstance(array, np.memmap) or array.nbytes <= MAPPED_BYTES or array.filename is None:
        return np.asarray(array[rows])
    owner: object = array.base
    if not isinstance(owner, mmap.mmap):  # a view of some rows, which lie elsewhere in the file
        return np.asarray(array[rows])
    found = np.empty((len(rows), *array.shape[1:]), array.dtype)
    row_bytes = found[:1].nbytes
    file = os.open(array.filename, os.O_RDONLY)
    try:
        places = memoryview(found.reshape(-1).view(np.uint8).data)
        for number, row in enumerate(rows.tolist()):
            place = places[number * row_bytes : (number + 1) * row_bytes]
            if os.preadv(file, [place], array.offset + row * row_bytes) != row_bytes:
                raise OSError(f"{array.filename} breaks off at row {row}")
    finally:
        os.close(file)
    return found
