"""Rows of unequal length in two flat arrays, so that they can be memory-mapped."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RaggedArray:
    """Rows of unequal length.

    Attributes:
        values: All rows one after the other, ``[value, ...]``.
        offsets: int64 ``[row + 1]``: row ``i`` is ``values[offsets[i]:offsets[i + 1]]``.
    """

    values: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, number: int) -> np.ndarray:
        """Return one row, ``[value, ...]``."""
        found: np.ndarray = self.values[self.offsets[number] : self.offsets[number + 1]]
        return found

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Return how long rows are.

        Args:
            rows: Row numbers, int64 ``[row]``.

        Returns:
            int64 ``[row]``.
        """
        lengths: np.ndarray = self.offsets[rows + 1] - self.offsets[rows]
        return lengths

    def padded(self, rows: np.ndarray, length: int, fill: float) -> np.ndarray:
        """Return rows of one length: shorter ones filled up at the end, longer ones cut there.

        Args:
            rows: Row numbers, int64 ``[row]``.
            length: Values of every row.
            fill: What shorter rows are filled up with.

        Returns:
            ``[row, value, ...]`` in the type of `values`.
        """
        kept = np.minimum(self.lengths(rows), length)
        result = np.full((len(rows), length, *self.values.shape[1:]), fill, self.values.dtype)
        column = np.arange(length)
        is_there = column < kept[:, None]
        result[is_there] = self.values[(self.offsets[rows][:, None] + column)[is_there]]
        return result


def from_rows(rows: list[np.ndarray]) -> RaggedArray:
    """Put rows together.

    Args:
        rows: At least one, each ``[value, ...]`` of one type.
    """
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return RaggedArray(np.concatenate(rows), offsets)
