"""Variations of training images, batched and drawn from an explicit generator."""

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

from assay.params import AugmentationParams, CropFlipAugmentation


def augment(
    images: UInt8[Tensor, "batch height width channel"], params: AugmentationParams, generator: torch.Generator
) -> UInt8[Tensor, "batch height width channel"]:
    """Vary a batch of images, each on its own.

    ``crop-flip`` pads with zeros, cuts a window of the old size at a uniformly random place and mirrors it left to
    right with probability 0.5 (where asked to). All draws come from `generator`, on the CPU, so the same state gives
    the same images on every device.

    Args:
        images: Images, channels last.
        params: Which variation.
        generator: Source of randomness, on the CPU.

    Returns:
        The images themselves where there is nothing to vary, else new ones of the same shape.

    Source:
        He et al., CVPR 2016, section 4.2 (after Lee et al., AISTATS 2015).
    """
    if not isinstance(params, CropFlipAugmentation):
        return images
    batch, height, width, _ = images.shape
    pad = params.padding_pixels
    shift = torch.randint(0, 2 * pad + 1, (2, batch, 1), generator=generator)
    mirror = torch.randint(0, 2, (batch, 1), generator=generator, dtype=torch.bool) & params.horizontal_flip
    columns = torch.arange(width).expand(batch, width)
    rows = torch.arange(height) + shift[0]
    columns = torch.where(mirror, width - 1 - columns, columns) + shift[1]
    padded = F.pad(images, (0, 0, pad, pad, pad, pad))
    return _gather(padded, rows.to(images.device), columns.to(images.device))


def _gather(padded: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Pick ``padded[n, rows[n, h], columns[n, w]]`` for every n, h and w."""
    batch, height, width, channels = padded.shape
    base = torch.arange(batch, device=padded.device)[:, None] * height + rows
    pixel = base[:, :, None] * width + columns[:, None, :]
    picked = padded.view(-1, channels).index_select(0, pixel.view(-1))
    return picked.view(batch, rows.shape[1], columns.shape[1], channels)
