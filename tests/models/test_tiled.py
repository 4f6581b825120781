import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from assay.models import native, pooled_conv
from assay.models.pooled_conv import conv_pool_relu, is_worth_it
from assay.models.pooling_native import NOBODY
from tests.models.layers import by_torch, close_up, layer, of_spread, run, spread_of

SHAPES = [
    (3, 32, 32, 6, 6),
    (2, 32, 64, 7, 9),
    (1, 32, 96, 2, 2),
    (5, 96, 128, 2, 5),
    (2, 64, 32, 14, 40),
    (2, 32, 64, 14, 14),
]
"""Batch, input and output channels, height and width."""

needs_tiles = pytest.mark.skipif(
    not native.may_multiply_tiles(), reason="this CPU does not multiply tiles of bfloat16 (AMX)"
)


def forward(features: torch.Tensor, conv: nn.Conv2d) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pooled activations and places, ``[batch, row, column, channel]``."""
    from assay.models.tiled_loops import TiledForward

    loops = TiledForward(*features.shape[2:], conv.in_channels, conv.out_channels)
    assert conv.bias is not None
    return loops.run(features.permute(0, 2, 3, 1).contiguous(), conv.weight, conv.bias)


@needs_tiles
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_only_the_result_is_rounded(shape) -> None:
    features, conv, _ = layer(shape, torch.bfloat16)
    pooled, places = forward(features, conv)
    numbers = close_up(features, conv)
    largest = numbers.amax(dim=4)
    torch.testing.assert_close(pooled.double(), largest.relu(), rtol=2**-8, atol=1e-5)
    assert torch.equal(places == NOBODY, pooled == 0)
    chosen = numbers.gather(4, places.clamp_max(3).long().unsqueeze(4)).squeeze(4)
    torch.testing.assert_close(chosen[places != NOBODY], largest[places != NOBODY], rtol=1e-5, atol=1e-5)


@needs_tiles
@pytest.mark.parametrize("shape", SHAPES)
def test_backward_only_the_result_is_rounded(shape) -> None:
    features, conv, gradient = layer(shape, torch.bfloat16)
    features.requires_grad_()
    ours, (pooled, places) = run(conv_pool_relu, features, conv, gradient), forward(features.detach(), conv)
    assert torch.equal(ours[0].permute(0, 2, 3, 1), pooled)
    spread = spread_of(gradient, places, features)
    for one, other in zip(ours[1:], of_spread(features, conv, spread), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=2**-8, atol=1e-5)


@needs_tiles
def test_among_equals_the_first_wins_and_what_is_nowhere_positive_has_none() -> None:
    features, conv, gradient = layer(SHAPES[1], torch.bfloat16)
    nn.init.zeros_(conv.weight)
    nn.init.ones_(conv.bias)
    assert not forward(features, conv)[1].any()
    nn.init.constant_(conv.bias, -1.0)
    assert (forward(features, conv)[1] == NOBODY).all()
    assert not any(tensor.any() for tensor in run(conv_pool_relu, features.requires_grad_(), conv, gradient))


@needs_tiles
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_the_same_bits_whoever_does_the_shares(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    features, conv, gradient = layer((batch, 32, 64, 6, 4), torch.bfloat16)
    features.requires_grad_()
    shape = 6, 4, 32, 64, torch.bfloat16
    codes = [loops._code for loops in (pooled_conv._forward_loops(*shape), pooled_conv._loops(*shape))]
    assert all(code.is_parallel for code in codes)
    torch.set_num_threads(3)
    try:
        together = [run(conv_pool_relu, features, conv, gradient) for _ in range(3)]
        for code in codes:
            monkeypatch.setattr(code, "_parallel", None)
        alone = run(conv_pool_relu, features, conv, gradient)
    finally:
        torch.set_num_threads(1)
    for some in together:
        assert all(torch.equal(one, other) for one, other in zip(some, alone, strict=True))


@needs_tiles
@pytest.mark.parametrize("num_threads", [1, 2])
def test_torchs_own_tiles_are_left_alone(num_threads: int) -> None:
    features, conv, gradient = layer(SHAPES[5], torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    many, few = (torch.randn(shape, generator=generator).bfloat16() for shape in ((96, 200), (7, 33)))
    torch.set_num_threads(num_threads)
    try:
        expected = [many @ many.T, few @ few.T, conv(features)]
        ours = run(conv_pool_relu, features.requires_grad_(), conv, gradient)
        for _ in range(3):
            assert torch.equal(many @ many.T, expected[0])
            again = run(conv_pool_relu, features, conv, gradient)
            assert torch.equal(few @ few.T, expected[1])
            assert torch.equal(conv(features), expected[2])
            assert all(torch.equal(one, other) for one, other in zip(again, ours, strict=True))
    finally:
        torch.set_num_threads(1)


@needs_tiles
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_reach_the_result_and_the_gradients(value: float) -> None:
    features, conv, gradient = layer(SHAPES[0], torch.bfloat16)
    nn.init.constant_(conv.bias, 100.0)
    spoilt = features.clone()
    spoilt[0, 3, 2, 3] = value
    pooled, _ = forward(spoilt, conv)
    assert not pooled[0].isfinite().all() and pooled[1:].isfinite().all()
    gradient[0, 3, 1, 1] = value
    ours = run(conv_pool_relu, features.requires_grad_(), conv, gradient)
    assert not any(torch.isfinite(tensor).all() for tensor in ours[1:])


@pytest.mark.parametrize("has_tiles", [False, True])
def test_channels_that_fill_no_tile_are_torchs_where_there_are_tiles(
    has_tiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pooled_conv, "_multiplies_tiles", lambda: has_tiles)
    for channels in ((16, 32), (32, 48)):
        inner = nn.Conv2d(*channels, 3, padding=1)
        assert is_worth_it(inner.bfloat16(), 6, 10, 1 << 60, num_threads=1) != has_tiles
        assert is_worth_it(inner.float(), 6, 10, 1 << 60, num_threads=1)
    assert is_worth_it(nn.Conv2d(3, 16, 3, padding=1).bfloat16(), 6, 10, 1 << 60, num_threads=1)


@needs_tiles
def test_float32_and_other_channels_have_other_loops(caplog: pytest.LogCaptureFixture) -> None:
    from assay.models.pooled_conv_loops import GradientLoops
    from assay.models.tiled_loops import TiledGradients

    assert isinstance(pooled_conv._loops(6, 8, 32, 64, torch.bfloat16), TiledGradients)
    assert isinstance(pooled_conv._loops(6, 8, 32, 64, torch.float32), GradientLoops)
    with pytest.raises(RuntimeError, match="16 and 64 channels do not fill tiles"):
        TiledGradients(6, 8, 16, 64)
    features, conv, gradient = layer(SHAPES[1], torch.float32)
    assert torch.equal(run(conv_pool_relu, features, conv, gradient)[0], by_torch(features, conv))


@pytest.mark.parametrize(
    ("features", "system", "refused", "expected"),
    [
        ({"amx-bf16": True}, "linux", 0, True),
        ({"amx-bf16": True}, "linux", -1, False),
        ({"amx-bf16": True}, "darwin", 0, False),
        ({"avx512bf16": True}, "linux", 0, False),
    ],
)
def test_the_system_is_asked_for_tiles(
    features: dict[str, bool], system: str, refused: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, ...]] = []
    library = SimpleNamespace(syscall=lambda *values: asked.append(values) or refused)
    monkeypatch.setattr(native.binding, "get_host_cpu_features", lambda: features)
    monkeypatch.setattr(native.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(native.ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(sys, "platform", system)
    assert native.may_multiply_tiles.__wrapped__() is expected
    assert asked == ([(158, 0x1023, 18)] if system == "linux" and "amx-bf16" in features else [])
