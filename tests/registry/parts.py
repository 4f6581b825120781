"""A small trained model and its run, as the registry gets them."""

from pathlib import Path

import numpy as np
import torch

from assay.models.build import build_model
from assay.models.files import save_model
from assay.models.spec import DropoutProbs, ModelSpec
from assay.params import CnnParams
from assay.records import TrainResult
from assay.tracking.runs import OpenRun, Tracker
from tests.tracking.parts import default_params, make_data, make_epoch, make_key, make_splits

SPEC = ModelSpec(
    model=CnnParams(channels=(4, 8), hidden_units=16),
    shape=(8, 8, 1),
    class_names=("0", "1", "2"),
    dropout=DropoutProbs(hidden=0.25),
    mean=(30.0,),
    std=(50.0,),
)


def make_images(count: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (count, 1, 8, 8), dtype=np.uint8)


def make_trained(run_dir: Path, seed: int = 0) -> TrainResult:
    torch.set_num_threads(1)
    weights_sha256 = save_model(build_model(SPEC, seed), SPEC, run_dir / "model")
    return TrainResult(
        model_dir=str(run_dir / "model"),
        weights_sha256=weights_sha256,
        history=(make_epoch(1),),
        best_epoch=1,
        stopped_early=False,
        resumed_from_step=0,
        num_steps=10,
        num_parameters=1000,
        samples_per_second=1000.0,
        seconds=1.0,
        device="cpu",
        precision="fp32",
        num_threads=1,
    )


def start_run(tracker: Tracker) -> OpenRun:
    root = tracker.project.root
    return tracker.open_run(make_key(), default_params(), make_data(root), make_splits(root), name="first")
