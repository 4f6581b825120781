"""What to train on data that nobody has said anything about: model, size and schedule, each with its reason.

A start, not a search: the choices are those that a careful person makes at first sight of the counts and shapes.
``assay ablate`` says afterwards which of them matter.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from assay.records import IMAGE, SERIES, TABLE, TEXT, DataRef

_DIGIT_WORDS = frozenset(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])
_SMALL_IMAGE = 12
_BYTES_PER_TOKEN = 3
_LONGEST_READ = {TEXT: 256, SERIES: 512}


@dataclass(frozen=True)
class Choice:
    """Some params that were chosen for one reason.

    Attributes:
        values: Dotted params path -> value, JSON-able.
        reason: Why, in a few words.
    """

    values: Mapping[str, Any]
    reason: str

    def describe(self) -> str:
        """Return the choice on one line."""
        return f"{', '.join(f'{path}={_shown(value)}' for path, value in self.values.items())}: {self.reason}"


def infer_params(data: DataRef, name: str) -> tuple[Choice, ...]:
    """Choose the params of a first run.

    Args:
        data: The pinned data.
        name: What to call the registered model.

    Returns:
        The choices, in the order in which to set them: a ``kind`` comes before its keys.
    """
    of_kind = {IMAGE: _for_images, TEXT: _for_texts, SERIES: _for_series, TABLE: _for_tables}
    return (*of_kind[data.kind](data), Choice({"registry.model_name": name}, "the name of the data"))


def _for_images(data: DataRef) -> tuple[Choice, ...]:
    height, width, num_channels = data.image_shape
    side = min(height, width)
    widths = [32, 64, 128, 256][: _num_pools(side)]
    colour = "colour" if num_channels == 3 else "grey"
    return (
        Choice({"model.kind": "cnn"}, "images are read by convolutions"),
        Choice(
            {
                "model.channels": widths,
                "model.hidden_units": 128,
                "model.batch_norm": num_channels == 3,
                "model.residual_blocks": 0,
                "model.head": "flatten",
            },
            f"{height}x{width} {colour} pixels, halved {_times(len(widths))}",
        ),
        _flip(data, side),
        Choice({"train.dropout_prob": 0.25, "train.early_stopping": _stop("val_loss", 5)}, "as for a small CNN"),
        _steps(data.num_examples, rate=0.002, epochs=(40, 25, 15, 10)),
    )


def _num_pools(side: int) -> int:
    """How often to halve an image: maps of a few pixels are to be left, fewer on the smallest images."""
    if side < _SMALL_IMAGE:
        return 1
    return 2 if side < 32 else 3 if side < 80 else 4


def _times(number: int) -> str:
    return {1: "once", 2: "twice"}.get(number, f"{number} times")


def _flip(data: DataRef, side: int) -> Choice:
    signs = all(_is_sign(name) for name in data.class_names)
    values = {"kind": "crop-flip", "padding_pixels": max(1, min(4, side // 8)), "horizontal_flip": not signs}
    example = ", ".join(data.class_names[:3])
    reason = f"classes such as {example} read wrong in a mirror" if signs else "a mirror image keeps its class"
    return Choice({"train.augmentation": values}, reason)


def _is_sign(name: str) -> bool:
    """Whether a class looks like a digit, a number or a letter."""
    return bool(re.fullmatch(r"\d+|\w|[A-Za-z]([_ -](upper|lower|cap|capital|small))?", name.strip())) or (
        name.strip().lower() in _DIGIT_WORDS
    )


def _for_texts(data: DataRef) -> tuple[Choice, ...]:
    longest = data.shape[0]
    length = _rounded(longest / _BYTES_PER_TOKEN, 16, _LONGEST_READ[TEXT])
    vocabulary = 8000 if data.num_examples >= 5000 else 4000
    return (
        Choice({"model.kind": "transformer"}, "texts are read by attention, which is also the quicker here"),
        Choice(
            {"model.dim": 64, "model.num_layers": 1, "model.num_heads": 4, "model.feedforward_dim": 128},
            f"{data.num_examples:,} texts fit no more",
        ),
        Choice({"model.max_length": length}, f"the longest text has {longest:,} bytes"),
        Choice({"model.tokenizer.vocab_size": vocabulary}, "words that occur once or twice teach nothing"),
        Choice(
            {
                "train.dropout_prob": 0.3,
                "train.input_dropout_prob": 0.2,
                "train.attention_dropout_prob": 0.1,
                "train.augmentation": {"kind": "token-dropout", "prob": 0.1},
                "train.early_stopping": _stop("val_loss", 3),
            },
            "a text model learns its examples by heart within a few epochs",
        ),
        _steps(data.num_examples, rate=0.001, epochs=(30, 20, 12, 6)),
    )


def _for_series(data: DataRef) -> tuple[Choice, ...]:
    longest, num_channels = data.shape
    hidden = 64 if data.num_examples < 2000 else 128
    return (
        Choice({"model.kind": "lstm"}, "series are read step by step"),
        Choice(
            {"model.hidden_units": hidden, "model.num_layers": 1, "model.pooling": "mean"},
            f"{data.num_examples:,} series of {num_channels} channel{'s' * (num_channels != 1)}",
        ),
        Choice({"model.max_length": min(longest, _LONGEST_READ[SERIES])}, f"the longest has {longest:,} steps"),
        Choice(
            {
                "train.dropout_prob": 0.3,
                "train.max_grad_norm": 1.0,
                "train.augmentation": {
                    "kind": "series",
                    "jitter_std": 0.05,
                    "scale_std": 0.1,
                    "time_mask_fraction": 0.1,
                },
                "train.early_stopping": _stop("val_loss", 8),
            },
            "noise against learning by heart; gradients through many steps are clipped",
        ),
        _steps(data.num_examples, rate=0.002, epochs=(60, 40, 25, 12)),
    )


def _for_tables(data: DataRef) -> tuple[Choice, ...]:
    num_columns = data.shape[0]
    width = 64 if num_columns * 2 <= 64 else 128
    return (
        Choice({"model.kind": "mlp"}, "a table's columns have no order"),
        Choice({"model.hidden_units": [width, width]}, f"{num_columns} columns"),
        Choice(
            {
                "train.dropout_prob": 0.2,
                "train.augmentation": {"kind": "none"},
                "train.early_stopping": _stop("val_loss", 20),
            },
            "many short epochs, until val stops improving",
        ),
        _steps(data.num_examples, rate=0.002, epochs=(150, 100, 60, 30)),
    )


def _stop(metric: str, patience: int) -> dict[str, Any]:
    return {"metric": metric, "patience_epochs": patience}


def _steps(num_examples: int, rate: float, epochs: tuple[int, int, int, int]) -> Choice:
    """Batch size, learning rate and epochs by the number of examples: more of them make larger steps and fewer rounds.

    Args:
        num_examples: Examples in all.
        rate: Learning rate for batches of 64; it goes with the root of the batch size.
        epochs: Below 2,000, 5,000 and 20,000 examples, and above.
    """
    size = sum(num_examples >= limit for limit in (2_000, 5_000, 20_000))
    batch = (32, 64, 64, 128)[size]
    return Choice(
        {
            "train.num_epochs": epochs[size],
            "train.batch_size": batch,
            "train.optimizer": {
                "kind": "adamw",
                "learning_rate": float(f"{rate * math.sqrt(batch / 64):.2g}"),
                "weight_decay": 0.01,
            },
        },
        f"{num_examples:,} examples",
    )


def _rounded(number: float, lowest: int, highest: int) -> int:
    """Up to a multiple of 16, within bounds."""
    return min(highest, max(lowest, 16 * math.ceil(number / 16)))


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_shown(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_shown, value)) + "]"
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)
