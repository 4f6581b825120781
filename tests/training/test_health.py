import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from assay.models.lstm import Direction
from assay.params import DeviceParams, TrainParams
from assay.records import EpochRecord, LayerHealth, StepRecords
from assay.training import fit as training
from assay.training import loop
from assay.training.health import (
    MAX_EXAMPLES,
    MAX_LAYERS,
    examine,
    examined_positions,
    find_warnings,
    gradient_norms,
    is_examined,
)
from tests.training.tiny import BF16, FP32, MODEL, TRAIN, tiny_dataset

MANY = TRAIN.model_copy(update={"num_epochs": 9, "checkpoint_every_seconds": 0.0})  # 6 steps an epoch: looks in the 9th


class Rectified(nn.Module):
    """Two linear layers with a ReLU between them."""

    rectified = ("before",)

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(3, 4)
        self.after = nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.after(torch.relu(self.before(inputs)))
        return result


def look(module: nn.Module, inputs: Tensor) -> tuple[LayerHealth, ...]:
    module.eval()
    module.zero_grad()
    module(inputs).square().sum().backward()
    return examine(module, gradient_norms(module), lambda: module(inputs))


def epoch(number: int, *layers: LayerHealth) -> EpochRecord:
    return EpochRecord(number, number * 9, 1.0, 0.5, 1.0, 0.5, 0.1, 1.0, 0, layers)


def layer(name: str, grad_norm: float = 1.0, weight_norm: float = 1.0, **values: float) -> LayerHealth:
    seen = {"activation_mean": 0.0, "activation_std": 1.0, "dead_share": 0.0, "saturated_share": 0.0}
    return LayerHealth(name, "Linear", grad_norm, weight_norm, **{**seen, **values})


def train_by_hand(module: nn.Module, rate: float, num_epochs: int = 4) -> tuple[str, ...]:
    """Train on noise by plain SGD, ten steps an epoch."""
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(64, 8, generator=generator)
    labels = torch.randint(0, 3, (64,), generator=generator)
    history = []
    for number in range(1, num_epochs + 1):
        for _ in range(10):
            module.zero_grad()
            nn.functional.cross_entropy(module(inputs), labels).backward()
            gradients = gradient_norms(module)
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter -= rate * parameter.grad
        history.append(epoch(number, *examine(module, gradients, lambda: module(inputs))))
    return find_warnings(history)


def test_norms_and_statistics_are_what_their_names_say() -> None:
    torch.manual_seed(0)
    module, inputs = Rectified(), torch.randn(50, 3)
    first, second = look(module, inputs)
    assert (first.name, first.kind, second.name) == ("before", "Linear", "after")
    flat = torch.cat([module.before.weight.grad.flatten(), module.before.bias.grad])
    assert first.grad_norm == pytest.approx(flat.norm().item(), rel=1e-4)
    flat = torch.cat([module.after.weight.flatten(), module.after.bias])
    assert second.weight_norm == pytest.approx(flat.norm().item(), rel=1e-4)
    outputs = module.before(inputs)
    assert first.activation_mean == pytest.approx(outputs.mean().item(), rel=1e-4)
    assert first.activation_std == pytest.approx(outputs.std(correction=0).item(), rel=1e-4)
    assert first.dead_share == second.dead_share == 0


def test_a_unit_that_never_passes_its_relu_is_dead_and_without_a_relu_it_is_not() -> None:
    torch.manual_seed(0)
    module, inputs = Rectified(), torch.randn(50, 3)
    with torch.no_grad():
        module.before.bias[1] = -100
    assert look(module, inputs)[0].dead_share == 0.25
    module.rectified = ()
    assert look(module, inputs)[0].dead_share == 0


def test_a_channel_that_is_the_same_everywhere_is_dead() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 8, 3)
    with torch.no_grad():
        conv.weight[:2] = 0
    assert look(conv, torch.randn(4, 1, 6, 6))[0].dead_share == 0.25


def test_too_few_values_tell_nothing_of_dead_units() -> None:
    assert look(Rectified(), torch.randn(2, 3))[0].dead_share is None


def test_states_at_the_ends_of_tanh_are_saturated() -> None:
    torch.manual_seed(0)
    lstm, inputs = Direction(3, 5, 0.0), torch.randn(6, 20, 3)
    assert look(lstm, inputs)[0].saturated_share == 0
    with torch.no_grad():
        lstm.bias.fill_(100)
    assert look(lstm, inputs)[0].saturated_share > 0.5


def test_values_that_overflow_stay_finite() -> None:
    module = nn.Linear(3, 4)
    with torch.no_grad():
        module.weight.fill_(3e38)
    found = examine(module, gradient_norms(module), lambda: module(torch.ones(20, 3)))[0]
    assert all(value is None or math.isfinite(value) for value in dataclasses.astuple(found)[2:])


