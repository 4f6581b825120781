import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from assay.models import pooled_conv
from assay.models.pooled_conv import conv_pool_relu, is_worth_it
from tests.models.layers import by_torch, exact, layer, run

SHAPES = [(3, 1, 16, 6, 6), (2, 3, 32, 7, 9), (1, 2, 48, 2, 2), (5, 4, 64, 2, 5), (2, 1, 32, 28, 28)]
"""Batch, input and output channels, height and width."""


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_equals_torch_in_float32(shape, memory_format) -> None:
    features, conv, gradient = layer(shape, torch.float32)
    features, conv = features.to(memory_format=memory_format), conv.to(memory_format=memory_format)
    ours, theirs = run(conv_pool_relu, features, conv, gradient), run(by_torch, features, conv, gradient)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_in_bfloat16_only_the_results_are_rounded(shape) -> None:
    features, conv, gradient = layer(shape, torch.bfloat16)
    pooled, *gradients = run(conv_pool_relu, features, conv, gradient)
    wide = conv.float()
    torch.testing.assert_close(pooled.float(), by_torch(features.float(), wide), rtol=2**-8, atol=1e-6)
    for one, other in zip(gradients, exact(features.float(), wide, gradient.float()), strict=False):
        torch.testing.assert_close(one.double(), other, rtol=2**-8, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_is_nowhere_positive_is_zero_and_gets_no_gradient(dtype) -> None:
    features, conv, gradient = layer(SHAPES[1], dtype)
    nn.init.constant_(conv.bias, -100.0)
    assert not any(tensor.any() for tensor in run(conv_pool_relu, features, conv, gradient))


def test_among_equals_the_first_gets_it() -> None:
    features, conv, gradient = layer(SHAPES[0], torch.float32)
    features = torch.ones_like(features)
    nn.init.zeros_(conv.weight)
    nn.init.ones_(conv.bias)
    ours, theirs = run(conv_pool_relu, features, conv, gradient), run(by_torch, features, conv, gradient)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("processor", [{"float_lanes": 8}, {"float_lanes": 16}, {"may_choose_lanes": False}])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_bits_whatever_the_processor_has(shape, dtype, processor: dict[str, int], monkeypatch) -> None:
    features, conv, gradient = layer(shape, dtype)
    usual = run(conv_pool_relu, features, conv, gradient)
    for name, value in processor.items():
        monkeypatch.setattr(f"assay.models.image_conv_loops.{name}", lambda value=value: value)
    pooled_conv._image_loops.cache_clear()
    try:
        others = run(conv_pool_relu, features, conv, gradient)
    finally:
        pooled_conv._image_loops.cache_clear()
    assert all(torch.equal(one, other) for one, other in zip(usual, others, strict=True))


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_the_same_bits_whoever_does_the_shares(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    features, conv, gradient = layer((batch, 3, 32, 6, 4), torch.bfloat16)
    loops = pooled_conv._image_loops(6, 4, 3, 32, torch.bfloat16)
    assert loops is not None
    assert loops._code.is_parallel or sys.platform != "linux"
    torch.set_num_threads(3)
    try:
        together = [run(conv_pool_relu, features, conv, gradient) for _ in range(3)]
        monkeypatch.setattr(loops._code, "_parallel", None)
        alone = run(conv_pool_relu, features, conv, gradient)
    finally:
        torch.set_num_threads(1)
    for some in together:
        assert all(torch.equal(one, other) for one, other in zip(some, alone, strict=True))


def test_autocast_gives_its_type_and_gradients_of_the_parameters_own() -> None:
    features, conv, gradient = layer(SHAPES[1], torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = conv_pool_relu(features, conv)
    result.backward(gradient.bfloat16())
    lowered = layer(SHAPES[1], torch.float32)[1].bfloat16()
    assert result.dtype == torch.bfloat16 and torch.equal(result, conv_pool_relu(features.bfloat16(), lowered))
    assert conv.weight.grad is not None and conv.weight.grad.dtype == torch.float32


def test_images_whose_gradient_is_wanted_go_through_torch() -> None:
    features, conv, gradient = layer(SHAPES[1], torch.float32)
    features.requires_grad_()
    ours, theirs = run(conv_pool_relu, features, conv, gradient), run(by_torch, features, conv, gradient)
    assert len(ours) == 4 and all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_nan_and_infinity_reach_result_and_gradients(dtype, value: float) -> None:
    features, conv, gradient = layer(SHAPES[0], dtype)
    nn.init.ones_(conv.weight)
    features[0, 0, 2, 3] = value
    pooled, of_weight, _ = run(conv_pool_relu, features, conv, gradient)
    assert torch.equal(pooled.isfinite(), by_torch(features.float(), conv.float()).isfinite())
    assert not torch.isfinite(of_weight).all()


def test_second_derivatives_are_refused() -> None:
    features, conv, _ = layer(SHAPES[0], torch.float32)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        torch.autograd.grad(conv_pool_relu(features, conv).sum(), conv.weight, create_graph=True)


def test_it_takes_much_work_and_code_for_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    conv = nn.Conv2d(1, 32, 3, padding=1)
    enough = -(-pooled_conv._ENOUGH_OF_IMAGES // (28 * 28 * 32 * 9))
    assert [is_worth_it(conv, 28, 28, number, 1) for number in (enough - 1, enough)] == [False, True]
    monkeypatch.setattr(pooled_conv._image_loops(28, 28, 1, 32, torch.float32)._code, "_parallel", None)
    assert [is_worth_it(conv, 28, 28, enough, number) for number in (1, 2)] == [True, False]


def test_without_fused_multiply_add_it_is_torchs(monkeypatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("assay.models.image_conv_loops.is_fused", lambda: False)
    pooled_conv._image_loops.cache_clear()
    try:
        assert not is_worth_it(nn.Conv2d(3, 16, 3, padding=1), 8, 8, 1 << 60, num_threads=1)
        assert not is_worth_it(nn.Conv2d(3, 16, 3, padding=1), 8, 8, 1 << 60, num_threads=1)
    finally:
        pooled_conv._image_loops.cache_clear()
    assert [record.message.count("no fused multiply-add") for record in caplog.records] == [1]


def test_what_is_learned_is_what_torch_would_learn() -> None:
    features, _, _ = layer((8, 1, 16, 12, 12), torch.float32)
    labels = torch.arange(8) % 4
    losses = []
    for function in (conv_pool_relu, by_torch):
        torch.manual_seed(0)
        own, head = nn.Conv2d(1, 16, 3, padding=1), nn.Linear(16 * 36, 4)
        optimizer = torch.optim.SGD([*own.parameters(), *head.parameters()], lr=0.1)
        for _ in range(10):
            optimizer.zero_grad()
            loss = F.cross_entropy(head(function(features, own).flatten(1)), labels)
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
