import sys

import pytest
import torch
from torch import nn

from assay.models import native, pooled_conv
from assay.models.pooled_conv import conv_pool_relu
from assay.models.pooling_native import NOBODY
from tests.models.layers import by_torch, close_up, layer, of_spread, run, spread_of

SHAPES = [(3, 16, 16, 6, 6), (2, 32, 64, 7, 9), (1, 16, 48, 2, 2), (5, 48, 128, 2, 5), (2, 16, 32, 14, 40)]
"""Batch, input and output channels, height and width."""

pytestmark = [
    pytest.mark.usefixtures("without_tiles"),
    pytest.mark.skipif(
        not native.has_brain_float_products(), reason="this CPU does not multiply bfloat16 (AVX512-BF16)"
    ),
]


def forward(features: torch.Tensor, conv: nn.Conv2d) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pooled activations and places, ``[batch, row, column, channel]``."""
    loops = pooled_conv._forward_loops(*features.shape[2:], conv.in_channels, conv.out_channels, features.dtype)
    assert loops is not None
    assert conv.bias is not None
    return loops.run(features.permute(0, 2, 3, 1).contiguous(), conv.weight, conv.bias)


@pytest.mark.parametrize("shape", SHAPES)
def test_is_off_by_twice_what_rounding_the_result_is(shape) -> None:
    features, conv, _ = layer(shape, torch.bfloat16)
    pooled, _ = forward(features, conv)
    numbers = close_up(features, conv).amax(dim=4).relu()
    ours = (pooled.double() - numbers).square().mean().sqrt()
    theirs = (by_torch(features, conv).permute(0, 2, 3, 1).double() - numbers).square().mean().sqrt()
    assert ours < 4 * theirs
    assert ours < 0.01 * numbers.std()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_place_is_that_of_the_largest_number(shape) -> None:
    features, conv, _ = layer(shape, torch.bfloat16)
    pooled, places = forward(features, conv)
    numbers = close_up(features, conv)
    tolerance = 0.03 * numbers.std()
    assert torch.equal(places == NOBODY, pooled == 0)
    chosen = numbers.gather(4, places.clamp_max(3).long().unsqueeze(4)).squeeze(4)
    is_somebody = places != NOBODY
    assert (chosen >= numbers.amax(dim=4) - tolerance)[is_somebody].all()
    assert (numbers.amax(dim=4) < tolerance)[~is_somebody].all()
    assert ((pooled - chosen).abs() < tolerance)[is_somebody].all()


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (2, 3, 0, 1)])
def test_weights_may_lie_anywhere_and_in_any_order(order) -> None:
    features, conv, _ = layer(SHAPES[1], torch.bfloat16)
    expected = forward(features, conv)
    moved = conv.weight.detach().permute(order)
    room = torch.cat((torch.zeros(1, dtype=torch.bfloat16), moved.flatten()))  # an odd number of them before the first
    back = [order.index(axis) for axis in range(4)]
    conv.weight = nn.Parameter(room[1:].view(moved.shape).permute(back))
    for one, other in zip(forward(features, conv), expected, strict=True):
        assert torch.equal(one, other)


def test_it_is_what_pooled_convolutions_do_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    features, conv, gradient = layer(SHAPES[1], torch.bfloat16)
    features.requires_grad_()
    ours, (pooled, places) = run(conv_pool_relu, features, conv, gradient), forward(features, conv)
    assert torch.equal(ours[0].permute(0, 2, 3, 1), pooled)
    spread = spread_of(gradient, places, features)
    for one, other in zip(ours[1:], of_spread(features, conv, spread), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=2**-8, atol=1e-5)
    monkeypatch.setattr(pooled_conv, "_forward_loops", lambda *shape: None)
    assert not torch.equal(ours[0], run(conv_pool_relu, features, conv, gradient)[0])


def test_float32_is_left_to_torch() -> None:
    features, conv, gradient = layer(SHAPES[1], torch.float32)
    assert torch.equal(run(conv_pool_relu, features, conv, gradient)[0], by_torch(features, conv))


def test_small_whole_numbers_are_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(16, 32, 3, padding=1).bfloat16()
    with torch.no_grad():
        conv.weight.copy_(torch.randint(-2, 3, conv.weight.shape, generator=generator) * 4)
        conv.bias.copy_(torch.randint(-3, 4, conv.bias.shape, generator=generator))
    features = torch.randint(-3, 4, (2, 16, 7, 10), generator=generator).bfloat16()
    pooled, places = forward(features, conv)
    numbers = close_up(features, conv)
    assert torch.equal(pooled, numbers.amax(dim=4).relu().bfloat16())
    expected = torch.where(numbers.amax(dim=4) > 0, numbers.argmax(dim=4), NOBODY)
    is_alone = (numbers == numbers.amax(dim=4, keepdim=True)).sum(4) == 1
    assert torch.equal(places[is_alone], expected[is_alone].to(torch.int8))


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_the_same_bits_whoever_does_the_shares(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    features, conv, _ = layer((batch, 16, 32, 6, 4), torch.bfloat16)
    loops = pooled_conv._forward_loops(6, 4, 16, 32, torch.bfloat16)
    assert loops is not None
    alone_with_one = forward(features, conv)
    torch.set_num_threads(3)
    try:
        together = [forward(features, conv) for _ in range(3)]
        monkeypatch.setattr(loops._code, "_parallel", None)
        alone = forward(features, conv)
    finally:
        torch.set_num_threads(1)
    for some in (*together, alone):
        assert all(torch.equal(one, other) for one, other in zip(some, alone_with_one, strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_reach_the_result(value: float) -> None:
    features, conv, _ = layer(SHAPES[0], torch.bfloat16)
    features[0, 3, 2, 3] = value
    pooled, _ = forward(features, conv)
    assert not pooled[0].isfinite().all() and pooled[1:].isfinite().all()


def test_without_its_arithmetic_it_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    features, conv, gradient = layer(SHAPES[1], torch.bfloat16)
    monkeypatch.setattr("assay.models.winograd_loops.has_brain_float_products", lambda: False)
    pooled_conv._forward_loops.cache_clear()
    try:
        assert torch.equal(run(conv_pool_relu, features, conv, gradient)[0], by_torch(features, conv))
    finally:
        pooled_conv._forward_loops.cache_clear()


def test_threads_are_those_of_torch() -> None:
    loops = pooled_conv._forward_loops(6, 4, 16, 32, torch.bfloat16)
    assert loops is not None
    assert loops._code.is_parallel or sys.platform != "linux"
