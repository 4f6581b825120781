"""Pretrain and train on tiny texts, slowly enough to be killed."""

from pathlib import Path

import numpy as np

from assay.data.loading import Dataset
from assay.data.splits import make_splits
from assay.params import MaskedLanguageStart, SplitParams, TokenizerParams, TrainParams, TransformerParams
from assay.records import Splits
from assay.training.fit import fit
from tests.data.kinds import text_dataset
from tests.training.tiny import FP32

MODEL = TransformerParams(
    dim=16, num_layers=2, feedforward_dim=24, max_length=48, tokenizer=TokenizerParams(vocab_size=120)
)
TRAIN = TrainParams(num_epochs=2, batch_size=16, early_stopping=None, dropout_prob=0.2)
KILLED_TRAIN = TRAIN.model_copy(
    update={"start": MaskedLanguageStart(num_epochs=20, batch_size=16), "checkpoint_every_seconds": 0.0}
)


def text_run(folder: Path, num_examples: int = 120) -> tuple[Dataset, Splits]:
    """Make tiny texts of two classes and divide them."""
    dataset = text_dataset(np.arange(num_examples) % 2)
    return dataset, make_splits(dataset, SplitParams(val_fraction=0.15, test_fraction=0.15), folder / "splits")


def main(folder: Path) -> None:
    """Pretrain and train in a folder."""
    fit(*text_run(folder), MODEL, KILLED_TRAIN, FP32, folder / "run")
