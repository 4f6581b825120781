"""One trial: train a variant with a seed up to a look, and ask the model about val.

It runs in a process of its own with one thread. All that it does is kept in its own folder, so a trial that was killed
goes on where it was, and one that is done is found done. Nobody waits until the files are on disk: those that a power
cut damages are noticed, and the trial is trained again.
"""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from assay.ablation.contributions import METRICS, contributions
from assay.ablation.outcomes import Outcomes, read_outcomes, write_outcomes
from assay.ablation.trial_job import TrialJob
from assay.data.loading import Dataset, load_dataset
from assay.data.splits import load_split
from assay.devices import resolve
from assay.errors import DataError, NonFiniteError
from assay.evaluation.log_loss import true_class_loss
from assay.evaluation.predictions import predict_probabilities
from assay.files import replace_file
from assay.models.build import build_model
from assay.models.spec import ModelSpec
from assay.params import RunParams
from assay.project import only_one
from assay.records import DataRef, EpochRecord, Trial
from assay.training.loop import CHECKPOINT_FILE, Trained, fit_weights
from assay.training.own_code import prepare_module

OUTCOMES_FILE = "outcomes.npz"
TRIAL_FILE = "trial.json"

_log = logging.getLogger(__name__)


def run_trial(job: TrialJob) -> Trial:
    """Train a trial up to a look, and ask its model about val.

    Args:
        job: What to train.

    Returns:
        The trial so far. Where it diverged, it answers the most frequent class from then on.
    """
    folder = Path(job.run_dir)
    with only_one(folder / "lock", on_wait=lambda: None):  # two ablations may share a trial
        return _run_alone(job, folder)


def _run_alone(job: TrialJob, folder: Path) -> Trial:
    before = _before(folder, job.key)
    if before is not None and (before.state in ("finished", "diverged") or before.num_epochs >= job.until_epoch):
        return replace(before, variant=job.variant)
    started = time.perf_counter()
    params = RunParams.model_validate(job.params)
    dataset = _open_dataset(job.data, job.cache_dir)
    seconds, num_epochs = (before.seconds, before.num_epochs) if before else (0.0, 0)
    for epoch in [look for look in job.looks if look > num_epochs]:
        try:
            trial = _train(job, params, dataset, folder, epoch)
        except NonFiniteError as error:
            trial = _diverged(job, params, dataset, folder, str(error))
        trial = replace(trial, seconds=seconds + time.perf_counter() - started)
        replace_file(folder / TRIAL_FILE, json.dumps(trial.to_json()).encode(), is_synced=False)
        if trial.state != "stopped":
            break
    return trial


def _train(job: TrialJob, params: RunParams, dataset: Dataset, folder: Path, epoch: int) -> Trial:
    trained = _weights_after(job, params, dataset, folder, epoch)
    if trained.state.epoch > epoch:  # what it answered at this look is lost, and it does not train backwards
        (folder / CHECKPOINT_FILE).unlink()
        trained = _weights_after(job, params, dataset, folder, epoch)
    state, spec = trained.state, trained.spec
    module = build_model(spec, seed=0)  # laid out in memory as `load_model` does
    module.load_state_dict(state.best)
    rows = load_split(job.splits)
    compute = resolve(params.device)
    prepare_module(module, len(rows.train) * params.train.num_epochs, compute)
    labels = np.asarray(dataset.labels[rows.val])
    probabilities = predict_probabilities(module, spec, dataset, rows.val, compute)
    num_epochs = state.epoch
    _look(folder, labels, num_epochs, probabilities.argmax(axis=1), true_class_loss(labels, probabilities))
    is_over = state.stopped_early or num_epochs >= params.train.num_epochs
    return Trial(
        variant=job.variant,
        seed=job.seed,
        key=job.key,
        state="finished" if is_over else "stopped",
        num_epochs=num_epochs,
        metrics=_scores(labels, probabilities),
        train_metrics=_on_train(module, spec, dataset, rows.train[: len(rows.val)], params),
        history=tuple(state.epochs),
        outcomes_path=str(folder / OUTCOMES_FILE),
    )


