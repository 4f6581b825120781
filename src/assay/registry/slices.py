"""Parts of the test examples on which a model may be worse while it is better on the whole."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

_PARTS = {2: "half", 3: "third", 4: "quarter", 5: "fifth", 6: "sixth", 8: "eighth", 10: "tenth"}
_ORDINALS = ("", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")
_UNEVEN = 0.1
_BLOCK = 4096


class Slice(NamedTuple):
    """A part of the test examples.

    Attributes:
        name: For people, e.g. ``class: seven``, ``brightness: 0 to 31 (darkest quarter)``.
        kind: ``class``, ``group``, or what a number is: ``brightness`` or ``length``.
        mask: Which examples belong to it, bool ``[example]``.
    """

    name: str
    kind: str
    mask: np.ndarray


def make_slices(
    kinds: Sequence[str],
    labels: np.ndarray,
    class_names: Sequence[str],
    *,
    groups: Sequence[object] | np.ndarray | None = None,
    images: np.ndarray | None = None,
    lengths: np.ndarray | None = None,
    num_quantiles: int = 4,
) -> tuple[Slice, ...]:
    """Make the slices of the kinds asked for; one that the data cannot give is left out.

    Args:
        kinds: Any of ``class``, ``group``, ``brightness``, ``length``.
        labels: True classes, int64 ``[example]``.
        class_names: Names of the classes.
        groups: Group of each example; None where the data has none.
        images: uint8 ``[example, height, width, channel]``; None where the examples are no images.
        lengths: Characters of texts or steps of series, int64 ``[example]``; None where all are of one size.
        num_quantiles: Parts that a number is cut into.
    """
    makers: dict[str, Callable[[], tuple[Slice, ...]]] = {
        "class": lambda: class_slices(labels, class_names),
        "group": lambda: () if groups is None else group_slices(groups),
        "brightness": lambda: () if images is None else brightness_slices(images, num_quantiles),
        "length": lambda: () if lengths is None else length_slices(lengths, num_quantiles),
    }
    return tuple(found for kind in kinds for found in makers[kind]())


def class_slices(labels: np.ndarray, class_names: Sequence[str]) -> tuple[Slice, ...]:
    """Make a slice of each class that has examples; being right on it is the class's recall.

    Args:
        labels: True classes, int64 ``[example]``.
        class_names: Names of the classes.
    """
    masks = [(name, labels == label) for label, name in enumerate(class_names)]
    return tuple(Slice(f"class: {name}", "class", mask) for name, mask in masks if mask.any())


def group_slices(groups: Sequence[object] | np.ndarray) -> tuple[Slice, ...]:
    """Make a slice of each group, in the order of their names.

    An empty name, None or a negative number is no group. Groups of one example each say nothing, and a single group
    that holds all examples is no part of them: neither gives slices.

    Args:
        groups: Name or number of each example's group.
    """
    names = np.array(["" if _is_none(group) else str(group) for group in groups], dtype=np.str_)
    found, sizes = np.unique(names[names != ""], return_counts=True)
    if not found.size or sizes.max() == 1 or sizes[0] == len(names):
        return ()
    return tuple(Slice(f"group: {name}", "group", names == name) for name in found)


def brightness_slices(images: np.ndarray, num_quantiles: int) -> tuple[Slice, ...]:
    """Make slices by the mean pixel, 0 (black) to 255.

    Args:
        images: uint8 ``[example, height, width, channel]``.
        num_quantiles: Parts to cut into.
    """
    return quantile_slices(brightness(images), num_quantiles, "brightness", ("darkest", "brightest"))


def brightness(images: np.ndarray) -> np.ndarray:
    """Return the mean pixel of each image, float64 ``[example]``; memory-mapped images are read block by block."""
    starts = range(0, len(images), _BLOCK)
    blocks = [images[start : start + _BLOCK].reshape(len(images[start : start + _BLOCK]), -1) for start in starts]
    return np.concatenate([block.mean(axis=1, dtype=np.float64) for block in blocks] or [np.empty(0)])


def length_slices(lengths: np.ndarray, num_quantiles: int) -> tuple[Slice, ...]:
    """Make slices by the length of a text in characters, or of a series in steps.

    Args:
        lengths: int64 ``[example]``.
        num_quantiles: Parts to cut into.
    """
    return quantile_slices(lengths, num_quantiles, "length", ("shortest", "longest"))


def quantile_slices(
    values: np.ndarray, num_quantiles: int, kind: str, ends: tuple[str, str] = ("lowest", "highest")
) -> tuple[Slice, ...]:
    """Cut the examples by a number into parts of about the same size.

    Equal values stay together, so there are fewer parts where many are equal, and none where all are. Examples whose
    number is not finite are in no part.

    Args:
        values: A number for each example, ``[example]``.
        num_quantiles: Parts to cut into.
        kind: What the number is, e.g. ``brightness``.
        ends: What people call its low and its high end, e.g. ``("darkest", "brightest")``.
    """
    known = np.isfinite(values)
    found = np.unique(values[known])
    if len(found) < 2:
        return ()
    edges = np.quantile(values[known], np.arange(1, num_quantiles) / num_quantiles)
    edges = np.unique(np.minimum(edges, found[-2]))  # a part that ends at the highest value would hold everything
    parts = np.where(known, np.searchsorted(edges, values, side="left"), -1)
    masks = [mask for mask in (parts == part for part in range(len(edges) + 1)) if mask.any()]
    words = _part_words(masks, num_quantiles, ends)
    shown = "{:,}" if np.issubdtype(values.dtype, np.integer) else "{:.3g}"
    ranges = [f"{shown.format(values[mask].min())} to {shown.format(values[mask].max())}" for mask in masks]
    names = [f"{kind}: {span}{word}" for span, word in zip(ranges, words, strict=True)]
    return tuple(Slice(name, kind, mask) for name, mask in zip(names, masks, strict=True))


def _part_words(masks: Sequence[np.ndarray], num_quantiles: int, ends: tuple[str, str]) -> list[str]:
    """What to call the parts, e.g. `` (darkest quarter)``; nothing where ties have made them uneven."""
    sizes = np.array([mask.sum() for mask in masks])
    fair = sizes.sum() / num_quantiles
    is_even = len(masks) == num_quantiles and np.abs(sizes - fair).max() <= max(1.0, _UNEVEN * fair)
    if not is_even or num_quantiles not in _PARTS:
        return [""] * len(masks)
    middle = _ORDINALS[1 : num_quantiles - 1]
    return [f" ({which} {_PARTS[num_quantiles]})" for which in (ends[0], *middle, ends[1])]


def _is_none(group: object) -> bool:
    return group is None or group == "" or (isinstance(group, int | np.integer) and int(group) < 0)