def test_a_deep_model_is_pooled_and_keeps_its_whole_gradient() -> None:
    torch.manual_seed(0)
    deep = nn.Sequential(*(nn.Linear(3, 3) for _ in range(101)))
    found = look(deep, torch.randn(20, 3))
    assert len(found) == MAX_LAYERS
    assert found[0].name == "0 to 1" and found[-1].name.endswith("100")
    whole = torch.cat([parameter.grad.flatten() for parameter in deep.parameters()]).norm().item()
    assert math.hypot(*(layer.grad_norm for layer in found)) == pytest.approx(whole, rel=1e-3)


def test_frozen_layers_are_not_looked_at_and_no_hook_stays() -> None:
    module = Rectified()
    module.before.requires_grad_(False)
    assert [layer.name for layer in look(module, torch.randn(20, 3))] == ["after"]
    assert not any(layer._forward_hooks for layer in module.modules())


@pytest.mark.parametrize("num_examples", [1, 63, 64, 65, 1000])
def test_examined_examples_are_distinct_and_spread(num_examples: int) -> None:
    positions = examined_positions(num_examples).numpy()
    assert len(positions) == min(num_examples, MAX_EXAMPLES) and positions[0] == 0
    assert len(np.unique(positions)) == len(positions) and positions[-1] < num_examples
    assert positions[-1] >= num_examples - 1 - num_examples // len(positions)


def test_short_epochs_are_looked_at_rarely_and_the_last_one_always() -> None:
    assert [number for number in range(1, 16) if is_examined(number, 15, 55)] == [2, 4, 6, 8, 10, 12, 14, 15]
    assert [number for number in range(1, 31) if is_examined(number, 30, 6)] == [17, 30]
    assert [number for number in range(1, 4) if is_examined(number, 3, 1)] == [3]


