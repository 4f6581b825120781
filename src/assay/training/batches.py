"""Examples by row number, out of the memory-mapped arrays and onto the device."""

import numpy as np
import torch
from torch import Tensor

from assay.data.large_arrays import expect_rows, is_large_file, take_rows
from assay.data.loading import Dataset
from assay.data.ragged import RaggedArray
from assay.data.tokenizer import PAD_ID, TextEncoder
from assay.models.spec import ModelSpec
from assay.records import SERIES, TEXT

_SHARE_OF_DEVICE_MEMORY = 0.4
_LENGTH_STEP = 8
_BLOCK_BYTES = 16 << 20


class Batches:
    """One split's examples, ready to be indexed.

    On the CPU a batch is read out of the memory-mapped array. On another device a whole split of images or table rows
    lives there if it takes less than 40% of the free memory; otherwise batches go over from pinned memory while the
    device computes. Texts become token numbers here, once.

    Args:
        dataset: All examples.
        rows: Row numbers of the split, int64 ``[example]``.
        device: Where batches are wanted.
        spec: What the model takes.
        is_trimmed: Whether texts and series are only as long as the longest of a batch needs, rounded up to a multiple
            of 8. Without, all batches have the length of the spec.

    Attributes:
        rows: Row numbers of the split.
    """

    def __init__(
        self, dataset: Dataset, rows: np.ndarray, device: torch.device, spec: ModelSpec, *, is_trimmed: bool = False
    ) -> None:
        self.rows = rows
        self._device = device
        self._labels = torch.from_numpy(dataset.labels[rows]).to(device)
        self._max_length = spec.shape[0]
        self._is_trimmed = is_trimmed
        self._inputs, self._at = _read(dataset, rows, spec)
        self._fill = PAD_ID if spec.kind == TEXT else np.nan
        self._resident: Tensor | None = None
        self._on_disk = self._inputs if isinstance(self._inputs, np.ndarray) and is_large_file(self._inputs) else None
        if device.type != "cpu" and isinstance(self._inputs, np.ndarray):
            size_bytes = len(rows) * int(np.prod(self._inputs.shape[1:])) * self._inputs.itemsize
            if size_bytes < _SHARE_OF_DEVICE_MEMORY * _free_bytes(device):
                self._resident = torch.from_numpy(self._inputs[self._at]).to(device)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def values_per_example(self) -> int:
        """Numbers in one input, at most."""
        inputs = self._inputs if isinstance(self._inputs, np.ndarray) else self._inputs.values
        per_step = int(np.prod(inputs.shape[1:]))
        return per_step if isinstance(self._inputs, np.ndarray) else per_step * self._max_length

    def take(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return one batch.

        Args:
            positions: Positions within the split, int64 ``[batch]``, on the CPU.

        Returns:
            Inputs and labels, int64 ``[batch]``, both on the device. Inputs are images, uint8
            ``[batch, height, width, channel]``, or else what `ModelSpec` says.
        """
        there = positions if self._device.type == "cpu" else positions.to(self._device, non_blocking=True)
        labels = self._labels.index_select(0, there)
        if self._resident is not None:
            return self._resident.index_select(0, there), labels
        inputs = torch.from_numpy(self._take(self._at[positions.numpy()]))
        if self._device.type == "cuda":
            inputs = inputs.pin_memory()
        return inputs.to(self._device, non_blocking=True), labels

    def expect(self, positions: Tensor) -> None:
        """Say which batch comes next, so that the disk brings what is not in memory while this one is computed.

        Args:
            positions: Positions within the split, int64 ``[batch]``, on the CPU.
        """
        if self._on_disk is not None and self._resident is None:
            expect_rows(self._on_disk, self._at[positions.numpy()])

    def _take(self, places: np.ndarray) -> np.ndarray:
        if isinstance(self._inputs, np.ndarray):
            return take_rows(self._inputs, places)
        length = self._max_length
        if self._is_trimmed:
            longest = int(self._inputs.lengths(places).max())
            length = min(length, -(-longest // _LENGTH_STEP) * _LENGTH_STEP)
        padded = self._inputs.padded(places, length, self._fill)
        return padded.astype(np.int64) if padded.dtype == np.int32 else padded


def _read(dataset: Dataset, rows: np.ndarray, spec: ModelSpec) -> tuple[np.ndarray | RaggedArray, np.ndarray]:
    """Return the inputs of a split's examples, and where each of them is in there, int64 ``[example]``."""
    if spec.kind == TEXT:
        tokens = TextEncoder(spec.tokenizer).encode(dataset.texts(rows), spec.shape[0])
        return tokens, np.arange(len(rows))
    return dataset.inputs, rows


def to_model_input(inputs: Tensor) -> Tensor:
    """Turn uint8 images ``[batch, height, width, channel]`` into float32 ``[batch, channel, height, width]``.

    Values stay 0..255. Only the shape changes hands: memory stays channels last, which the convolutions want. All
    other inputs are what a model takes already.
    """
    return inputs.permute(0, 3, 1, 2).float() if inputs.dtype == torch.uint8 else inputs


def input_statistics(dataset: Dataset, rows: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation over a split, of each image or series channel or table column.

    Exact for images; elsewhere in float64. Memory use does not grow with the split.

    Args:
        dataset: All examples.
        rows: Row numbers of the train split, int64 ``[example]``.

    Returns:
        Means and standard deviations; empty for text. A column of missing values only has mean 0 and deviation 0.
    """
    if dataset.ref.kind == TEXT:
        return (), ()
    if isinstance(dataset.inputs, np.ndarray) and dataset.inputs.dtype == np.uint8:
        return _pixel_statistics(dataset.images, rows)
    count, total, squares = np.zeros(1), np.zeros(1), np.zeros(1)
    shift = _some_values(dataset, rows[:1])[:1]
    shift = np.where(np.isnan(shift), 0.0, shift)
    for start in range(0, len(rows), 256):
        values = _some_values(dataset, rows[start : start + 256]) - shift
        is_there = ~np.isnan(values)
        values = np.where(is_there, values, 0.0)
        count = count + is_there.sum(axis=0)
        total = total + values.sum(axis=0)
        squares = squares + (values**2).sum(axis=0)
    safe = np.maximum(count, 1)
    mean = total / safe
    variance = np.maximum(squares / safe - mean**2, 0.0)
    return tuple((mean + shift[0]).tolist()), tuple(np.sqrt(variance).tolist())


def _some_values(dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    """Steps of series or rows of a table, float64 ``[step or row, channel or column]``."""
    if dataset.ref.kind == SERIES:
        values = np.concatenate([dataset.series.row(int(row)) for row in rows])
    else:
        values = dataset.table[rows]
    return np.asarray(values, np.float64)


def _pixel_statistics(images: np.ndarray, rows: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The same for images, in raw pixel values: pixel values are counted."""
    channels = images.shape[-1]
    counts = np.zeros((channels, 256), dtype=np.int64)
    block_rows = max(1, min(1024, _BLOCK_BYTES // int(np.prod(images.shape[1:]))))
    for start in range(0, len(rows), block_rows):
        block = take_rows(images, rows[start : start + block_rows])
        for channel in range(channels):
            counts[channel] += np.bincount(block[..., channel].reshape(-1), minlength=256)
    values = np.arange(256, dtype=np.float64)
    total = counts.sum(axis=1)
    mean = counts @ values / total
    variance = np.maximum(counts @ values**2 / total - mean**2, 0.0)
    return tuple(mean.tolist()), tuple(np.sqrt(variance).tolist())


def _free_bytes(device: torch.device) -> int:
    backend = getattr(torch, device.type)
    return int(backend.mem_get_info(device)[0]) if hasattr(backend, "mem_get_info") else 0
