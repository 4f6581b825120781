"""Adam in two passes over the weights, beside torch's operations."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from assay.params import AdamParams, AdamWParams, SgdParams, TrainParams
from assay.training import fused_adam as module_under_test
from assay.training.fit import fit
from assay.training.fused_adam import FusedAdam, fused_adam
from assay.training.master import MasterWeights
from assay.training.optimizers import build_optimizer
from assay.training.penalty import CHUNK
from assay.training.update import TorchUpdate, Update
from tests.training.tiny import BF16, FP32, MODEL, TRAIN, tiny_dataset

ENOUGH = module_under_test._ENOUGH
TERMS = TrainParams(optimizer=AdamWParams(learning_rate=0.01, weight_decay=0.1), l1=0.03, l2=0.5)
CASES = {
    "terms and decay": TERMS,
    "L1": TERMS.model_copy(update={"l2": 0.0}),
    "L2, no decay": TERMS.model_copy(update={"l1": 0.0, "optimizer": AdamWParams(weight_decay=0.0)}),
    "nothing": TrainParams(optimizer=AdamParams(learning_rate=0.01, beta1=0.4)),
}


def network() -> nn.Module:
    """Return layers of several chunks and of few numbers, of weights, biases and others, one without a gradient."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(CHUNK // 16 + 1, 37), nn.Linear(5, 1, bias=False)
    )


def updates(params: TrainParams, dtype: torch.dtype) -> tuple[tuple[MasterWeights, Update], ...]:
    """Return the weights of the same network twice, with both updates."""
    made: list[tuple[MasterWeights, Update]] = []
    for is_fused in (True, False):
        master = MasterWeights(network(), dtype)
        optimizer = build_optimizer(master.weights, master.rest, params.optimizer)
        if is_fused:
            update: Update | None = fused_adam(master, optimizer, params, ENOUGH, 1)
            assert isinstance(update, FusedAdam)
        else:
            update = TorchUpdate(master, optimizer, params)
        made.append((master, update))
    return tuple(made)


def give_gradients(master: MasterWeights, seed: int) -> None:
    """Have a backward pass leave something at all parameters but the last weights."""
    generator = torch.Generator().manual_seed(seed)
    working = list(master.module.parameters())
    for parameter in working[:-1]:
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    assert working[-1].grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_weights_and_state_are_those_of_torch(name: str, dtype: torch.dtype) -> None:
    """On an AVX-512 Xeon all but the last few are equal to the bit; torch may round otherwise on others."""
    made = updates(CASES[name], dtype)
    start = made[0][0].values.clone()
    for step in range(5):
        for master, update in made:
            master.refresh()
            give_gradients(master, step)
            measured = update.measure()
            update.apply(0.01 / (1 + step), measured)
    (ours, fused), (theirs, plain) = made
    assert not torch.equal(ours.values, start)
    torch.testing.assert_close(ours.values, theirs.values, rtol=3e-7, atol=1e-8)
    for one, other in zip(states(fused), states(plain), strict=True):
        assert one.keys() == other.keys() == {"step", "exp_avg", "exp_avg_sq"}
        for key, value in one.items():
            torch.testing.assert_close(value, other[key], rtol=3e-7, atol=1e-8)
    for master in (ours, theirs):
        master.refresh()
        for parameter, working in zip(master.parameters, master._working, strict=True):
            assert torch.equal(parameter.to(working.dtype), working)


def states(update: Update) -> list[dict[str, Tensor]]:
    return list(update._optimizer.state.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_value_and_norm_are_those_of_float64(name: str, dtype: torch.dtype) -> None:
    params = CASES[name]
    (master, update), _ = updates(params, dtype)
    give_gradients(master, 0)
    value, norm = update.measure().tolist()
    wide = master.weights.detach().double()
    gradient = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in master._working])
    gradient = gradient.double()
    gradient[: len(wide)] += params.l1 * wide.sign() + params.l2 * wide
    exact = params.l1 * wide.abs().sum() + params.l2 / 2 * wide.square().sum()
    assert value == pytest.approx(exact.item(), rel=1e-6)
    assert norm == pytest.approx(torch.linalg.vector_norm(gradient).item(), rel=1e-6)


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_gradients_are_clipped_as_torch_does(max_norm: float) -> None:
    made = updates(TERMS.model_copy(update={"max_grad_norm": max_norm}), torch.bfloat16)
    unclipped = updates(TERMS, torch.bfloat16)[0]
    for step in range(3):
        for master, update in (*made, unclipped):
            master.refresh()
            give_gradients(master, step)
            update.apply(0.01, update.measure())
    torch.testing.assert_close(made[0][0].values, made[1][0].values, rtol=1e-5, atol=1e-7)
    own, free = (states(update)[0]["exp_avg"] for _, update in (made[0], unclipped))
    assert torch.equal(own, free) == (max_norm > 1e3)


def test_gradients_that_lie_otherwise_in_memory_are_taken_as_well() -> None:
    (master, update), (other, plain) = updates(TERMS, torch.float32)
    for one, step in ((master, update), (other, plain)):
        give_gradients(one, 0)
        conv = next(one.module.parameters())
        conv.grad = conv.grad.contiguous(memory_format=torch.channels_last)
        step.apply(0.01, step.measure())
    torch.testing.assert_close(master.values, other.values, rtol=3e-7, atol=1e-8)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 1, 2, 5])
