"""A project with registered versions, for tests that score with them."""

from pathlib import Path

import numpy as np

from assay.data.loading import Dataset
from assay.models.build import build_model
from assay.models.files import save_model, write_manifest
from assay.models.spec import DropoutProbs, ModelSpec
from assay.params import CnnParams, LstmParams, MlpParams, TokenizerParams, TrainParams, TransformerParams
from assay.project import Project
from assay.records import SERIES, TABLE, TEXT, ModelRef
from assay.tracking.lineage import MANIFEST_TAG
from assay.tracking.runs import Tracker
from assay.training.specify import specify
from tests.data.kinds import series_dataset, table_dataset, text_dataset
from tests.registry.parts import start_run
from tests.tracking.parts import make_project

NAMES = ("cat", "日本 [x]", "dog")
PARAMS = """
registry: {experiment: unit, model_name: pets}
device: {kind: cpu, precision: fp32, num_threads: 1}
"""


def make_spec(shape: tuple[int, int, int] = (8, 6, 3)) -> ModelSpec:
    """A small model whose pixels say something: every image gets another answer."""
    channels = shape[2]
    return ModelSpec(
        CnnParams(channels=(4, 8), hidden_units=16),
        shape,
        NAMES,
        DropoutProbs(0.25),
        (30.0,) * channels,
        (5.0,) * channels,
    )


def make_scoring_project(root: Path) -> Project:
    """A project with ``pets`` versions 1 (grey) and 2 (colour, champion) and ``other`` version 1 (without champion)."""
    project = make_project(root)
    project.params_file.write_text(PARAMS)
    tracker = Tracker.open(project, "unit")
    run_id = start_run(tracker).run_id
    add_version(tracker, run_id, "pets", make_spec((8, 6, 1)))
    ref = add_version(tracker, run_id, "pets", make_spec())
    add_version(tracker, run_id, "other", make_spec())
    tracker.client.set_registered_model_alias("pets", "champion", str(ref.version))
    tracker.client.set_registered_model_alias("pets", "old", "1")
    return project


def add_version(tracker: Tracker, run_id: str, name: str, spec: ModelSpec, seed: int = 1) -> ModelRef:
    """Register a model without the files that only MLflow's own tools read."""
    folder = tracker.project.root / "models" / f"{name}-{spec.model.kind}-{spec.kind}-{spec.shape}"
    save_model(build_model(spec, seed), spec, folder)
    sha256 = write_manifest(folder)
    client = tracker.client
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    version = client.create_model_version(name, folder.as_uri(), run_id, tags={MANIFEST_TAG: sha256})
    return ModelRef(name, int(version.version), run_id, f"models:/{name}/{version.version}", sha256)


LSTM = LstmParams(
    embedding_dim=6, hidden_units=5, num_layers=2, max_length=12, tokenizer=TokenizerParams(vocab_size=200)
)
TRANSFORMER = TransformerParams(
    dim=8, num_layers=1, num_heads=2, feedforward_dim=8, max_length=12, tokenizer=TokenizerParams(vocab_size=200)
)
MODELS = {
    "reviews": (LSTM, TEXT),
    "tweets": (TRANSFORMER, TEXT),
    "waves": (LSTM, SERIES),
    "signals": (TRANSFORMER, SERIES),
    "patients": (MlpParams(hidden_units=(8,)), TABLE),
}
"""Registered model -> its params and kind of data; one version each, on the data of `make_data`."""

COLUMNS = ("age", "dose", "colour=green", "colour=red", "label_")


def make_data(kind: str, count: int = 70) -> Dataset:
    """Texts and series, some longer than the models read, and rows of a table."""
    labels = np.arange(count) % 2
    if kind == TEXT:
        return text_dataset(labels)
    if kind == SERIES:
        rng = np.random.default_rng(5)
        return series_dataset(labels, [rng.normal(size=(int(length), 2)) for length in rng.integers(3, 20, count)])
    rng = np.random.default_rng(6)
    table = np.stack([rng.normal(40, 9, count), rng.normal(size=count), labels, 1 - labels, rng.normal(size=count)], 1)
    table[3, 1] = np.nan
    return table_dataset(labels, table, COLUMNS)


def make_kinds_project(root: Path) -> Project:
    """A project with a version 1 of each of `MODELS`, and ``pets`` for images."""
    project = make_project(root)
    project.params_file.write_text(PARAMS)
    tracker = Tracker.open(project, "unit")
    run_id = start_run(tracker).run_id
    add_version(tracker, run_id, "pets", make_spec())
    for name, (params, kind) in MODELS.items():
        dataset = make_data(kind)
        spec = specify(dataset, np.arange(50), params, TrainParams())
        add_version(tracker, run_id, name, spec)
    return project


def make_images(count: int, shape: tuple[int, ...] = (8, 6, 3), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)
