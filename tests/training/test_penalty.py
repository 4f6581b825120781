import pytest
import torch

from assay.params import TrainParams
from assay.training import penalty
from assay.training.losses import add_penalty, penalize
from assay.training.penalty import CHUNK, PenaltyLoop, penalty_loop


@pytest.fixture(scope="module")
def loop() -> PenaltyLoop:
    made = penalty._make()
    assert made is not None
    return made


def parameters(number: int, num_rest: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights, some of them zero, and the gradient of these and some other parameters."""
    generator = torch.Generator().manual_seed(number)
    weights = torch.randn(number, generator=generator)
    weights[1 :: max(2, number // 3)] = 0.0
    return weights, torch.randn(number + num_rest, generator=generator)


@pytest.mark.parametrize("number", [1, 15, 16, 17, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 37])
@pytest.mark.parametrize(("l1", "l2"), [(0.03, 0.0), (0.0, 0.5), (0.03, 0.5)])
def test_the_gradient_is_that_of_torch_to_the_bit(number: int, l1: float, l2: float, loop: PenaltyLoop) -> None:
    params = TrainParams(l1=l1, l2=l2)
    weights, gradient = parameters(number)
    ours, theirs = gradient.clone(), gradient.clone()
    value, norm = penalize(weights, ours, params, loop)
    expected, expected_norm = penalize(weights, theirs, params)
    assert torch.equal(ours, theirs) and torch.equal(ours[number:], gradient[number:])
    assert not torch.equal(ours, gradient)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert norm.item() == pytest.approx(expected_norm.item(), rel=1e-5)
    assert value.dtype == norm.dtype == torch.float32


def test_sums_are_those_of_float64(loop: PenaltyLoop) -> None:
    weights, gradient = parameters(100 * CHUNK + 7)
    value, norm = penalize(weights, gradient, TrainParams(l1=0.03, l2=0.5), loop)
    wide = weights.double()
    exact = 0.03 * wide.abs().sum() + 0.25 * wide.square().sum()
    assert value.item() == pytest.approx(exact.item(), rel=1e-6)
    assert norm.item() == pytest.approx(torch.linalg.vector_norm(gradient.double()).item(), rel=1e-6)


def test_without_a_loop_it_is_torchs() -> None:
    params = TrainParams(l1=0.03, l2=0.5)
    weights, gradient = parameters(100)
    theirs = gradient.clone()
    value, norm = penalize(weights, gradient, params)
    assert torch.equal(value, add_penalty(weights, theirs[:100], params))
    assert torch.equal(gradient, theirs) and torch.equal(norm, torch.linalg.vector_norm(theirs))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_seen(value: float, loop: PenaltyLoop) -> None:
    params = TrainParams(l1=0.03, l2=0.5)
    for of_weights in (True, False):
        weights, gradient = parameters(3 * CHUNK)
        (weights if of_weights else gradient)[CHUNK + 5] = value
        _, norm = penalize(weights, gradient, params, loop)
        assert not norm.isfinite()


def test_the_same_bits_whoever_does_the_shares(loop: PenaltyLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, gradient = parameters(9 * CHUNK + 5)
    found = []
    for num_threads, is_parallel in ((1, True), (3, True), (3, False)):
        torch.set_num_threads(num_threads)
        try:
            if not is_parallel:
                monkeypatch.setattr(loop._code, "_parallel", None)
            own = gradient.clone()
            found.append((own, *penalize(weights, own, TrainParams(l1=0.03, l2=0.5), loop)))
        finally:
            torch.set_num_threads(1)
    for some in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(some, found[0], strict=True))


def test_it_takes_terms_much_work_and_code_for_the_threads(monkeypatch: pytest.MonkeyPatch, loop: PenaltyLoop) -> None:
    terms, steps = TrainParams(l1=0.1), -(-penalty._ENOUGH // 1000)
    assert [penalty_loop(1000, number, terms, 1) is None for number in (steps - 1, steps)] == [True, False]
    assert penalty_loop(1000, steps, TrainParams(l2=0.1), 1) is loop
    assert penalty_loop(1000, steps, TrainParams(), 1) is None
    monkeypatch.setattr(loop._code, "_parallel", None)
    assert [penalty_loop(1000, steps, terms, number) is None for number in (1, 2)] == [False, True]


def test_without_llvm_a_training_goes_on_with_torch(monkeypatch, caplog: pytest.LogCaptureFixture) -> None:
    def fail(text: str) -> None:
        raise RuntimeError("no such processor")

    monkeypatch.setattr("assay.training.penalty_code.MachineCode", fail)
    penalty._make.cache_clear()
    try:
        assert penalty_loop(1000, penalty._ENOUGH, TrainParams(l1=0.1), 1) is None
        assert penalty_loop(1000, penalty._ENOUGH, TrainParams(l1=0.1), 1) is None
    finally:
        penalty._make.cache_clear()
    assert [record.message.count("no such processor") for record in caplog.records] == [1]
