"""A data set small enough to train on in a blink, learnable and deterministic."""

from pathlib import Path

import numpy as np

from assay.data.loading import Dataset
from assay.data.splits import make_splits
from assay.models.spec import ModelSpec
from assay.params import CnnParams, DeviceParams, NoAugmentation, SplitParams, TrainParams
from assay.records import DataRef, Splits
from assay.training.specify import specify

MODEL = CnnParams(channels=(4, 8), hidden_units=16)
FP32 = DeviceParams(kind="cpu", precision="fp32", num_threads=1)
BF16 = DeviceParams(kind="cpu", precision="bf16", num_threads=1)
TRAIN = TrainParams(num_epochs=3, batch_size=16, early_stopping=None, augmentation=NoAugmentation())


def tiny_dataset(
    folder: Path, num_examples: int = 120, shape: tuple[int, int, int] = (10, 9, 1), num_classes: int = 3
) -> tuple[Dataset, Splits]:
    """Make noisy images whose class is where a bright bar sits, split 70/15/15."""
    generator = np.random.default_rng(7)
    labels = (np.arange(num_examples) % num_classes).astype(np.int64)
    images = generator.integers(0, 90, (num_examples, *shape), dtype=np.uint8)
    for index, label in enumerate(labels):
        images[index, 3 * label : 3 * label + 2] += 140
    class_names = tuple(f"bar{number}" for number in range(num_classes))
    ref = DataRef(str(folder), "0123456789abcdef0123456789abcdef.dir", "tiny", num_examples, class_names, shape)
    hashes = np.array([f"{index:016d}" for index in range(num_examples)], dtype="S16")
    given, groups = np.full(num_examples, -1, np.int8), np.full(num_examples, -1, np.int64)
    dataset = Dataset(ref, images, labels, given, groups, hashes)
    return dataset, make_splits(dataset, SplitParams(val_fraction=0.15, test_fraction=0.15), folder / "splits")


def spec_of(dataset: Dataset) -> ModelSpec:
    """The spec of `MODEL` fitted on all examples."""
    return specify(dataset, np.arange(len(dataset.labels)), MODEL, TRAIN)
