"""Registered versions whose answers are as good or as bad as a test wants them.

An image carries what each of some made-up models answers: a model is a linear reading of one field of it. So who is
right where is known exactly, and nothing has to be trained.
"""

import dataclasses
import hashlib
import json
import math
import shutil
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from assay.data.loading import Dataset
from assay.data.splits import load_split, make_splits
from assay.devices import resolve
from assay.evaluation.baselines import majority_class
from assay.evaluation.bootstrap import interval, resample
from assay.evaluation.metrics import score
from assay.evaluation.predictions import predict, write_predictions
from assay.models.build import build_model
from assay.models.files import load_model, save_model, write_manifest
from assay.models.spec import DropoutProbs, ModelSpec
from assay.params import CnnParams, Params
from assay.records import Evaluation, ModelRef, RunRecord, Splits, TrainResult
from assay.registry.contest import TestBench
from assay.registry.register import register
from assay.tracking.lineage import MANIFEST_TAG
from assay.tracking.runs import Tracker
from tests.data.made import make_dataset
from tests.tracking.parts import make_epoch, make_key

MODEL = "pets"
NUM_CLASSES = 3
SIZE = 12
"""Pixels of an image's side: 6 x 6 fields of 2 x 2 pixels, which is what one pooling leaves of it."""

ERRORS = {"first": 0.2, "same": 0.2, "better": 0.05, "worse": 1 / 3, "shuffled": 2 / 3}
"""Field -> share of the examples that it is wrong about: ``same`` about almost those of ``first``, ``worse`` about all
of class 2 and nothing else, ``shuffled`` answers another example's class."""

PARAMS = {
    "split": {"test_fraction": 0.5},
    "device": {"kind": "cpu", "precision": "fp32", "num_threads": 1},
    "evaluation": {"num_bootstrap": 100},
    "registry": {"experiment": "unit", "model_name": MODEL},
    "gate": {"baselines": ["majority_class"]},
}


def make_params(**gate: object) -> Params:
    return Params.model_validate(PARAMS | {"gate": {"baselines": ["majority_class"], **gate}})