@pytest.mark.parametrize("device", [FP32, BF16], ids=["fp32", "bf16"])
def test_looking_changes_no_bit_of_training(
    tmp_path: Path, device: DeviceParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, splits = tiny_dataset(tmp_path)
    train = TRAIN.model_copy(update={"ema_decay": 0.9})
    steps: list[list[tuple[float, ...]]] = []
    results = []
    for name, examined in (("always", True), ("never", False)):
        monkeypatch.setattr(loop, "is_examined", lambda *_, examined=examined: examined)
        told: list[StepRecords] = []
        results.append(training.fit(dataset, splits, MODEL, train, device, tmp_path / name, on_steps=told.append))
        steps.append([part.loss for part in told])
    always, never = results
    assert all(len(record.health) == 4 for record in always.history)
    assert not any(record.health for record in never.history)
    assert always.weights_sha256 == never.weights_sha256
    assert steps[0] == steps[1]


def test_nobody_looks_where_nobody_asks(tmp_path: Path) -> None:
    dataset, splits = tiny_dataset(tmp_path)
    asked, unasked = (
        loop.fit_weights(dataset, splits, MODEL, TRAIN, FP32, tmp_path / str(has_health), has_health=has_health).state
        for has_health in (True, False)
    )
    assert asked.epochs[-1].health and not any(record.health for record in unasked.epochs)
    assert all(torch.equal(asked.best[name], unasked.best[name]) for name in asked.best)


class _PowerCutError(Exception):
    pass


@pytest.mark.parametrize("device", [FP32, BF16], ids=["fp32", "bf16"])
def test_a_resumed_run_says_the_same_of_its_layers(tmp_path: Path, device: DeviceParams) -> None:
    dataset, splits = tiny_dataset(tmp_path)
    whole = training.fit(dataset, splits, MODEL, MANY, device, tmp_path / "whole")

    def cut(part: StepRecords) -> None:
        if part.step[-1] >= 51:  # in the middle of the last epoch
            raise _PowerCutError

    with pytest.raises(_PowerCutError):
        training.fit(dataset, splits, MODEL, MANY, device, tmp_path / "cut", on_steps=cut)
    resumed = training.fit(dataset, splits, MODEL, MANY, device, tmp_path / "cut")
    assert resumed.resumed_from_step == 51
    assert resumed.history[-1].health
    assert [record.health for record in resumed.history] == [record.health for record in whole.history]
    again = training.fit(dataset, splits, MODEL, MANY, device, tmp_path / "cut")
    assert again.history == resumed.history and again.warnings == resumed.warnings


def test_gradients_are_those_before_clipping(tmp_path: Path) -> None:
    dataset, splits = tiny_dataset(tmp_path)
    train = TRAIN.model_copy(update={"max_grad_norm": 1e-3})
    told: list[float] = []
    result = training.fit(
        dataset, splits, MODEL, train, FP32, tmp_path / "run", on_steps=lambda part: told.extend(part.grad_norm)
    )
    norms = [layer.grad_norm for layer in result.history[-1].health]
    assert math.hypot(*norms) == pytest.approx(told[-1], rel=1e-3)


def test_a_record_of_before_is_read() -> None:
    record = epoch(1, layer("hidden"))
    values = json.loads(json.dumps(record.to_json()))
    assert EpochRecord.from_json(values) == record
    del values["health"]
    assert EpochRecord.from_json(values).health == ()


def test_a_healthy_training_is_without_warnings(tmp_path: Path) -> None:
    dataset, splits = tiny_dataset(tmp_path)
    result = training.fit(dataset, splits, MODEL, change(TRAIN, num_epochs=18), FP32, tmp_path / "run")
    assert len([record for record in result.history if record.health]) == 2
    assert result.warnings == () and "warning" not in result.describe()


def test_a_hundred_times_the_learning_rate_is_warned_of(tmp_path: Path) -> None:
    dataset, splits = tiny_dataset(tmp_path)
    train = change(TRAIN, num_epochs=9, optimizer={"kind": "sgd", "learning_rate": 5.0})
    result = training.fit(dataset, splits, MODEL, train, FP32, tmp_path / "run")
    assert any("dead" in warning or "explodes" in warning for warning in result.warnings)
    assert all("train.optimizer.learning_rate" in warning for warning in result.warnings)
    assert f", {len(result.warnings)} warning" in result.describe()


def test_a_deep_narrow_sigmoid_network_vanishes_and_a_shallow_one_does_not() -> None:
    def stack(depth: int) -> nn.Module:
        torch.manual_seed(0)
        hidden = [part for _ in range(depth) for part in (nn.Linear(8, 8), nn.Sigmoid())]
        return nn.Sequential(*hidden, nn.Linear(8, 3))

    (warning,) = (w for w in train_by_hand(stack(8), 0.1) if "vanish" in w)
    assert warning.startswith("Epoch 4: gradients vanish on the way to 0, ") and "model.batch_norm=true" in warning
    assert train_by_hand(stack(1), 0.1) == ()


def test_a_layer_killed_by_its_bias_is_named() -> None:
    class Wide(Rectified):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.after = nn.Linear(8, 10), nn.Linear(10, 3)

    torch.manual_seed(0)
    module = Wide()
    assert train_by_hand(module, 0.05) == ()
    with torch.no_grad():
        module.before.bias[:7] = -100
    (warning,) = train_by_hand(module, 0.05)
    assert warning.startswith("Epoch 4: 70% of the units of before are dead. Lower train.optimizer.learning_rate")


def test_weights_that_diverge_explode() -> None:
    torch.manual_seed(0)
    (warning,) = train_by_hand(nn.Sequential(nn.Linear(8, 3)), 1e5, num_epochs=2)
    assert "0 explodes" in warning and "train.max_grad_norm=1" in warning


def test_a_gradient_explodes_against_its_median_but_not_where_it_was_as_large_before() -> None:
    usual = [epoch(number, layer("a", 1.0 / number)) for number in (1, 2, 3, 4)]
    (warning,) = find_warnings([*usual, epoch(5, layer("a", 60.0))])
    assert warning.startswith("Epoch 5: a explodes, its gradient's norm is 60, 144 times the usual.")
    memorised = [epoch(1, layer("a", 1.0)), *(epoch(number, layer("a", 1e-5)) for number in (2, 3, 4))]
    assert find_warnings([*memorised, epoch(5, layer("a", 0.5))]) == ()


def test_one_bad_look_is_no_dead_layer_and_saturation_is_named() -> None:
    well, dead = layer("a"), layer("a", dead_share=0.9)
    assert find_warnings([epoch(1, well), epoch(2, dead)]) == ()
    assert find_warnings([epoch(1, dead), epoch(2, well)]) == ()
    assert len(find_warnings([epoch(1, dead), epoch(2, dead)])) == 1
    (warning,) = find_warnings([epoch(3, layer("a", saturated_share=0.6))])
    assert warning.startswith("Epoch 3: 60% of the activations of a are saturated. ")


def test_a_table_of_token_vectors_is_no_first_layer() -> None:
    tokens = dataclasses.replace(layer("tokens", 1e-9), kind="Embedding")
    history = [epoch(number, tokens, layer("a"), layer("output")) for number in (1, 2, 3)]
    assert find_warnings(history) == ()
    assert find_warnings([epoch(number, layer("b", 1e-9), *record.health) for number, record in enumerate(history, 1)])


def test_nothing_is_said_of_what_nobody_looked_at() -> None:
    assert find_warnings([]) == find_warnings([epoch(1)]) == ()


def change(params: TrainParams, **values: object) -> TrainParams:
    return TrainParams.model_validate({**params.model_dump(), **values})
