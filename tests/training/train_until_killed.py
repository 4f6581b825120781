"""Trains in a process of its own, so that a test can kill it."""

from pathlib import Path

from assay import devices
from assay.params import EarlyStoppingParams
from assay.training.fit import fit
from tests.training.tiny import BF16, FP32, MODEL, TRAIN, tiny_dataset

KILLED_TRAIN = TRAIN.model_copy(
    update={
        "num_epochs": 12,
        "batch_size": 4,
        "checkpoint_every_seconds": 0.0,
        "early_stopping": EarlyStoppingParams(patience_epochs=12),
    }
)


def main(folder: Path, precision: str) -> None:
    dataset, splits = tiny_dataset(folder)
    told = folder / "told"
    devices._has_bf16 = lambda device: True  # torch rounds in software where the CPU cannot
    device = BF16 if precision == "bf16" else FP32
    fit(
        dataset, splits, MODEL, KILLED_TRAIN, device, folder / "run",
        on_steps=lambda steps: told.write_text(f"{told.read_text() if told.exists() else ''}{steps.step[-1]}\n"),
    )  # fmt: skip
