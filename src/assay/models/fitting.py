"""Which model takes which data, in which shape; of use without any model class."""

from typing import TYPE_CHECKING

from assay.errors import ParamsError
from assay.models.spec import ModelSpec
from assay.params import AugmentationParams, LstmParams, MlpParams, ModelParams, TransformerParams
from assay.records import IMAGE, SERIES, TABLE, TEXT, DataRef

if TYPE_CHECKING:
    from torch import Tensor

TAKES: dict[str, tuple[str, ...]] = {
    "cnn": (IMAGE,),
    "lstm": (TEXT, SERIES),
    "transformer": (TEXT, SERIES, IMAGE),
    "mlp": (TABLE, SERIES, IMAGE),
}
"""Kind of model -> kinds of data that it takes."""


def require_kind(params: ModelParams, kind: str) -> None:
    """Make sure that a model takes a kind of data.

    Raises:
        ParamsError: It does not.
    """
    if kind in TAKES[params.kind]:
        if kind != SERIES and _has_statistics(params):
            raise ParamsError(
                f"model.features=statistics: are over the steps of series, and the data is of kind {kind}. Choose "
                "model.features=values."
            )
        return
    fitting = " or ".join(name for name, kinds in TAKES.items() if kind in kinds)
    raise ParamsError(
        f"model.kind={params.kind}: takes {_listed(TAKES[params.kind])} data, and the data is of kind {kind}. Choose "
        f"model.kind={fitting}."
    )


def input_shape(params: ModelParams, kind: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of one input of a model, as in `ModelSpec`.

    Args:
        params: The model section.
        kind: Kind of data.
        shape: Of one example, as in `assay.records.DataRef`.
    """
    if kind not in (TEXT, SERIES):
        return shape
    longest = params.max_length if isinstance(params, LstmParams | TransformerParams) else shape[0]
    return (longest,) if kind == TEXT else (min(longest, shape[0]), *shape[1:])


def takes_any_length(spec: ModelSpec) -> bool:
    """Whether a model takes texts or series that are shorter than its spec says."""
    return spec.kind in (TEXT, SERIES) and (
        isinstance(spec.model, LstmParams | TransformerParams) or _has_statistics(spec.model)
    )


def require_augmentation(params: AugmentationParams, kind: str) -> None:
    """Make sure that an augmentation is for a kind of data.

    Raises:
        ParamsError: It is not.
    """
    wanted = {"crop-flip": IMAGE, "token-dropout": TEXT, "series": SERIES}.get(params.kind, kind)
    if wanted != kind:
        raise ParamsError(
            f"train.augmentation.kind={params.kind}: varies {wanted} data, and the data is of kind {kind}. Choose "
            "train.augmentation.kind=none."
        )


def mismatch(spec: ModelSpec, ref: DataRef) -> str | None:
    """Say why a model cannot answer some data; None if it can.

    Args:
        spec: The model.
        ref: The data.
    """
    knows, has = f"it knows {len(spec.class_names)} classes", f"the data has {len(ref.class_names)} classes"
    if spec.kind != ref.kind:
        return f"it takes {spec.kind} data, and this is {ref.kind} data"
    if spec.class_names != ref.class_names:
        return f"{knows}, {has}, or other names"
    if spec.columns and ref.columns and spec.columns != ref.columns:
        return "it was trained on columns of other names, or in another order"
    # How long a text or series is may change from data to data; what a step or row consists of may not.
    fixed, found = (shape[1:] if spec.kind in (TEXT, SERIES) else shape for shape in (spec.shape, ref.shape))
    if fixed != found:
        return f"it takes {describe_shape(spec.kind, spec.shape)}, the data has {describe_shape(ref.kind, ref.shape)}"
    return None


def describe_shape(kind: str, shape: tuple[int, ...]) -> str:
    """Return a shape in words, e.g. ``images of 28x28x1``."""
    match kind:
        case "image":
            return f"images of {'x'.join(map(str, shape))}"
        case "series":
            return f"series of {shape[1]} channels and at most {shape[0]} steps"
        case "table":
            return f"rows of {shape[0]} columns"
        case _:
            return "texts"


def example_input(spec: ModelSpec, num_rows: int) -> "Tensor":
    """Return inputs of the right shape and type that mean nothing, for timing and export.

    Args:
        spec: The model.
        num_rows: How many.
    """
    import torch

    if spec.kind == TEXT:
        return torch.ones(num_rows, *spec.shape, dtype=torch.int64)
    if spec.kind == IMAGE:
        height, width, channels = spec.image_shape
        return torch.zeros(num_rows, channels, height, width)
    return torch.zeros(num_rows, *spec.shape)


def _has_statistics(params: ModelParams) -> bool:
    return isinstance(params, MlpParams) and params.features == "statistics"


def _listed(kinds: tuple[str, ...]) -> str:
    *others, last = kinds
    return f"{', '.join(others)} or {last}" if others else last
