"""What a model is, apart from its weights: enough to build it again."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from pydantic import TypeAdapter

from assay.params import ModelParams
from assay.records import Record


@dataclass(frozen=True)
class ModelSpec(Record):
    """Architecture, input and output of one model.

    Attributes:
        model: The model's section of the params.
        image_shape: Height, width, channels of an image.
        class_names: Class names; output ``k`` is the logit of ``class_names[k]``.
        dropout_prob: Probability of dropping a hidden activation while training.
        pixel_mean: Mean of each channel over the train split, in raw pixel values 0..255.
        pixel_std: Standard deviation of each channel over the train split, in raw pixel values.
    """

    model: ModelParams
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    dropout_prob: float
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]

    @property
    def num_classes(self) -> int:
        """Number of classes, which is the number of logits."""
        return len(self.class_names)

    def to_json(self) -> dict[str, Any]:
        """Return the spec as JSON values."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**values, "model": self.model.model_dump(mode="json")}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild a spec from what `to_json` gave.

        Raises:
            ValueError: A key is missing or unknown, or the model's params are not valid.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if names != set(values):
            raise ValueError(f"keys are {sorted(values)}, expected {sorted(names)}")
        height, width, channels = values["image_shape"]
        return cls(
            model=TypeAdapter(ModelParams).validate_python(values["model"]),
            image_shape=(int(height), int(width), int(channels)),
            class_names=tuple(values["class_names"]),
            dropout_prob=float(values["dropout_prob"]),
            pixel_mean=tuple(map(float, values["pixel_mean"])),
            pixel_std=tuple(map(float, values["pixel_std"])),
        )
