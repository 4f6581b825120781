"""What holds for every family on every kind of data that it takes."""

import dataclasses
import warnings

import pytest
import torch
import torch.nn.functional as F

from assay.models.build import build_model
from assay.models.spec import DropoutProbs
from assay.records import SERIES, TEXT
from assay.training.master import MasterWeights
from tests.bf16 import need_bf16
from tests.models.tiny import CASES, LABELS, inputs_of, spec_of

ALL_DROPOUT = DropoutProbs(hidden=0.3, input=0.2, recurrent=0.2, attention=0.2)
GOLDEN = {
    "lstm-text": 1.06159163,
    "lstm-series-attention": 1.04880428,
    "lstm-series-mean": 1.13108933,
    "transformer-text": 0.39733720,
    "transformer-text-bert": 0.91969037,
    "transformer-series": 0.94136977,
    "transformer-image": 0.97645080,
    "mlp-table": 0.76508379,
    "mlp-series": 0.58961332,
    "mlp-series-statistics": 0.70362973,
    "mlp-image": 0.54207242,
    "cnn-plain": 1.05419815,
    "cnn-residual": 0.76433980,
}

every_case = pytest.mark.parametrize("case", CASES)


def built(case: str, seed: int = 0, dropout: DropoutProbs | None = None) -> tuple[torch.nn.Module, torch.Tensor]:
    params, kind = CASES[case]
    return build_model(spec_of(params, kind, dropout), seed), inputs_of(kind)


def trained(module: torch.nn.Module, inputs: torch.Tensor, num_steps: int, rate: float = 0.1) -> float:
    """Return the loss after SGD steps on one batch."""
    optimizer = torch.optim.SGD(module.parameters(), lr=rate)
    for _ in range(num_steps):
        optimizer.zero_grad()
        F.cross_entropy(module(inputs), LABELS).backward()
        optimizer.step()
    return F.cross_entropy(module(inputs), LABELS).item()


@every_case
def test_golden_loss_after_three_steps(case: str) -> None:
    assert trained(*built(case), 3) == pytest.approx(GOLDEN[case], rel=1e-4)


@every_case
def test_the_same_seeds_give_the_same_bits(case: str) -> None:
    states = []
    for seed in (0, 0, 1):
        module, inputs = built(case, seed, ALL_DROPOUT)
        torch.manual_seed(7)
        trained(module, inputs, 2)
        states.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


@every_case
def test_one_batch_overfits(case: str) -> None:
    module, inputs = built(case)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.03)
    for _ in range(80):
        optimizer.zero_grad()
        loss = F.cross_entropy(module(inputs), LABELS)
        loss.backward()
        optimizer.step()
    assert loss < 0.05


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_master_weights_train_every_parameter_deterministically(case: str, dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16 and "lstm" in case:
        need_bf16()
    module, inputs = built(case, dropout=dataclasses.replace(ALL_DROPOUT, hidden=0.1))
    if case == "cnn-residual":  # a gain of 0 passes nothing to the convolutions before it
        torch.nn.init.ones_(module.blocks[0][0].norm2.weight)
        torch.nn.init.ones_(module.blocks[1][0].norm2.weight)
    master = MasterWeights(module, dtype)
    torch.set_deterministic_debug_mode("error")
    try:
        for _ in range(4):
            master.refresh()
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                logits = master.module(inputs)
            F.cross_entropy(logits.float(), LABELS).backward()
            assert master.collect().isfinite().all()
    finally:
        torch.set_deterministic_debug_mode("default")
    assert all(p.grad is not None for p in master.module.parameters())
    assert (torch.cat([master.weights.grad, master.rest.grad]) != 0).any()


@every_case
def test_bf16_gradients_point_where_fp32_ones_do(case: str) -> None:
    if "lstm" in case:
        need_bf16()
    gradients = []
    for enabled in (True, False):
        module, inputs = built(case)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits = module(inputs)
        F.cross_entropy(logits.float(), LABELS).backward()
        gradients.append(torch.cat([p.grad.reshape(-1) for p in module.parameters()]))
    assert F.cosine_similarity(gradients[0], gradients[1], dim=0) > 0.99


@every_case
def test_missing_values_and_padding_get_no_gradient_and_spoil_none(case: str) -> None:
    module, inputs = built(case)
    if CASES[case][1] == TEXT:
        F.cross_entropy(module(inputs), LABELS).backward()
        assert not module.tokens.weight.grad[0].any() and module.tokens.weight.grad[1:].any()
    else:
        missing = inputs.isnan()
        inputs.requires_grad_()
        F.cross_entropy(module(inputs), LABELS).backward()
        assert not inputs.grad[missing].any() and inputs.grad[~missing].any()
        assert inputs.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("case", [case for case, (_, kind) in CASES.items() if kind in (TEXT, SERIES)])
def test_an_input_without_any_step_is_answered(case: str) -> None:
    module, inputs = built(case)
    inputs[1] = float("nan") if inputs.is_floating_point() else 0
    logits = module(inputs)
    logits.sum().backward()
    assert logits.isfinite().all() and all(p.grad.isfinite().all() for p in module.parameters())


@every_case
def test_each_dropout_acts_while_training_alone(case: str) -> None:
    params, _ = CASES[case]
    names = ["hidden", "input"]
    names += ["recurrent"] * (params.kind == "lstm") + ["attention"] * (params.kind == "transformer")
    if case == "mlp-image":
        names = ["input"]  # there is no hidden layer
    plain, inputs = built(case)
    expected = plain(inputs)
    for name in names:
        module, _ = built(case, dropout=DropoutProbs(**{name: 0.5}))
        assert not torch.allclose(module(inputs), expected), name
        again, _ = built(case, dropout=DropoutProbs(**{name: 0.5}))
        torch.testing.assert_close(again.eval()(inputs), built(case)[0].eval()(inputs), msg=name)


@every_case
@pytest.mark.slow
def test_the_model_exports_with_a_batch_of_any_size(case: str) -> None:
    module, inputs = built(case)
    module.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, (inputs,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    for some in (inputs, inputs[:3], inputs[3:]):
        torch.testing.assert_close(program.module()(some), module(some))
