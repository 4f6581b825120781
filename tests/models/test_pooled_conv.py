import sys

import pytest
import torch
from torch import nn

from assay.models import pooled_conv
from assay.models.native import float_lanes, has_brain_float_products
from assay.models.pooled_conv import conv_pool_relu, is_worth_it
from assay.models.pooled_conv_loops import GradientLoops
from assay.models.pooling_native import NOBODY
from tests.models.layers import by_torch, exact, layer, run

SHAPES = [(3, 16, 16, 6, 6), (2, 32, 64, 7, 9), (1, 16, 48, 2, 2), (5, 48, 128, 2, 5), (2, 16, 32, 14, 3)]
"""Batch, input and output channels, height and width."""


@pytest.fixture(autouse=True)
def _torchs_forward(without_tiles: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward by torch, also where the processor has the arithmetic for `assay.models.winograd_loops`."""
    monkeypatch.setattr(pooled_conv, "_forward_loops", lambda *shape: None)


def wanting(features: torch.Tensor, conv: nn.Conv2d, gradient: torch.Tensor):
    """The same, with the input's gradient wanted."""
    return features.requires_grad_(), conv, gradient


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_equals_torch_in_float32(shape, memory_format) -> None:
    features, conv, gradient = wanting(*layer(shape, torch.float32))
    features, conv = features.to(memory_format=memory_format), conv.to(memory_format=memory_format)
    ours, theirs = run(conv_pool_relu, features, conv, gradient), run(by_torch, features, conv, gradient)
    assert torch.equal(ours[0], theirs[0])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_in_bfloat16_only_the_result_is_rounded(shape) -> None:
    features, conv, gradient = wanting(*layer(shape, torch.bfloat16))
    ours = run(conv_pool_relu, features, conv, gradient)
    assert torch.equal(ours[0], run(by_torch, features, conv, gradient)[0])
    for one, other in zip(ours[1:], exact(features, conv, gradient), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_is_nowhere_positive_gets_no_gradient(dtype) -> None:
    features, conv, gradient = wanting(*layer(SHAPES[1], dtype))
    nn.init.constant_(conv.bias, -100.0)
    assert not any(tensor.any() for tensor in run(conv_pool_relu, features, conv, gradient))


def test_among_equals_the_first_gets_it() -> None:
    features, conv, gradient = wanting(*layer(SHAPES[0], torch.float32))
    features = torch.ones_like(features, requires_grad=True)
    nn.init.zeros_(conv.weight)
    nn.init.ones_(conv.bias)
    ours, theirs = run(conv_pool_relu, features, conv, gradient), run(by_torch, features, conv, gradient)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("lanes", [8, 16])
def test_the_same_bits_however_many_lanes_the_processor_has(dtype, lanes: int, monkeypatch) -> None:
    features, conv, gradient = wanting(*layer(SHAPES[3], dtype))
    monkeypatch.setattr("assay.models.pooled_conv_loops.has_brain_float_products", lambda: False)
    found = []
    for number in (float_lanes(), lanes):
        monkeypatch.setattr("assay.models.pooled_conv_loops.float_lanes", lambda number=number: number)
        pooled_conv._loops.cache_clear()
        try:
            found.append(run(conv_pool_relu, features, conv, gradient))
        finally:
            pooled_conv._loops.cache_clear()
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("shape", [*SHAPES, (4, 64, 32, 8, 8), (1, 96, 16, 4, 4)])
def test_pairs_of_bfloat16_add_up_to_what_single_ones_do(shape, monkeypatch: pytest.MonkeyPatch) -> None:
    features, conv, gradient = layer(shape, torch.bfloat16)
    batch, channels, out_channels, height, width = shape
    places = torch.randint(0, NOBODY + 1, (batch, height // 2, width // 2, out_channels)).to(torch.int8)
    arrays = [tensor.permute(0, 2, 3, 1).contiguous() for tensor in (gradient, features)]
    found = []
    for has_products in (has_brain_float_products(), False):
        monkeypatch.setattr("assay.models.pooled_conv_loops.has_brain_float_products", lambda has=has_products: has)
        loops = GradientLoops(height, width, channels, out_channels, torch.bfloat16)
        assert loops._layer.in_pairs == (has_products and float_lanes() == 16)
        found.append(loops.run(arrays[0], places, arrays[1], conv.weight.detach()))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(
            one.float(), other.float(), rtol=2**-7 if one.dtype == torch.bfloat16 else 1e-5, atol=1e-5
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_the_same_bits_whoever_does_the_shares(batch: int, dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    features, conv, gradient = wanting(*layer((batch, 16, 32, 6, 4), dtype))
    loops = pooled_conv._loops(6, 4, 16, 32, dtype)
    assert loops is not None
    code, pooling = loops._code, pooled_conv.make_kernels()._code
    assert code.is_parallel or sys.platform != "linux"
    torch.set_num_threads(3)
    try:
        together = [run(conv_pool_relu, features, conv, gradient) for _ in range(3)]
        monkeypatch.setattr(code, "_parallel", None)
        monkeypatch.setattr(pooling, "_parallel", None)
        alone = run(conv_pool_relu, features, conv, gradient)
    finally:
        torch.set_num_threads(1)
    for some in together:
        assert all(torch.equal(one, other) for one, other in zip(some, alone, strict=True))


def test_autocast_gives_its_type_and_gradients_of_the_parameters_own() -> None:
    features, conv, gradient = wanting(*layer(SHAPES[1], torch.float32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = conv_pool_relu(features, conv)
    assert result.dtype == torch.bfloat16 and torch.equal(result, by_torch(features.bfloat16(), conv.bfloat16()))
    features, conv, gradient = wanting(*layer(SHAPES[1], torch.float32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        conv_pool_relu(features, conv).backward(gradient.bfloat16())
    assert conv.weight.grad is not None and conv.weight.grad.dtype == torch.float32


def test_an_input_without_gradient_changes_no_other() -> None:
    features, conv, gradient = layer(SHAPES[0], torch.float32)
    alone = run(conv_pool_relu, features, conv, gradient)
    assert len(alone) == 3
    together = run(conv_pool_relu, *wanting(features, conv, gradient))
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=False))


def test_nan_and_infinity_reach_the_gradients() -> None:
    for value in (float("nan"), float("inf")):
        features, conv, gradient = wanting(*layer(SHAPES[0], torch.bfloat16))
        nn.init.ones_(conv.bias)
        gradient[0, 3, 1, 1] = value
        ours = run(conv_pool_relu, features, conv, gradient)
        assert not any(torch.isfinite(tensor).all() for tensor in ours[1:])


def test_second_derivatives_are_refused() -> None:
    features, conv, _ = wanting(*layer(SHAPES[0], torch.float32))
    features.requires_grad_()
    with pytest.raises(NotImplementedError, match="no second derivative"):
        torch.autograd.grad(conv_pool_relu(features, conv).sum(), features, create_graph=True)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(5, 32, 3, padding=1),
        nn.Conv2d(1, 24, 3, padding=1),
        nn.Conv2d(16, 24, 3, padding=1),
        nn.Conv2d(16, 16, 5, padding=2),
        nn.Conv2d(16, 16, 3),
        nn.Conv2d(16, 16, 3, padding=1, stride=2),
        nn.Conv2d(32, 32, 3, padding=1, groups=2),
        nn.Conv2d(16, 16, 3, padding=1, bias=False),
    ],
    ids=str,
)
def test_other_layers_are_torchs(conv: nn.Conv2d) -> None:
    assert not is_worth_it(conv, 8, 8, 1 << 60, num_threads=1)


def test_it_takes_much_work_and_a_code_for_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    conv = nn.Conv2d(32, 64, 3, padding=1)
    enough = -(-pooled_conv._ENOUGH // (14 * 14 * 32 * 64 * 9))
    assert [is_worth_it(conv, 14, 14, number, 1) for number in (enough - 1, enough)] == [False, True]
    monkeypatch.setattr(pooled_conv._loops(14, 14, 32, 64, torch.float32)._code, "_parallel", None)
    assert [is_worth_it(conv, 14, 14, enough, number) for number in (1, 2)] == [True, False]


def test_without_llvm_a_training_goes_on_with_torch(monkeypatch, caplog: pytest.LogCaptureFixture) -> None:
    def fail(text: str) -> None:
        raise RuntimeError("no such processor")

    monkeypatch.setattr("assay.models.pooled_conv_loops.MachineCode", fail)
    pooled_conv._loops.cache_clear()
    try:
        assert not is_worth_it(nn.Conv2d(16, 16, 3, padding=1), 8, 8, 1 << 60, num_threads=1)
        assert not is_worth_it(nn.Conv2d(16, 16, 3, padding=1), 8, 8, 1 << 60, num_threads=1)
    finally:
        pooled_conv._loops.cache_clear()
    assert [record.message.count("no such processor") for record in caplog.records] == [1]


def test_without_fused_multiply_add_it_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("assay.models.pooled_conv_loops.is_fused", lambda: False)
    pooled_conv._loops.cache_clear()
    try:
        assert not is_worth_it(nn.Conv2d(16, 16, 3, padding=1), 8, 8, 1 << 60, num_threads=1)
    finally:
        pooled_conv._loops.cache_clear()
