"""Trains in a process of its own and says which epoch is over, so that a test can ask it to end. Argument: folder."""

import sys
from pathlib import Path

from assay.records import EpochRecord
from assay.training.fit import fit
from tests.training.tiny import FP32, MODEL, TRAIN, tiny_dataset

ASKED_TRAIN = TRAIN.model_copy(update={"num_epochs": 8, "batch_size": 4, "checkpoint_every_seconds": 1000.0})


def say(record: EpochRecord) -> None:
    """Write the number of the epoch that is over; before the last one, wait until no more will be asked."""
    sys.stdout.write(f"epoch {record.epoch}\n")
    sys.stdout.flush()
    if record.epoch == ASKED_TRAIN.num_epochs - 1:
        sys.stdin.read()


def main(folder: Path) -> None:
    """Train in a folder until the end, or until SIGTERM or SIGINT."""
    dataset, splits = tiny_dataset(folder)
    fit(dataset, splits, MODEL, ASKED_TRAIN, FP32, folder / "run", on_epoch=say)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
