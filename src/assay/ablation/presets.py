"""Factors that come with Assay."""

from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue

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
    model, train = base["model"], base["train"]
    factors: dict[str, tuple[JsonValue, ...]] = {
        "train.dropout_prob": (0.0, 0.5),
        "train.l1": (0.0, 1e-5),
        "train.l2": (0.0, 1e-4, 1e-3),
        "train.label_smoothing": (0.0, 0.1),
        "train.augmentation": ({"kind": "none"}, _shifts(train["augmentation"])),
        "train.early_stopping": (None, {"metric": "val_loss"}),
        "model.hidden_units": (max(1, model["hidden_units"] // 4),),
        "model.channels": ([max(1, width // 2) for width in model["channels"]],),
        "model.batch_norm": (False, True),
    }
    if train["optimizer"]["kind"] == "adamw":
        factors["train.optimizer.weight_decay"] = (0.0, 0.1)
    return factors


def _shifts(augmentation: Mapping[str, Any]) -> JsonValue:
    """Shifts without mirror images, which are wrong for digits and letters; the project's own where it has some."""
    if augmentation["kind"] != "none":
        return dict(augmentation)
    return {"kind": "crop-flip", "padding_pixels": 2, "horizontal_flip": False}
