"""Train a model and write it, once: a finished run is found finished."""

import json
import logging
from pathlib import Path
from typing import TypedDict, Unpack

from assay.data.loading import Dataset
from assay.errors import ModelFileError, StorageError
from assay.files import replace_file
from assay.models.files import check_manifest, save_model
from assay.params import DeviceParams, ModelParams, TrainParams
from assay.records import Splits, StartRef, TrainResult
from assay.training.health import find_warnings
from assay.training.loop import OnEpoch, OnSteps, fit_weights
from assay.training.pretrain import OnPretraining

RESULT_FILE = "result.json"
MODEL_FOLDER = "model"

_log = logging.getLogger(__name__)


class FitOptions(TypedDict, total=False):
    """What may be said of a run beside what is trained; see `fit_weights`."""

    start: StartRef | None
    until_epoch: int | None
    every_epoch_saved: bool
    on_epoch: OnEpoch | None
    on_steps: OnSteps | None
    on_pretraining: OnPretraining | None


def fit(
    dataset: Dataset,
    splits: Splits,
    model: ModelParams,
    train: TrainParams,
    device: DeviceParams,
    run_dir: Path,
    **options: Unpack[FitOptions],
) -> TrainResult:
    """Train a model as `fit_weights` does, and write it; a finished run returns its result without training.

    Args:
        dataset: All examples.
        splits: Which of them are train and val.
        model: Which model.
        train: How to train it.
        device: Where and how precisely to compute.
        run_dir: Folder of this run alone: gets ``result.json`` and ``model/`` beside what `fit_weights` writes.
        **options: What else `fit_weights` takes.

    Returns:
        Where the model is and how it came about.

    Raises:
        AssayError: What `fit_weights` raises.
        StorageError: `run_dir` cannot be written.
    """
    trained = fit_weights(dataset, splits, model, train, device, run_dir, **options)
    state, compute = trained.state, trained.compute
    if trained.is_as_found:
        finished = _finished_result(run_dir, trained.owner, state.epoch)
        if finished is not None:
            return finished
    result = TrainResult(
        model_dir=str(run_dir / MODEL_FOLDER),
        weights_sha256=save_model(state.module, trained.spec, run_dir / MODEL_FOLDER),
        history=tuple(state.epochs),
        best_epoch=state.best_epoch,
        stopped_early=state.stopped_early,
        resumed_from_step=trained.resumed_from_step,
        num_steps=len(state.steps),
        num_parameters=sum(p.numel() for p in state.module.parameters() if p.requires_grad),
        samples_per_second=trained.samples_per_second,
        seconds=state.train_seconds,
        device=compute.device,
        precision=compute.precision,
        num_threads=compute.num_threads,
        warnings=find_warnings(state.epochs),
    )
    _write_result(run_dir, trained.owner, result)
    return result


def _finished_result(run_dir: Path, owner: str, num_epochs: int) -> TrainResult | None:
    """Return the result that an earlier call wrote after so many epochs, if it is this run's and its model is whole."""
    try:
        values = json.loads((run_dir / RESULT_FILE).read_bytes())
        if values["owner"] != owner or len(values["result"]["history"]) != num_epochs:
            return None
        check_manifest(run_dir / MODEL_FOLDER)
        return TrainResult.from_json({**values["result"], "model_dir": str(run_dir / MODEL_FOLDER)})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, ModelFileError) as error:
        _log.warning("%s: is not used, the model is written again (%s).", run_dir / RESULT_FILE, error)
        return None


def _write_result(run_dir: Path, owner: str, result: TrainResult) -> None:
    content = json.dumps({"owner": owner, "result": result.to_json()}, indent=2, sort_keys=True)
    try:
        replace_file(run_dir / RESULT_FILE, content.encode())
    except OSError as error:
        raise StorageError(f"{run_dir / RESULT_FILE}: cannot be written ({error.strerror}).") from error
