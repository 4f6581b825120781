import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from assay.data import large_arrays
from assay.training import batches
from assay.training import fit as training
from assay.training.batches import Batches, input_statistics, to_model_input
from assay.training.session import batch_order, stream_seed
from tests.training.tiny import FP32, MODEL, TRAIN, spec_of, tiny_dataset


def test_take_gives_the_rows_asked_for(tmp_path: Path) -> None:
    dataset, _ = tiny_dataset(tmp_path)
    rows = np.array([5, 90, 17, 3])
    pixels, labels = Batches(dataset, rows, torch.device("cpu"), spec_of(dataset)).take(torch.tensor([3, 1]))
    assert np.array_equal(pixels.numpy(), dataset.images[[3, 90]])
    assert labels.tolist() == dataset.labels[[3, 90]].tolist()


def test_model_input_keeps_values_and_is_channels_last() -> None:
    pixels = torch.randint(0, 256, (2, 5, 4, 3), dtype=torch.uint8)
    images = to_model_input(pixels)
    assert images.shape == (2, 3, 5, 4) and images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images[1, 2], pixels[1, :, :, 2].float())


def test_statistics_are_those_of_the_train_split(tmp_path: Path) -> None:
    dataset, _ = tiny_dataset(tmp_path, num_examples=30, shape=(9, 4, 3))
    rows = np.arange(0, 30, 2)
    mean, std = input_statistics(dataset, rows)
    values = dataset.images[rows].reshape(-1, 3).astype(np.float64)
    assert mean == pytest.approx(values.mean(0).tolist())
    assert std == pytest.approx(values.std(0).tolist())
    other = dataset.images.copy()
    other[1::2] = 255
    assert input_statistics(dataclasses.replace(dataset, inputs=other), rows) == (mean, std)


def test_an_epoch_visits_every_example_once_in_an_order_of_its_own() -> None:
    first, again, second, other = (batch_order(50, *key) for key in ((0, 0), (0, 0), (0, 1), (1, 0)))
    assert first.sort().values.tolist() == list(range(50))
    assert torch.equal(first, again)
    assert not torch.equal(first, second) and not torch.equal(first, other)


def test_streams_have_different_seeds() -> None:
    seeds = {stream_seed(seed, stream, epoch) for seed in range(4) for stream in range(3) for epoch in range(4)}
    assert len(seeds) == 48


def test_the_next_batch_is_announced_where_rows_are_read_out_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, splits = tiny_dataset(tmp_path, num_examples=40)
    np.save(tmp_path / "inputs.npy", dataset.inputs)
    mapped = dataclasses.replace(dataset, inputs=np.load(tmp_path / "inputs.npy", mmap_mode="r"))
    monkeypatch.setattr(large_arrays, "MAPPED_BYTES", 0)
    done: list[tuple[str, list[int]]] = []
    for name, work in (("take_rows", batches.take_rows), ("expect_rows", batches.expect_rows)):

        def noted(array: np.memmap, rows: np.ndarray, name: str = name, work: Any = work) -> Any:
            done.append((name, rows.tolist()))
            return work(array, rows)

        monkeypatch.setattr(batches, name, noted)
    train = TRAIN.model_copy(update={"num_epochs": 1, "batch_size": 8})
    training.fit(mapped, splits, MODEL, train, FP32, tmp_path / "run")
    first = next(number for number, (what, _) in enumerate(done) if what == "expect_rows")
    steps = done[first - 1 : first + 3]
    assert [what for what, _ in steps] == ["take_rows", "expect_rows"] * 2
    assert len(steps[1][1]) == 8 and steps[1][1] == steps[2][1]
