"""The only reader of ``params.yaml``: file plus overrides in, one frozen `Params` out.

A stage gets its own section (`TrainParams`), never the whole. A choice between kinds is a tagged union on
``kind``. Every field says its unit in its name and its limits in its type, so a form can be drawn from it.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from assay.errors import ParamsError
from assay.params.base import Section
from assay.params.comparisons import AblationParams, GateParams
from assay.params.line import NightlyParams, ServicesParams
from assay.params.models import (
    CnnParams,
    LstmParams,
    MlpParams,
    ModelParams,
    TokenizerParams,
    TransformerParams,
)
from assay.params.stages import DataParams, DeviceParams, EvaluationParams, RegistryParams, SplitParams
from assay.params.training import (
    FILE_STARTS,
    AdamParams,
    AdamWParams,
    AugmentationParams,
    ConstantSchedule,
    CosineSchedule,
    CropFlipAugmentation,
    EarlyStoppingParams,
    HuggingFaceStart,
    MaskedLanguageStart,
    NoAugmentation,
    OneCycleSchedule,
    OptimizerParams,
    RmspropParams,
    ScheduleParams,
    ScratchStart,
    SeriesAugmentation,
    SgdParams,
    StartParams,
    StepSchedule,
    TokenDropoutAugmentation,
    TrainParams,
    VersionStart,
)
from assay.params_messages import explain
from assay.params_yaml import assign, parse_override, read_mapping

__all__ = [
    "FILE_STARTS",
    "AblationParams",
    "AdamParams",
    "AdamWParams",
    "AugmentationParams",
    "CnnParams",
    "ConstantSchedule",
    "CosineSchedule",
    "CropFlipAugmentation",
    "DataParams",
    "DeviceParams",
    "EarlyStoppingParams",
    "EvaluationParams",
    "GateParams",
    "HuggingFaceStart",
    "LstmParams",
    "MaskedLanguageStart",
    "MlpParams",
    "ModelParams",
    "NightlyParams",
    "NoAugmentation",
    "OneCycleSchedule",
    "OptimizerParams",
    "Params",
    "RegistryParams",
    "RmspropParams",
    "RunParams",
    "ScheduleParams",
    "ScratchStart",
    "Section",
    "SeriesAugmentation",
    "ServicesParams",
    "SgdParams",
    "SplitParams",
    "StartParams",
    "StepSchedule",
    "TokenDropoutAugmentation",
    "TokenizerParams",
    "TrainParams",
    "TransformerParams",
    "VersionStart",
    "flatten",
    "load_params",
]


class RunParams(Section):
    """What one run is made of: the sections of ``params.yaml`` that its form shows."""

    data: DataParams = DataParams()
    """Which data, where it is not what data.dvc pins."""
    split: SplitParams = SplitParams()
    """How the data is divided into train, val and test."""
    model: ModelParams = CnnParams()
    """The model and its size."""
    train: TrainParams = TrainParams()
    """How the weights come about."""
    evaluation: EvaluationParams = EvaluationParams()
    """How the test results are computed."""
    device: DeviceParams = DeviceParams()
    """Where and how precisely to compute."""
    registry: RegistryParams = RegistryParams()
    """Where results go."""
    ablation: AblationParams = AblationParams()
    """Which levels to compare, and how sure to be."""
    gate: GateParams = GateParams()
    """What a version has to show to become champion."""

    def sections(self) -> dict[str, Section]:
        """Return each section under its name, as a flow takes them."""
        return {name: getattr(self, name) for name in RunParams.model_fields}


class Params(RunParams):
    """All of ``params.yaml``: what a run is made of, and the training line around it."""

    schedule: NightlyParams = NightlyParams()
    """When the nightly run starts."""
    services: ServicesParams = ServicesParams()
    """The servers, pools and workers of ``assay up``."""

    def of_run(self) -> RunParams:
        """Return what one run is made of, without the services around it."""
        return RunParams.model_validate(self.sections())


def load_params(path: Path, overrides: Iterable[str] = ()) -> Params:
    """Read a params file and apply overrides.

    Args:
        path: A YAML file; keys that it leaves out keep their defaults.
        overrides: ``section.key=value`` in YAML's spelling, applied in order.

    Returns:
        The validated parameters.

    Raises:
        ParamsError: The file is missing or no YAML mapping, a key is unknown or given twice, or a value has the
            wrong type or is out of range.
    """
    values = read_mapping(path)
    origin: dict[str, str] = {}
    for override in overrides:
        dotted, value = parse_override(override)
        assign(values, dotted, value)
        origin[dotted] = "on the command line"
    _name_kinds(values, Params().model_dump(mode="json"))
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        sentences = [explain(problem, Params, path, origin) for problem in error.errors()]
        raise ParamsError("\n".join(sentences)) from error


def _name_kinds(values: dict[str, Any], defaults: Mapping[str, Any]) -> None:
    """Where a choice between kinds is given without its ``kind``, the default kind is meant."""
    for name, default in defaults.items():
        given = values.get(name)
        if isinstance(default, Mapping) and isinstance(given, dict):
            if "kind" in default:
                given.setdefault("kind", default["kind"])
            _name_kinds(given, default)


def flatten(section: BaseModel | Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return leaf values by dotted path, e.g. ``{"train.optimizer.kind": "adamw", ...}``.

    Args:
        section: A section, or what its ``model_dump(mode="json")`` gave.
        prefix: Path in front of every key, with its dot.
    """
    values = section.model_dump(mode="json") if isinstance(section, BaseModel) else section
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
