from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from assay.data.loading import Dataset
from assay.data.splits import make_splits
from assay.models.build import build_model
from assay.models.files import save_model
from assay.models.spec import DropoutProbs, ModelSpec
from assay.params import CnnParams, SplitParams
from assay.records import DataRef, EpochRecord, Splits, TrainResult

MakeDataset = Callable[..., Dataset]
Case = tuple[Dataset, Splits, TrainResult]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def make_dataset() -> MakeDataset:
    """Noisy images, each around the pattern of its class."""

    def make(
        num_examples: int = 200,
        class_names: tuple[str, ...] = ("cat", "dog", "horse"),
        shape: tuple[int, int, int] = (8, 8, 1),
        noise: float = 60.0,
    ) -> Dataset:
        rng = np.random.default_rng(3)
        labels = np.arange(num_examples) % len(class_names)
        patterns = rng.uniform(50, 200, (len(class_names), *shape))
        images = patterns[labels] + rng.normal(0, noise, (num_examples, *shape))
        ref = DataRef("data", "0" * 32 + ".dir", "made", num_examples, class_names, shape)
        return Dataset(
            ref=ref,
            inputs=np.clip(images, 0, 255).astype(np.uint8),
            labels=labels,
            given_split=np.full(num_examples, -1, np.int8),
            groups=np.full(num_examples, -1),
            content_hash=np.array([f"{number:016d}" for number in range(num_examples)], "S16"),
        )

    return make


@pytest.fixture
def make_case(make_dataset: MakeDataset, tmp_path: Path) -> Callable[..., Case]:
    """A data set, its splits and an untrained model on disk."""

    def make(**choices: object) -> Case:
        dataset = make_dataset(**choices)
        channels = dataset.ref.image_shape[2]
        spec = ModelSpec(
            CnnParams(channels=(4,), hidden_units=8),
            dataset.ref.shape,
            dataset.ref.class_names,
            DropoutProbs(),
            (120.0,) * channels,
            (60.0,) * channels,
        )
        (tmp_path / "splits").mkdir()
        splits = make_splits(dataset, SplitParams(test_fraction=0.3), tmp_path / "splits")
        sha256 = save_model(build_model(spec, seed=1), spec, tmp_path / "model")
        history = tuple(EpochRecord(e, 9 * e, 2 / e, 0.5, 2.1 / e, 0.4, 0.001, 0.1, 0) for e in (1, 2, 3))
        trained = TrainResult(
            str(tmp_path / "model"), sha256, history, 3, False, 0, 27, 1000, 5000.0, 0.3, "cpu", "fp32", 1
        )
        return dataset, splits, trained

    return make


@pytest.fixture
def simulate() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Labels and probabilities of a classifier of chosen skill; `ties` rounds its scores."""

    def make(
        num_examples: int = 300, num_classes: int = 4, skill: float = 1.5, ties: bool = False, seed: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        labels = rng.integers(num_classes, size=num_examples)
        logits = rng.normal(size=(num_examples, num_classes))
        logits[np.arange(num_examples), labels] += skill
        powers = np.exp(np.round(logits) if ties else logits)
        return labels, powers / powers.sum(axis=1, keepdims=True)

    return make
