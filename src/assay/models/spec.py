"""What a model is, apart from its weights: enough to build it again."""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from pydantic import TypeAdapter

from assay.params import ModelParams
from assay.records import IMAGE, KINDS, Record, with_shape


@dataclass(frozen=True)
class DropoutProbs(Record):
    """Probabilities of dropping something while training.

    Attributes:
        hidden: A hidden activation.
        input: An input: a pixel, a feature, or a component of a token's vector.
        recurrent: A weight between one step's state and the next.
        attention: An attention weight.
    """

    hidden: float = 0.0
    input: float = 0.0
    recurrent: float = 0.0
    attention: float = 0.0


@dataclass(frozen=True)
class ModelSpec(Record):
    """Architecture, input and output of one model.

    A model maps one tensor, a batch of inputs, to logits ``[batch, class]``:

    - images: float32 ``[batch, channel, height, width]``, raw pixel values 0..255;
    - text: int64 ``[batch, token]``, token numbers, 0 is padding and stands at the end;
    - series: float32 ``[batch, step, channel]``, raw values; padding stands at the end and is NaN in all channels;
    - tables: float32 ``[batch, column]``, raw values, NaN where one is missing.

    Normalisation, by what was measured on train, is part of the model. Texts and series come as long as `shape` says
    from `assay.training.batches` when they are answered, and maybe shorter while training.

    Attributes:
        model: The model's section of the params.
        shape: Of one input. Images: height, width, channels. Text: tokens at most. Series: steps at most, channels.
            Tables: columns.
        class_names: Class names; output ``k`` is the logit of ``class_names[k]``.
        dropout: Probabilities of dropping something while training.
        mean: Over the train split, of each image or series channel or table column; empty for text.
        std: Standard deviation, the same.
        kind: Kind of data, one of `assay.records.KINDS`.
        num_tokens: Tokens that the tokenizer tells apart, padding included; 0 where there is no text.
        tokenizer: The tokenizer as its library writes it (JSON); empty where there is no text. It is kept in a file
            of its own beside the spec, which holds its SHA-256.
        columns: Names of a table's columns or of a series' channels in the order of an input; empty where they have
            none.
    """

    model: ModelParams
    shape: tuple[int, ...]
    class_names: tuple[str, ...]
    dropout: DropoutProbs
    mean: tuple[float, ...]
    std: tuple[float, ...]
    kind: str = IMAGE
    num_tokens: int = 0
    tokenizer: str = ""
    columns: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """Number of classes, which is the number of logits."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width, channels of an image."""
        height, width, channels = self.shape
        return height, width, channels

    def to_json(self) -> dict[str, Any]:
        """Return the spec as JSON values, with the tokenizer's SHA-256 in its place."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del values["tokenizer"]
        digest = hashlib.sha256(self.tokenizer.encode()).hexdigest() if self.tokenizer else ""
        return {
            **values,
            "model": self.model.model_dump(mode="json"),
            "dropout": self.dropout.to_json(),
            "tokenizer_sha256": digest,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any], tokenizer: str = "") -> Self:
        """Rebuild a spec from what `to_json` gave.

        Args:
            values: What `to_json` gave; that of a model of the time when all were of images is understood, too.
            tokenizer: The tokenizer.

        Raises:
            ValueError: A key is missing or unknown, the model's params are not valid, or it is another tokenizer.
        """
        values = _with_names_of_today(values)
        names = {field.name for field in dataclasses.fields(cls)} - {"tokenizer"} | {"tokenizer_sha256"}
        if names != set(values):
            raise ValueError(f"keys are {sorted(values)}, expected {sorted(names)}")
        digest = hashlib.sha256(tokenizer.encode()).hexdigest() if tokenizer else ""
        if digest != values["tokenizer_sha256"]:
            raise ValueError(f"tokenizer has SHA-256 {digest or 'none'}, expected {values['tokenizer_sha256']}")
        if values["kind"] not in KINDS:
            raise ValueError(f"kind is {values['kind']!r}, expected one of {', '.join(KINDS)}")
        return cls(
            model=TypeAdapter(ModelParams).validate_python(values["model"]),
            shape=tuple(map(int, values["shape"])),
            class_names=tuple(values["class_names"]),
            dropout=DropoutProbs.from_json(values["dropout"]),
            mean=tuple(map(float, values["mean"])),
            std=tuple(map(float, values["std"])),
            kind=values["kind"],
            num_tokens=int(values["num_tokens"]),
            tokenizer=tokenizer,
            columns=tuple(values["columns"]),
        )


def _with_names_of_today(values: Mapping[str, Any]) -> dict[str, Any]:
    if "image_shape" not in values:
        return {"columns": (), **values}
    today = with_shape(values)
    dropout, mean, std = (today.pop(name) for name in ("dropout_prob", "pixel_mean", "pixel_std"))
    return {
        **today,
        "dropout": DropoutProbs(hidden=float(dropout)).to_json(),
        "mean": mean,
        "std": std,
        "kind": IMAGE,
        "num_tokens": 0,
        "tokenizer_sha256": "",
        "columns": (),
    }
