"""What the data looks like: numbers, and a picture of every class."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from assay.data.loading import ImageDataset
from assay.data.validation import SPLIT_NAMES, count_overlap, validate
from assay.errors import StorageError
from assay.records import DataRef, DataReport, Record

if TYPE_CHECKING:
    from PIL import Image

_MAX_ROWS = 25
_COLUMNS = 12
_MIN_CELL, _MAX_CELL = 56, 112
_GAP = 6
_INK, _FAINT, _PAPER = (28, 32, 38), (110, 118, 129), (255, 255, 255)


@dataclass(frozen=True)
class DataDescription(Record):
    """Numbers about a data set.

    Attributes:
        data: The pinned data.
        report: Counts of classes and duplicates.
        given_split_counts: Examples of each split that the data brings, and of ``none``.
        num_groups: Groups that must not be divided.
        num_test_copies: Examples of a given test split that are in train or val, too.
        pixel_mean: Mean of each channel over all examples, 0..255.
        pixel_std: Standard deviation of each channel.
        contact_sheet: PNG with examples of each class.
    """

    data: DataRef
    report: DataReport
    given_split_counts: dict[str, int]
    num_groups: int
    num_test_copies: int
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    contact_sheet: str


def describe(dataset: ImageDataset, out_dir: Path, title: str | None = None) -> DataDescription:
    """Count, measure and draw.

    Args:
        dataset: The decoded examples.
        out_dir: Folder for the contact sheet.
        title: Heading of the contact sheet; the source's name by default.

    Raises:
        DataError: The data does not pass validation.
        StorageError: The contact sheet cannot be written.
    """
    mean, std = pixel_statistics(dataset.images)
    codes, counts = np.unique(dataset.given_split, return_counts=True)
    names = ["none" if code < 0 else SPLIT_NAMES[code] for code in codes.tolist()]
    path = out_dir / f"contact-sheet-{dataset.ref.md5[:8]}.png"
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        draw_contact_sheet(dataset, title or dataset.ref.source).save(path)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror}). Make the folder writable.") from error
    return DataDescription(
        data=dataset.ref,
        report=validate(dataset),
        given_split_counts={name: int(count) for name, count in zip(names, counts, strict=True)},
        num_groups=len(np.unique(dataset.groups[dataset.groups >= 0])),
        num_test_copies=count_overlap(dataset.content_hash, dataset.given_split),
        pixel_mean=mean,
        pixel_std=std,
        contact_sheet=str(path),
    )


def pixel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, exact, a thousand images at a time.

    Args:
        images: uint8 ``[example, height, width, channel]``.

    Returns:
        Means and standard deviations, 0..255, one for each channel.
    """
    num_channels = images.shape[-1]
    counts = np.zeros((num_channels, 256), np.int64)
    for start in range(0, len(images), 1000):
        part = images[start : start + 1000]
        for channel in range(num_channels):
            counts[channel] += np.bincount(part[..., channel].ravel(), minlength=256)
    values = np.arange(256)
    total = counts.sum(axis=1)
    mean = counts @ values / total
    variance = (counts * (values - mean[:, None]) ** 2).sum(axis=1) / total
    return tuple(mean.tolist()), tuple(np.sqrt(variance).tolist())


def draw_contact_sheet(dataset: ImageDataset, title: str) -> "Image.Image":
    """Draw a row of examples for each class, spread evenly over the class.

    Args:
        dataset: The decoded examples.
        title: Heading.
    """
    from PIL import Image, ImageDraw, ImageFont

    body, heading = ImageFont.load_default(16), ImageFont.load_default(22)
    names = dataset.ref.class_names[:_MAX_ROWS]
    height, width = _cell_size(dataset.ref.image_shape)
    labels = [_shortened(name) for name in names]
    left = 36 + int(max(body.getlength(label) for label in [*labels, "00,000 images"]))
    top, bottom = 84, 52
    size = (
        max(left + _COLUMNS * (width + _GAP) + 18, 20 + int(body.getlength(_caption(dataset))) + 20),
        top + len(names) * (height + _GAP) + bottom,
    )
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((20, 18), title, font=heading, fill=_INK)
    draw.text((20, 50), _caption(dataset), font=body, fill=_FAINT)
    for row, label in enumerate(labels):
        y = top + row * (height + _GAP)
        members = np.flatnonzero(dataset.labels == row)
        draw.text((20, y + height / 2 - 2), label, font=body, fill=_INK, anchor="ls")
        draw.text((20, y + height / 2 + 4), f"{len(members):,} images", font=body, fill=_FAINT, anchor="la")
        for column, member in enumerate(_spread(members)):
            sheet.paste(_thumbnail(dataset.images[member], height, width), (left + column * (width + _GAP), y))
    footer = f"Examples spread evenly over each class; data {dataset.ref.md5.removesuffix('.dir')}"
    if len(names) < len(dataset.ref.class_names):
        footer = f"The first {len(names)} of {len(dataset.ref.class_names)} classes. {footer}"
    draw.text((20, size[1] - bottom + 16), footer, font=body, fill=_FAINT)
    return sheet


def _caption(dataset: ImageDataset) -> str:
    height, width, num_channels = dataset.ref.image_shape
    kind = "grey" if num_channels == 1 else "colour"
    num_classes = len(dataset.ref.class_names)
    return f"{dataset.ref.num_examples:,} images of {height} x {width} pixels, {kind}, {num_classes} classes"


def _shortened(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:23]}\u2026"


def _spread(members: np.ndarray) -> np.ndarray:
    """At most a row's worth of examples, evenly from first to last."""
    places = np.linspace(0, len(members) - 1, min(_COLUMNS, len(members)))
    return np.asarray(members[places.round().astype(int)])


def _cell_size(shape: tuple[int, int, int]) -> tuple[int, int]:
    """Whole multiples of small images, so that pixels stay square; large ones are brought down."""
    height, width, _ = shape
    longer = max(height, width)
    scale = max(1, -(-_MIN_CELL // longer)) if longer <= _MAX_CELL else _MAX_CELL / longer
    return max(1, round(height * scale)), max(1, round(width * scale))


def _thumbnail(pixels: np.ndarray, height: int, width: int) -> "Image.Image":
    from PIL import Image

    image = Image.fromarray(np.asarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)).convert("RGB")
    is_larger = height >= pixels.shape[0]
    return image.resize((width, height), Image.Resampling.NEAREST if is_larger else Image.Resampling.LANCZOS)
