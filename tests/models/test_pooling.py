import pytest
import torch
import torch.nn.functional as F

from assay.models.pooling import pool_relu

SHAPES = [(3, 8, 6, 6), (2, 5, 7, 9), (1, 1, 2, 2), (4, 32, 2, 5)]


def run(function, features: torch.Tensor, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    features = features.clone().requires_grad_()
    pooled = function(features)
    pooled.backward(gradient)
    assert features.grad is not None
    return pooled.detach(), features.grad


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_equals_torch_bit_for_bit_ties_and_all(shape, dtype, memory_format) -> None:
    generator = torch.Generator().manual_seed(0)
    batch, channels, height, width = shape
    for step in (0.5, 1e-3):  # coarse values tie often
        features = (torch.randn(shape, generator=generator) / step).round().mul(step).to(dtype)
        features = features.to(memory_format=memory_format)
        gradient = torch.randn(batch, channels, height // 2, width // 2, generator=generator).to(dtype)
        ours = run(pool_relu, features, gradient)
        theirs = run(lambda x: F.relu(F.max_pool2d(x, 2)), features, gradient)
        assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])


def test_extremes_equal_torch() -> None:
    largest = torch.finfo(torch.bfloat16).max
    values = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), largest, -largest, 1e-40, -1e-40, 1.0])
    features = torch.cartesian_prod(values, values, values, values).bfloat16().view(-1, 1, 2, 2)
    gradient = torch.ones(len(features), 1, 1, 1).bfloat16()
    ours = run(pool_relu, features, gradient)
    theirs = run(lambda x: F.relu(F.max_pool2d(x, 2)), features, gradient)
    assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize("shape", SHAPES)
def test_without_gradients_the_numbers_are_the_same(shape) -> None:
    features = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = F.relu(F.max_pool2d(features, 2))
    assert torch.equal(pool_relu(features), expected)
    with torch.no_grad():
        assert torch.equal(pool_relu(features.requires_grad_()), expected)


def test_the_integer_form_is_what_training_uses() -> None:
    features = torch.randn(2, 3, 4, 4).bfloat16().requires_grad_()
    assert "_PoolRelu" in type(pool_relu(features).grad_fn).__name__
    assert "ReluBackward" in type(pool_relu(features.float()).grad_fn).__name__


def test_infinity_in_training_still_reaches_the_gradients() -> None:
    weight = torch.randn(4, 2, 3, 3).bfloat16().requires_grad_()
    images = torch.randn(1, 2, 6, 6).bfloat16()
    images[0, :, 2, 2] = float("inf")
    pool_relu(F.conv2d(images, weight, padding=1)).sum().backward()
    assert not torch.isfinite(weight.grad).all()