def _weights_after(job: TrialJob, params: RunParams, dataset: Dataset, folder: Path, epoch: int) -> Trained:
    return fit_weights(
        dataset,
        job.splits,
        params.model,
        params.train,
        params.device,
        folder,
        start=job.start,
        until_epoch=epoch,
        every_epoch_saved=False,
        has_health=False,
    )


def _on_train(
    module: nn.Module, spec: ModelSpec, dataset: Dataset, rows: np.ndarray, params: RunParams
) -> dict[str, float]:
    """The metrics on some of train, for the generalization gap; rows are in the data's order, which means nothing."""
    probabilities = predict_probabilities(module, spec, dataset, rows, resolve(params.device))
    return _scores(np.asarray(dataset.labels[rows]), probabilities)


def _diverged(job: TrialJob, params: RunParams, dataset: Dataset, folder: Path, message: str) -> Trial:
    """A run that came to NaN or infinity answers nothing: it counts as one that knows how frequent classes are."""
    rows = load_split(job.splits)
    labels = np.asarray(dataset.labels[rows.val])
    counts = np.bincount(dataset.labels[rows.train], minlength=len(job.data.class_names)).astype(np.float64)
    frequencies = (counts + 1) / (counts + 1).sum()
    probabilities = np.tile(frequencies, (len(labels), 1))
    history = _history_so_far(folder, job.key)
    num_epochs = len(history) + 1
    _look(folder, labels, num_epochs, probabilities.argmax(axis=1), true_class_loss(labels, probabilities))
    train_labels = np.asarray(dataset.labels[rows.train[: len(labels)]])
    return Trial(
        variant=job.variant,
        seed=job.seed,
        key=job.key,
        state="diverged",
        num_epochs=num_epochs,
        metrics=_scores(labels, probabilities),
        train_metrics=_scores(train_labels, np.tile(frequencies, (len(train_labels), 1))),
        history=history,
        outcomes_path=str(folder / OUTCOMES_FILE),
        message=message,
    )


def _look(folder: Path, labels: np.ndarray, epoch: int, predictions: np.ndarray, log_losses: np.ndarray) -> None:
    """Add what the model answers now to what it answered at the looks before."""
    path = folder / OUTCOMES_FILE
    earlier = Outcomes.none(labels)
    if path.exists():
        try:
            earlier = read_outcomes(path)
        except DataError:
            path.unlink()
    write_outcomes(path, earlier.with_look(epoch, predictions, log_losses))


def _scores(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """The metrics on some examples, as means of their contributions: scikit-learn takes a second to import."""
    predictions, losses = probabilities.argmax(axis=1), true_class_loss(labels, probabilities)
    num_classes = probabilities.shape[1]
    return {name: float(contributions(name, labels, predictions, losses, num_classes).mean()) for name in METRICS}


def _before(folder: Path, key: str) -> Trial | None:
    """The trial as an earlier call left it, if its files are whole and belong together."""
    try:
        trial = Trial.from_json(json.loads((folder / TRIAL_FILE).read_bytes()))
        epochs = read_outcomes(folder / OUTCOMES_FILE).epochs
    except (OSError, ValueError, TypeError, KeyError, DataError):
        return None
    return trial if trial.key == key and tuple(epochs[-1:]) == (trial.num_epochs,) else None


def _history_so_far(folder: Path, key: str) -> tuple[EpochRecord, ...]:
    trial = _before(folder, key)
    return trial.history if trial else ()


@lru_cache(maxsize=2)
def _open_dataset(data: DataRef, cache_dir: str) -> Dataset:
    return load_dataset(data, Path(cache_dir))


def run_jobs(jobs: Sequence[Mapping[str, Any]]) -> list[Trial]:
    """Run some trials one after another; one that fails says so and holds none of the others up.

    Args:
        jobs: `TrialJob` as JSON values.
    """
    return [_attempt(TrialJob.from_json(job)) for job in jobs]


def _attempt(job: TrialJob) -> Trial:
    try:
        return run_trial(job)
    except Exception as error:
        _log.warning("trial %s failed", job.name, exc_info=True)
        return Trial(job.variant, job.seed, job.key, "failed", message=f"{type(error).__name__}: {error}")
