"""Factors that come with Assay."""

from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue

from assay.params import FILE_STARTS

_DROPOUT: tuple[JsonValue, ...] = (0.0, 0.1, 0.25, 0.5, 0.7)


def preset_factors(name: str, base: Mapping[str, Any]) -> dict[str, tuple[JsonValue, ...]]:
    """Return a preset's factors with their levels; those that equal the baseline fall away later.

    Args:
        name: ``dropout``: how much of it; ``regularization``: what people reach for when a model overfits, and a
            less complex model.
        base: The baseline's params, as JSON values.
    """
    if name == "dropout":
        return {"train.dropout_prob": _DROPOUT}
    train = base["train"]
    factors: dict[str, tuple[JsonValue, ...]] = {
        "train.dropout_prob": (0.0, 0.5),
        "train.l1": (0.0, 1e-5),
        "train.l2": (0.0, 1e-4, 1e-3),
        "train.label_smoothing": (0.0, 0.1),
        "train.augmentation": ({"kind": "none"}, *_augmentations(base)),
        "train.early_stopping": (None, {"metric": "val_loss"}),
    }
    if not _has_files(train):  # which bring the architecture
        factors |= _less_complex(base["model"])
    if train["optimizer"]["kind"] == "adamw":
        factors["train.optimizer.weight_decay"] = (0.0, 0.1)
    return factors


def _augmentations(base: Mapping[str, Any]) -> tuple[JsonValue, ...]:
    """Shifts of images that are not augmented, without mirror images, which are wrong for digits and letters."""
    is_of_images = base["model"]["kind"] == "cnn" and not _has_files(base["train"])
    if is_of_images and base["train"]["augmentation"]["kind"] == "none":
        return ({"kind": "crop-flip", "padding_pixels": 2, "horizontal_flip": False},)
    return ()


def _has_files(train: Mapping[str, Any]) -> bool:
    """Whether training starts from the files of a model."""
    return train["start"]["kind"] in FILE_STARTS


def _less_complex(model: Mapping[str, Any]) -> dict[str, tuple[JsonValue, ...]]:
    """Return what makes a model smaller, and the regularization that only its family has."""
    match model["kind"]:
        case "cnn":
            hidden = {"model.hidden_units": (max(1, model["hidden_units"] // 4),)}
            return (hidden if model["head"] == "flatten" else {}) | {
                "model.channels": ([max(1, width // 2) for width in model["channels"]],),
                "model.batch_norm": (False, True),
            }
        case "mlp":
            return {
                "model.hidden_units": ([max(1, width // 4) for width in model["hidden_units"]],),
                "model.batch_norm": (False, True),
            }
        case "lstm":
            return {
                "model.hidden_units": (max(1, model["hidden_units"] // 2),),
                "model.num_layers": (max(1, model["num_layers"] - 1),),
                "train.recurrent_dropout_prob": (0.0, 0.2),
            }
        case _:
            heads = model["num_heads"]
            return {
                "model.dim": (max(1, model["dim"] // heads // 2) * heads,),
                "model.feedforward_dim": (max(1, model["feedforward_dim"] // 2),),
                "model.num_layers": (max(1, model["num_layers"] - 1),),
                "train.attention_dropout_prob": (0.0, 0.1),
            }
