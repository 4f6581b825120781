import dataclasses
from pathlib import Path

import numpy as np
import pytest

from assay.data.loading import Dataset
from assay.models.spec import ModelSpec
from assay.training import specify as module
from assay.training.batches import input_statistics
from assay.training.specify import specify
from tests.training.tiny import MODEL, TRAIN, tiny_dataset


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of rows of every split whose statistics are computed."""
    found: list[int] = []

    def compute(dataset: Dataset, rows: np.ndarray) -> object:
        found.append(len(rows))
        return input_statistics(dataset, rows)

    monkeypatch.setattr(module, "input_statistics", compute)
    return found


def spec_of(dataset: Dataset, rows: np.ndarray) -> ModelSpec:
    return specify(dataset, rows, MODEL, TRAIN)


def test_the_statistics_of_a_split_are_computed_once(tmp_path: Path, asked: list[int]) -> None:
    dataset, _ = tiny_dataset(tmp_path)
    first = spec_of(dataset, np.arange(40))
    again = spec_of(dataclasses.replace(dataset), np.arange(40))
    assert again == first
    assert (first.mean, first.std) == input_statistics(dataset, np.arange(40))
    assert asked == [40]


def test_another_split_or_data_set_has_its_own_statistics(tmp_path: Path, asked: list[int]) -> None:
    dataset, _ = tiny_dataset(tmp_path)
    other = dataclasses.replace(dataset, inputs=dataset.images // 2)
    splits = (np.arange(40), np.arange(40)[::-1], np.arange(40) + 1, np.arange(41))
    for _ in range(2):
        for each in (dataset, other):
            for rows in splits:
                spec = spec_of(each, rows)
                assert (spec.mean, spec.std) == input_statistics(each, rows)
    assert asked == [40, 40, 40, 41] * 2


def test_only_the_last_few_are_remembered(tmp_path: Path, asked: list[int]) -> None:
    dataset, _ = tiny_dataset(tmp_path)
    for number in range(30, 60):
        spec_of(dataset, np.arange(number))
    spec_of(dataset, np.arange(30))
    assert asked == [*range(30, 60), 30]
    assert len(module._found) == 8
