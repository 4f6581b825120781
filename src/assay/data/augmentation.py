"""Variations of training examples, batched and drawn from an explicit generator on the CPU."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from assay.data.tokenizer import PAD_ID, UNKNOWN_ID
from assay.params import (
    AugmentationParams,
    CropFlipAugmentation,
    SeriesAugmentation,
    TokenDropoutAugmentation,
)


def augment(
    inputs: Tensor,
    params: AugmentationParams,
    generator: torch.Generator,
    *,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    unknown_id: int = UNKNOWN_ID,
) -> Tensor:
    """Vary a batch of inputs, each on its own.

    All draws come from `generator`, on the CPU, so the same state gives the same inputs on every device.

    Args:
        inputs: Images, uint8 ``[batch, height, width, channel]``; series, float32 ``[batch, step, channel]``, NaN at
            the end where one is shorter; or token numbers, int64 ``[batch, token]``, 0 at the end.
        params: Which variation.
        generator: Source of randomness, on the CPU.
        mean: Of each image or series channel over train.
        std: Standard deviation, the same.
        unknown_id: Number of the unknown token.

    Returns:
        The inputs themselves where there is nothing to vary, else new ones of the same shape.
    """
    match params:
        case CropFlipAugmentation():
            return _cutout(_crop_flip(inputs, params, generator), params.cutout_pixels, mean, generator)
        case TokenDropoutAugmentation():
            return _drop_tokens(inputs, params.prob, unknown_id, generator)
        case SeriesAugmentation():
            return _vary_series(inputs, params, mean, std, generator)
    return inputs


def mixup(
    inputs: Float[Tensor, "batch ..."], labels: Int[Tensor, " batch"], alpha: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, float]:
    """Mix every example of a batch with another one of it.

    With a share ``s`` drawn from Beta(alpha, alpha) for the batch and a random permutation ``p``, example ``i`` becomes
    ``s x_i + (1 - s) x_p(i)``, and its loss the same mixture of the losses of both labels.

    Args:
        inputs: Inputs as a model takes them.
        labels: Their classes.
        alpha: Parameter of the Beta distribution, above 0.
        generator: Source of randomness, on the CPU.

    Returns:
        Mixed inputs, the labels mixed in, and the share of the own label.

    Source:
        Zhang, Cisse, Dauphin and Lopez-Paz, "mixup", ICLR 2018, section 2.
    """
    first, second = torch._standard_gamma(torch.full((2,), alpha, dtype=torch.float64), generator=generator).tolist()
    share = first / (first + second) if first + second > 0 else 0.5
    other = torch.randperm(len(labels), generator=generator).to(labels.device)
    return share * inputs + (1.0 - share) * inputs[other], labels[other], share


def _crop_flip(
    images: UInt8[Tensor, "batch height width channel"], params: CropFlipAugmentation, generator: torch.Generator
) -> UInt8[Tensor, "batch height width channel"]:
    """Pad with zeros, cut a window of the old size at a uniformly random place, mirror it with probability 0.5.

    Source:
        He et al., CVPR 2016, section 4.2 (after Lee et al., AISTATS 2015).
    """
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


def _cutout(images: Tensor, side: int, mean: Sequence[float], generator: torch.Generator) -> Tensor:
    """Give a square around a uniformly random pixel the mean colour; it may reach over the edge.

    Source:
        DeVries and Taylor, arXiv:1708.04552, section 3.
    """
    if side == 0:
        return images
    batch, height, width, _ = images.shape
    centre = torch.stack([torch.randint(0, size, (batch,), generator=generator) for size in (height, width)])
    first = centre - side // 2
    inside = [
        (torch.arange(size) >= start[:, None]) & (torch.arange(size) < start[:, None] + side)
        for size, start in zip((height, width), first, strict=True)
    ]
    square = (inside[0][:, :, None] & inside[1][:, None, :])[..., None].to(images.device)
    colour = torch.tensor(mean or (0.0,)).round().to(torch.uint8).to(images.device)
    return torch.where(square, colour, images)


def _drop_tokens(
    tokens: Int[Tensor, "batch token"], prob: float, unknown_id: int, generator: torch.Generator
) -> Int[Tensor, "batch token"]:
    """Replace tokens by the unknown one; padding stays.

    Source:
        Word dropout: Dai and Le, NeurIPS 2015, section 4.1; Iyyer et al., ACL 2015, section 3.2.
    """
    dropped = (torch.rand(tokens.shape, generator=generator) < prob).to(tokens.device)
    return torch.where(dropped & (tokens != PAD_ID), unknown_id, tokens)


def _vary_series(
    series: Float[Tensor, "batch step channel"],
    params: SeriesAugmentation,
    mean: Sequence[float],
    std: Sequence[float],
    generator: torch.Generator,
) -> Float[Tensor, "batch step channel"]:
    """Scale, add noise, mask a stretch; padding (NaN) stays.

    Source:
        Um et al., ICMI 2017, section 3.1 (jittering, scaling); the masked stretch: Park et al., "SpecAugment",
        Interspeech 2019, section 2, time masking.
    """
    batch, steps, channels = series.shape
    centre, spread = (torch.tensor(values, dtype=torch.float32, device=series.device) for values in (mean, std))
    factor = 1.0 + params.scale_std * torch.randn((batch, 1, channels), generator=generator)
    noise = params.jitter_std * torch.randn(series.shape, generator=generator)
    varied = centre + (series - centre) * factor.to(series.device) + noise.to(series.device) * spread
    lengths = (~series.isnan().all(dim=2)).sum(dim=1).cpu()
    longest = (params.time_mask_fraction * lengths).floor()
    width = (torch.rand(batch, generator=generator) * (longest + 1)).floor()
    start = (torch.rand(batch, generator=generator) * (lengths - width + 1)).floor()
    place = torch.arange(steps)
    masked = ((place >= start[:, None]) & (place < (start + width)[:, None])).to(series.device)
    return torch.where(masked[..., None] & ~series.isnan(), centre, varied)