def make_images(labels: np.ndarray, seed: int) -> np.ndarray:
    """Pictures in which each field's answer is written, and a brightness of their own; uint8 ``[n, 12, 12, 1]``."""
    rng = np.random.default_rng(seed)
    cells = np.zeros((len(labels), (SIZE // 2) ** 2), np.uint8)
    first = rng.random(len(labels)) < ERRORS["first"]
    for number, (name, share) in enumerate(ERRORS.items()):
        wrong = first if name == "first" else rng.random(len(labels)) < share
        if name == "same":
            wrong = first ^ (rng.random(len(labels)) < 0.01)
        answers = np.where(wrong, (labels + 1) % NUM_CLASSES, labels)
        if name == "worse":
            answers = np.where(labels == 2, rng.integers(0, 2, len(labels)), labels)
        if name == "shuffled":
            answers = rng.permutation(labels)
        cells[np.arange(len(labels)), NUM_CLASSES * number + answers] = 200
    cells[:, NUM_CLASSES * len(ERRORS) :] = rng.integers(0, 256, (len(labels), 1))
    cells[:, -3:] = rng.integers(0, 256, (len(labels), 3))
    side = SIZE // 2
    return cells.reshape(len(labels), side, side).repeat(2, axis=1).repeat(2, axis=2)[..., None]


def make_pictures(count: int, seed: int = 0, md5: str = "0" * 32) -> Dataset:
    """Three classes in turn, all of one size."""
    labels = np.arange(count) % NUM_CLASSES
    dataset = make_dataset(labels, make_images(labels, seed))
    return dataclasses.replace(dataset, ref=dataclasses.replace(dataset.ref, md5=f"{md5}.dir"))


def joined(first: Dataset, second: Dataset, md5: str) -> Dataset:
    """The examples of both, as other data."""
    both = {
        name: np.concatenate([getattr(first, name), getattr(second, name)])
        for name in ("inputs", "labels", "given_split", "groups", "content_hash")
    }
    ref = dataclasses.replace(first.ref, md5=f"{md5}.dir", num_examples=len(both["labels"]))
    return dataclasses.replace(first, ref=ref, **both)


def part(dataset: Dataset, rows: np.ndarray, md5: str) -> Dataset:
    """Some of the examples, as other data."""
    some = {
        name: getattr(dataset, name)[rows] for name in ("inputs", "labels", "given_split", "groups", "content_hash")
    }
    return dataclasses.replace(
        dataset, ref=dataclasses.replace(dataset.ref, md5=f"{md5}.dir", num_examples=len(rows)), **some
    )


def make_bench(tracker: Tracker, dataset: Dataset, params: Params) -> TestBench:
    splits = make_splits(dataset, params.split, tracker.project.root / "splits")
    return TestBench(tracker, dataset, splits, params)


def make_model(folder: Path, names: tuple[str, ...], field: str) -> str:
    """Write the model that reads a field; returns the SHA-256 of its weights.

    It is as sure as it is right, so that it is calibrated.
    """
    spec = ModelSpec(
        CnnParams(channels=(1,), hidden_units=(SIZE // 2) ** 2), (SIZE, SIZE, 1), names, DropoutProbs(), (0.0,), (1.0,)
    )
    model = build_model(spec, 0)
    right = max(0.4, 1.0 - ERRORS.get(field, 0.5))
    margin = math.log(right * (NUM_CLASSES - 1) / (1.0 - right))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.convs[0].weight[0, 0, 1, 1] = 1.0
        model.hidden.weight.copy_(torch.eye((SIZE // 2) ** 2))
        if field == "constant":
            model.output.bias[1] = margin
        else:
            first = NUM_CLASSES * list(ERRORS).index(field)
            model.output.weight[range(NUM_CLASSES), range(first, first + NUM_CLASSES)] = margin / 200.0
    return save_model(model, spec, folder)


def add_version(
    bench: TestBench, field: str, name: str = "", *, splits: Splits | None = None, **changes: object
) -> ModelRef:
    """Log and register a version as a whole run does.

    Args:
        bench: Data and division of its run.
        field: What it reads, a key of `ERRORS`, or ``constant``.
        name: Unique name of the run; the field by default.
        splits: What it was trained on, where that is not the bench's.
        changes: Fields of its evaluation that are to be others.
    """
    tracker, dataset, name = bench.tracker, bench.dataset, name or field
    folder = tracker.project.root / "runs" / name
    weights_sha256 = make_model(folder / "model", dataset.ref.class_names, field)
    trained = TrainResult(
        str(folder / "model"), weights_sha256, (make_epoch(1),), 1, False, 0, 10, 1000, 1000.0, 1.0, "cpu", "fp32", 1
    )
    key = dataclasses.replace(make_key(hashlib.sha256(name.encode()).hexdigest()), details={})
    run = tracker.open_run(key, bench.params, dataset.ref, splits or bench.splits, name=name)
    evaluation = dataclasses.replace(evaluate(bench, folder), **changes)
    if all(np.isfinite(metric.value) for metric in evaluation.metrics.values()):
        tracker.log_evaluation(run.run_id, evaluation)
    else:
        tracker.log_json(run.run_id, evaluation.to_json(), "evaluation.json")
        tracker.client.log_artifact(run.run_id, evaluation.predictions_path)
    examples = dataset.images[:2].transpose(0, 3, 1, 2)
    ref = register(tracker, run.run_id, trained, evaluation, bench.params, examples)
    record = RunRecord.of(key, dataset.ref, bench.splits, trained, evaluation, ref, ("it is new",), {"train": 60.0})
    tracker.finish(run.run_id, record)
    return ref


def evaluate(bench: TestBench, folder: Path) -> Evaluation:
    """What evaluation keeps, without its figures and its logistic regression."""
    model, spec = load_model(folder / "model")
    rows, dataset = bench.rows, bench.dataset
    predictions = predict(model, spec, dataset, rows, resolve(bench.params.device))
    write_predictions(predictions, folder / "predictions.parquet")
    (folder / "report.html").write_text("report")
    labels, answers = predictions.labels, predictions.probabilities
    resampled = resample(labels, answers, 100, 10)
    majority = majority_class(dataset.labels[load_split(bench.splits).train], len(rows), dataset.ref.class_names)
    return Evaluation(
        metrics={
            metric: interval(value, resampled.metrics[metric], 0.95)
            for metric, value in score(labels, answers, 10).items()
        },
        per_class={},
        confusion=(),
        baselines={"majority_class": score(labels, majority.probabilities, 10)},
        num_test=len(rows),
        confidence=0.95,
        predictions_path=str(folder / "predictions.parquet"),
        figures={},
        report_path=str(folder / "report.html"),
        seconds=0.1,
    )


def model_folder(tracker: Tracker, ref: ModelRef) -> Path:
    uri = tracker.client.get_model_version(ref.name, str(ref.version)).source
    return Path(str(uri).removeprefix("file://"))


def copy_version(tracker: Tracker, ref: ModelRef, to: Path) -> ModelRef:
    """Another version of the same run whose files are its own, to be damaged."""
    folder = to / f"copy-of-{ref.version}"
    shutil.copytree(model_folder(tracker, ref), folder)
    tags = tracker.client.get_model_version(ref.name, str(ref.version)).tags
    version = tracker.client.create_model_version(ref.name, folder.as_uri(), ref.run_id, tags=tags)
    return dataclasses.replace(ref, version=int(version.version), uri=f"models:/{ref.name}/{version.version}")


def change_weights(tracker: Tracker, ref: ModelRef, name: str, value: float) -> None:
    """Have one weight be another number, and the manifest and its tag agree, as after a training that went wrong."""
    folder = model_folder(tracker, ref)
    tensors = safetensors.torch.load((folder / "weights.safetensors").read_bytes())
    tensors[name].view(-1)[0] = value
    (folder / "weights.safetensors").write_bytes(safetensors.torch.save(tensors))
    tracker.client.set_model_version_tag(ref.name, str(ref.version), MANIFEST_TAG, write_manifest(folder))


def read_decision(tracker: Tracker, run_id: str) -> dict[str, object]:
    with tracker.artifact(run_id, "decision.json") as path:
        values: dict[str, object] = json.loads(path.read_text())
    return values
