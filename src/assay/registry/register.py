"""From a trained and evaluated model to a registered version.

A registered version is a folder that holds the same weights twice, without pickle: safetensors + JSON + SHA-256
manifest, which `assay.registry.load` reads and checks, and ``pt2`` with signature and input example, which MLflow's
own tools read (``mlflow models serve``, ``mlflow.pytorch.load_model``).
"""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import torch

from assay.data.loading import Dataset
from assay.errors import ModelFileError, StorageError
from assay.models.files import MODEL_FILES, WEIGHTS_FILE, load_model, write_manifest
from assay.params import RunParams
from assay.records import Evaluation, ModelRef, TrainResult
from assay.registry.mlflow_model import save_mlflow_model
from assay.tracking.lineage import MANIFEST_TAG
from assay.tracking.runs import Tracker, service_errors
from assay.training.batches import Batches, to_model_input

ARTIFACT_FOLDER = "model"
"""Where in a run's artifacts its model lies."""

WEIGHTS_TAG = "assay.weights.sha256"
LINEAGE_TAG_PREFIXES = (
    "assay.key",
    "assay.data.",
    "assay.git.",
    "assay.params.",
    "assay.source.",
    "assay.constraints.",
)
"""Tags of a run that its model version repeats."""


def register(
    tracker: Tracker,
    run_id: str,
    trained: TrainResult,
    evaluation: Evaluation,
    params: RunParams,
    example_inputs: np.ndarray,
) -> ModelRef:
    """Upload a run's model and make it a version of ``registry.model_name``; doing it again changes nothing.

    Args:
        tracker: The open store.
        run_id: The run that trained the model.
        trained: What training handed over.
        evaluation: Test results; the accuracy goes into the version's description.
        params: All parameters of the run.
        example_inputs: Input example as the model takes it (see `assay.models.spec.ModelSpec`; images may be uint8),
            n >= 1; the first two are kept.

    Returns:
        The version: a new one, or the one that this run registered before.

    Raises:
        ModelFileError: The trained model is not what training handed over.
        StorageError: The model folder cannot be written.
        ServiceError: The store fails.
    """
    existing = tracker.find_version(run_id)
    if existing is not None:
        return existing
    folder = Path(trained.model_dir).parent / "registered"
    manifest_sha256 = build_model_folder(trained, example_inputs, folder)
    name = params.registry.model_name
    with service_errors(tracker.store):
        run = tracker.client.get_run(run_id)
        tracker.client.log_artifacts(run_id, str(folder), ARTIFACT_FOLDER)
        tags = {tag: value for tag, value in run.data.tags.items() if tag.startswith(LINEAGE_TAG_PREFIXES)}
        tags |= {WEIGHTS_TAG: trained.weights_sha256, MANIFEST_TAG: manifest_sha256}
        _create_registered_model(tracker, name)
        version = tracker.client.create_model_version(
            name,
            f"{run.info.artifact_uri}/{ARTIFACT_FOLDER}",
            run_id,
            tags=tags,
            description=_description(evaluation, run.data.tags),
        )
    return ModelRef(name, int(version.version), run_id, f"models:/{name}/{version.version}", manifest_sha256)


def example_inputs_of(trained: TrainResult, dataset: Dataset) -> np.ndarray:
    """Return the first two examples as the trained model takes them."""
    _, spec = load_model(Path(trained.model_dir))
    rows = np.arange(min(2, dataset.ref.num_examples))
    inputs, _ = Batches(dataset, rows, torch.device("cpu"), spec).take(torch.from_numpy(rows))
    return np.asarray(to_model_input(inputs))


def build_model_folder(trained: TrainResult, example_inputs: np.ndarray, folder: Path) -> str:
    """Write everything that is registered, anew.

    Returns:
        SHA-256 (hex) of the folder's manifest.

    Raises:
        ModelFileError: The weights are not those that training handed over.
        StorageError: The folder cannot be written.
    """
    model_dir = Path(trained.model_dir)
    model, spec = load_model(model_dir)
    try:
        shutil.rmtree(folder, ignore_errors=True)
        save_mlflow_model(model, spec, example_inputs, folder)
        for name in MODEL_FILES:
            if (model_dir / name).exists():
                shutil.copyfile(model_dir / name, folder / name)
    except OSError as error:
        raise StorageError(
            f"{folder}: cannot write the model folder ({error.strerror}). Free some space or make it writable."
        ) from error
    manifest_sha256 = write_manifest(folder)
    _require_weights(folder / WEIGHTS_FILE, trained.weights_sha256)
    return manifest_sha256


def _require_weights(weights: Path, expected_sha256: str) -> None:
    with weights.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected_sha256:
        raise ModelFileError(
            f"{weights}: sha256 {found[:12]}, but training handed over {expected_sha256[:12]}. Train again."
        )


def _create_registered_model(tracker: Tracker, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        tracker.client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _description(evaluation: Evaluation, tags: dict[str, str]) -> str:
    commit = tags.get("assay.git.commit", "")
    commit = commit[:12] if "mlflow.source.git.commit" in tags else commit
    shown = ", ".join(
        f"{name} {interval.value:.4f} [{interval.low:.4f}, {interval.high:.4f}]"
        for name, interval in evaluation.metrics.items()
        if name in ("accuracy", "f1_macro")
    )
    return (
        f"Test ({evaluation.num_test} examples, {evaluation.confidence:.0%} intervals): {shown}. "
        f"Data {tags.get('assay.data.md5', '')[:12]}, code {commit}."
    )