def test_what_is_no_number_is_seen(place: int, value: float) -> None:
    (master, update), _ = updates(TERMS, torch.bfloat16)
    give_gradients(master, 0)
    list(master.module.parameters())[place].grad.view(-1)[-1] = value
    assert not update.measure()[1].isfinite()


def test_the_same_bits_whoever_does_the_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for num_threads, is_parallel in ((1, True), (3, True), (3, False)):
        (master, update), _ = updates(TERMS, torch.bfloat16)
        torch.set_num_threads(num_threads)
        try:
            if not is_parallel:
                monkeypatch.setattr(update._code, "_parallel", None)
            give_gradients(master, 0)
            measured = update.measure()
            update.apply(0.01, measured)
            found.append((measured, master.values, master.lowered))
        finally:
            torch.set_num_threads(1)
    for some in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(some, found[0], strict=True))


def test_it_goes_on_with_the_state_that_a_checkpoint_had() -> None:
    (master, update), (other, _) = updates(TERMS, torch.bfloat16)
    for step in range(2):
        give_gradients(master, step)
        update.apply(0.01, update.measure())
    optimizer = build_optimizer(other.weights, other.rest, TERMS.optimizer)
    again = fused_adam(other, optimizer, TERMS, ENOUGH, 1)
    give_gradients(other, 9)
    again.apply(0.01, again.measure())  # is forgotten
    for own, saved in zip((other.weights, other.rest), states(update), strict=True):
        optimizer.state[own].update({key: value.clone() for key, value in saved.items()})
    with torch.no_grad():
        other.values.copy_(master.values)
    for one, step in ((master, update), (other, again)):
        give_gradients(one, 2)
        step.apply(0.01, step.measure())
    assert torch.equal(master.values, other.values)
    assert [float(state["step"]) for state in states(again)] == [3.0, 3.0]


def always(monkeypatch: pytest.MonkeyPatch) -> list[FusedAdam]:
    """Have every training take it; return those that were made."""
    made: list[FusedAdam] = []
    usual: Callable[..., FusedAdam | None] = fused_adam

    def make(*args: object, **kwargs: object) -> FusedAdam | None:
        update = usual(*args, **kwargs)
        if update is not None:
            made.append(update)
        return update

    monkeypatch.setattr("assay.training.own_code.fused_adam", make)
    monkeypatch.setattr(module_under_test, "_ENOUGH", 0)
    return made


@pytest.mark.parametrize("device", [FP32, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("changes", [{}, {"ema_decay": 0.9}, {"l1": 0.001, "max_grad_norm": 0.5}, {"freeze_layers": 1}])
def test_a_training_learns_what_torchs_does_and_can_be_paused(tmp_path: Path, device, changes, monkeypatch) -> None:
    dataset, splits = tiny_dataset(tmp_path)
    train = TRAIN.model_copy(update=changes)
    plain = fit(dataset, splits, MODEL, train, device, tmp_path / "plain")
    made = always(monkeypatch)
    whole = fit(dataset, splits, MODEL, train, device, tmp_path / "whole")
    fit(dataset, splits, MODEL, train, device, tmp_path / "parts", until_epoch=1)
    parts = fit(dataset, splits, MODEL, train, device, tmp_path / "parts")
    assert len(made) == 3
    assert parts.resumed_from_step > 0
    assert parts.weights_sha256 == whole.weights_sha256
    for ours, theirs in zip(whole.history, plain.history, strict=True):
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-4)
        assert ours.val_loss == pytest.approx(theirs.val_loss, rel=1e-3)


def test_other_optimizers_and_short_trainings_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_taken(params: TrainParams, num_steps: int = ENOUGH, num_threads: int = 1) -> bool:
        master = MasterWeights(network(), torch.float32)
        optimizer = build_optimizer(master.weights, master.rest, params.optimizer)
        return fused_adam(master, optimizer, params, num_steps, num_threads) is not None

    assert is_taken(TERMS) and is_taken(TrainParams(optimizer=AdamParams()))
    assert not is_taken(TrainParams(optimizer=SgdParams()))
    assert not is_taken(TERMS.model_copy(update={"layer_decay": 0.9}))
    steps = -(-ENOUGH // MasterWeights(network(), torch.float32).weights.numel())
    assert [is_taken(TERMS, number) for number in (steps - 1, steps)] == [False, True]
    monkeypatch.setattr(module_under_test._make(False), "_parallel", None)
    assert [is_taken(TERMS, num_threads=number) for number in (1, 2)] == [True, False]


def test_without_llvm_a_training_goes_on_with_torch(monkeypatch, caplog: pytest.LogCaptureFixture) -> None:
    def fail(text: str) -> None:
        raise RuntimeError("no such processor")

    monkeypatch.setattr("assay.training.fused_adam_code.MachineCode", fail)
    module_under_test._make.cache_clear()
    try:
        master = MasterWeights(network(), torch.float32)
        optimizer = build_optimizer(master.weights, master.rest, TERMS.optimizer)
        for _ in range(2):
            assert fused_adam(master, optimizer, TERMS, ENOUGH, 1) is None
    finally:
        module_under_test._make.cache_clear()
    assert [record.message.count("no such processor") for record in caplog.records] == [1]
