"""The Parquet file of a batch scoring: one row an example, written in a stream."""

from collections import Counter
from dataclasses import dataclass, field
from typing import IO, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from assay.data.input_batches import InputBatch

_GROUP_BYTES = 8 << 20
_GROUP_ROWS = (256, 65_536)


@dataclass
class AnswerFile:
    """Writes rows in groups of one size, whatever the batches were: the same answers give the same bytes.

    It is a context; `finish` ends the file, and without it what was written is worth nothing.

    Attributes:
        file: Open for writing; it stays open.
        class_names: Class names in the order of the probabilities.
        id_columns: ``row``, ``path`` or both.
        constants: Column -> the value that all rows have in it, a string or an integer.
        num_rows: Rows taken.
        counts: Class name -> rows with that prediction, of those written.
    """

    file: IO[bytes]
    class_names: tuple[str, ...]
    id_columns: tuple[str, ...]
    constants: dict[str, str | int]
    num_rows: int = 0
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        least, most = _GROUP_ROWS
        size = min(max(least, _GROUP_BYTES // (8 * len(self.class_names))), most)
        # One place for all groups: small pieces that are kept would hold the heap apart between activations.
        self._rows = np.empty(size, np.int64)
        self._paths: list[str | None] = []
        self._probabilities = np.empty((size, len(self.class_names)))
        self._filled = 0
        self._writer: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.is_open = False  # else it would write its end when it is collected

    def add(self, batch: InputBatch, probabilities: np.ndarray) -> None:
        """Take a batch.

        Args:
            batch: Examples.
            probabilities: float64 ``[example, class]``.

        Raises:
            OSError: The file cannot be written.
        """
        first = 0
        while first < len(batch):
            part = slice(first, first + min(len(batch) - first, len(self._rows) - self._filled))
            place = slice(self._filled, self._filled + part.stop - first)
            self._rows[place] = batch.rows[part]
            self._probabilities[place] = probabilities[part]
            self._paths += batch.paths[part]
            self._filled, first = place.stop, part.stop
            if self._filled == len(self._rows):
                self._write()
        self.num_rows += len(batch)

    def finish(self, metadata: dict[str, str]) -> None:
        """Write what is left, and what the file is of into the schema's metadata; there is a row at least.

        Raises:
            OSError: The file cannot be written.
        """
        if self._filled:
            self._write()
        self._writer.add_key_value_metadata(metadata)
        self._writer.close()

    def _write(self) -> None:
        """Write a group and begin the next one."""
        table = self._table()
        if self._writer is None:
            self._writer = pq.ParquetWriter(
                self.file,
                table.schema,
                compression="zstd",
                use_dictionary=["prediction", *self.constants],
                store_schema=False,  # it would hide the metadata, part of which is known at the end only
            )
        self._writer.write_table(table, row_group_size=table.num_rows)
        self._filled, self._paths = 0, []

    def _table(self) -> pa.Table:
        rows, probabilities = self._rows[: self._filled], self._probabilities[: self._filled]
        count, num_classes = probabilities.shape
        best = probabilities.argmax(axis=1)
        predicted = [self.class_names[number] for number in best]
        self.counts.update(predicted)
        ids = {"row": pa.array(rows), "path": pa.array(self._paths, pa.string())}
        ends = pa.array(np.arange(0, (count + 1) * num_classes, num_classes, dtype=np.int32))
        return pa.table(
            {name: ids[name] for name in self.id_columns}
            | {
                "prediction": pa.array(predicted, pa.string()),
                "probability": pa.array(probabilities[np.arange(count), best]),
                "probabilities": pa.ListArray.from_arrays(ends, pa.array(probabilities.ravel())),
            }
            | {name: pa.repeat(pa.scalar(value), count) for name, value in self.constants.items()}
        )
