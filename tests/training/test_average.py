from pathlib import Path

import pytest
import torch
from torch import nn

from assay.models.files import load_model
from assay.training.average import WeightAverage
from assay.training.fit import fit
from assay.training.master import MasterWeights
from tests.training.tiny import FP32, MODEL, TRAIN, tiny_dataset


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_the_average_follows_the_formula_for_weights_and_buffers() -> None:
    module = network()
    master = MasterWeights(module, torch.float32)
    average = WeightAverage(master, module, decay=0.3)
    expected = {name: tensor.clone() for name, tensor in module.state_dict().items() if tensor.is_floating_point()}
    for step in range(5):
        with torch.no_grad():
            master.values.add_(torch.randn(len(master.values)))
            module[1].running_mean.add_(1.0)
        average.update(step)
        decay = min(0.3, (1 + step) / (10 + step))
        expected = {name: decay * old + (1 - decay) * module.state_dict()[name] for name, old in expected.items()}
    trained = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with average.in_place():
        for name, tensor in expected.items():
            assert torch.allclose(module.state_dict()[name], tensor, atol=1e-6), name
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in trained.items())


def test_the_average_becomes_the_model_and_leaves_training_alone(tmp_path: Path) -> None:
    dataset, splits = tiny_dataset(tmp_path)
    plain, averaged = (
        fit(dataset, splits, MODEL, TRAIN.model_copy(update={"ema_decay": decay}), FP32, tmp_path / str(decay))
        for decay in (None, 0.9)
    )
    assert [epoch.train_loss for epoch in plain.history] == [epoch.train_loss for epoch in averaged.history]
    first, second = (load_model(Path(result.model_dir))[0].state_dict() for result in (plain, averaged))
    assert any(not torch.equal(first[name], second[name]) for name in first)
    assert [epoch.val_loss for epoch in plain.history] != [epoch.val_loss for epoch in averaged.history]


@pytest.mark.parametrize("decay", [0.9])
def test_a_paused_run_with_an_average_ends_in_the_same_bytes(tmp_path: Path, decay: float) -> None:
    dataset, splits = tiny_dataset(tmp_path)
    train = TRAIN.model_copy(update={"ema_decay": decay})
    whole = fit(dataset, splits, MODEL, train, FP32, tmp_path / "whole")
    fit(dataset, splits, MODEL, train, FP32, tmp_path / "parts", until_epoch=1)
    parts = fit(dataset, splits, MODEL, train, FP32, tmp_path / "parts")
    assert parts.resumed_from_step > 0
    assert parts.weights_sha256 == whole.weights_sha256
