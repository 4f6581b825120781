"""Examples by row number, out of the memory-mapped arrays and onto the device."""

import numpy as np
import torch
from torch import Tensor

from assay.data.loading import ImageDataset

_SHARE_OF_DEVICE_MEMORY = 0.4


class Batches:
    """One split's examples, ready to be indexed.

    On the CPU a batch is read out of the memory-mapped array. On another device the whole split lives there if it
    takes less than 40% of the free memory; otherwise batches go over from pinned memory while the device computes.

    Args:
        dataset: All examples.
        rows: Row numbers of the split, int64 ``[example]``.
        device: Where batches are wanted.

    Attributes:
        rows: Row numbers of the split.
    """

    def __init__(self, dataset: ImageDataset, rows: np.ndarray, device: torch.device) -> None:
        self.rows = rows
        self._dataset = dataset
        self._device = device
        self._labels = torch.from_numpy(dataset.labels[rows]).to(device)
        size_bytes = len(rows) * int(np.prod(dataset.images.shape[1:]))
        resident = device.type != "cpu" and size_bytes < _SHARE_OF_DEVICE_MEMORY * _free_bytes(device)
        self._resident = torch.from_numpy(dataset.images[rows]).to(device) if resident else None

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return one batch.

        Args:
            positions: Positions within the split, int64 ``[batch]``, on the CPU.

        Returns:
            Images, uint8 ``[batch, height, width, channel]``, and labels, int64 ``[batch]``, both on the device.
        """
        there = positions if self._device.type == "cpu" else positions.to(self._device, non_blocking=True)
        labels = self._labels.index_select(0, there)
        if self._resident is not None:
            return self._resident.index_select(0, there), labels
        images = torch.from_numpy(self._dataset.images[self.rows[positions.numpy()]])
        if self._device.type == "cuda":
            images = images.pin_memory()
        return images.to(self._device, non_blocking=True), labels


def to_model_input(images: Tensor) -> Tensor:
    """Turn uint8 ``[batch, height, width, channel]`` into float32 ``[batch, channel, height, width]``.

    Values stay 0..255. Only the shape changes hands: memory stays channels last, which the convolutions want.
    """
    return images.permute(0, 3, 1, 2).float()


def pixel_statistics(dataset: ImageDataset, rows: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return each channel's mean and standard deviation over a split, in raw pixel values.

    Exact: pixel values are counted, so memory use does not grow with the split.

    Args:
        dataset: All examples.
        rows: Row numbers of the train split, int64 ``[example]``.

    Returns:
        Means and standard deviations, one for each channel.
    """
    channels = dataset.images.shape[-1]
    counts = np.zeros((channels, 256), dtype=np.int64)
    for start in range(0, len(rows), 1024):
        block = dataset.images[rows[start : start + 1024]]
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
