import sys

import pytest
import torch
import torch.nn.functional as F

from assay.models import pooling_native
from assay.models.pooling import pool_relu
from assay.models.pooling_native import kernels_for, make_kernels

SHAPES = [(3, 8, 6, 6), (2, 5, 7, 9), (1, 1, 2, 2), (4, 32, 2, 5), (2, 48, 7, 4), (3, 16, 9, 8)]


@pytest.fixture(params=["operations", "native"], autouse=True)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which form pools: one as after much work in a process, or one as at its beginning."""
    enough = 1 << 60 if request.param == "native" else 0
    monkeypatch.setattr(pooling_native, "_pooled", pooling_native._Pooled(enough))
    return request.param


def run(function, features: torch.Tensor, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    features = features.clone().requires_grad_()
    pooled = function(features)
    pooled.backward(gradient)
    assert features.grad is not None
    return pooled.detach(), features.grad


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_equals_torch_ties_and_all(shape, dtype, memory_format) -> None:
    generator = torch.Generator().manual_seed(0)
    batch, channels, height, width = shape
    for step in (0.5, 1e-3):  # coarse values tie often
        features = (torch.randn(shape, generator=generator) / step).round().mul(step).to(dtype)
        features = features.to(memory_format=memory_format)
        gradient = torch.randn(batch, channels, height // 2, width // 2, generator=generator).to(dtype)
        ours = run(pool_relu, features, gradient)
        theirs = run(lambda x: F.relu(F.max_pool2d(x, 2)), features, gradient)
        assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_extremes_equal_torch(dtype) -> None:
    largest = torch.finfo(dtype).max
    values = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), largest, -largest, 1e-40, -1e-40, 1.0])
    features = torch.cartesian_prod(values, values, values, values).to(dtype).view(-1, 1, 2, 2).repeat(1, 16, 1, 1)
    gradient = torch.ones(len(features), 16, 1, 1).to(dtype)
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


def test_the_integer_form_is_what_training_uses(form: str) -> None:
    features = torch.randn(2, 32, 4, 4).bfloat16().requires_grad_()
    expected = "_NativePoolRelu" if form == "native" else "_PoolRelu"
    assert type(pool_relu(features).grad_fn).__name__.startswith(expected)
    expected = "_NativePoolRelu" if form == "native" else "ReluBackward"
    assert type(pool_relu(features.float()).grad_fn).__name__.startswith(expected)
    assert "ReluBackward" in type(pool_relu(features.double()).grad_fn).__name__


def test_machine_code_is_for_much_work_and_whole_lanes(form: str) -> None:
    features = torch.zeros(2, 32, 4, 4).bfloat16()
    assert (kernels_for(features) is not None) == (form == "native")
    assert kernels_for(features[:, :24]) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_each_thread_of_torch_takes_its_share(batch: int, dtype, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    features = torch.randn(batch, 16, 6, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    gradient = torch.randn(batch, 16, 3, 2, generator=torch.Generator().manual_seed(1)).to(dtype)
    alone = run(pool_relu, features, gradient)
    kernels = make_kernels()
    assert kernels is not None and (kernels._code._parallel is not None or sys.platform != "linux")
    teams, parallel = [], kernels._code._parallel
    monkeypatch.setattr(kernels._code, "_parallel", parallel and (lambda *job: teams.append(job[2]) or parallel(*job)))
    torch.set_num_threads(3)
    try:
        shared = run(pool_relu, features, gradient)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(alone[0], shared[0]) and torch.equal(alone[1], shared[1])
    assert teams == ([3, 3] if parallel and form == "native" else [])


def test_nan_in_float32_goes_on_as_in_torch() -> None:
    values = torch.tensor([float("nan"), -float("nan"), 1.0, -1.0, float("inf")])
    features = torch.cartesian_prod(values, values, values, values).view(-1, 1, 2, 2).repeat(1, 16, 1, 1)
    gradient = torch.randn(len(features), 16, 1, 1)
    ours = run(pool_relu, features, gradient)
    theirs = run(lambda x: F.relu(F.max_pool2d(x, 2)), features, gradient)
    assert torch.equal(ours[0].isnan(), theirs[0].isnan()) and torch.equal(ours[0].nan_to_num(), theirs[0].nan_to_num())
    assert torch.equal(ours[1], theirs[1])


def test_second_derivatives_are_refused(form: str) -> None:
    features = torch.randn(2, 16, 4, 4).bfloat16().requires_grad_()
    with pytest.raises(NotImplementedError, match="no second derivative"):
        torch.autograd.grad(pool_relu(features).sum(), features, create_graph=True)


def test_one_thread_does_not_stand_in_for_many(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = make_kernels()
    assert kernels is not None
    features = torch.zeros(2, 16, 4, 4).bfloat16()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    assert (kernels_for(features) is not None) == (form == "native")
    monkeypatch.setattr(kernels._code, "_parallel", None)
    assert kernels_for(features) is None
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert (kernels_for(features) is not None) == (form == "native")


def test_who_looks_on_sees_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pool(torch.nn.Module):
        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return pool_relu(features)

    batch = {0: torch.export.Dim("batch", min=1)}
    program = torch.export.export(Pool(), (torch.zeros(2, 16, 4, 4),), dynamic_shapes=(batch,))
    assert "aten.max_pool2d.default" in str(program.graph)
    assert program.module()(torch.ones(7, 16, 4, 4)).shape == (7, 16, 2, 2)
    for name in ("torch.jit.is_tracing", "torch.compiler.is_compiling"):
        with monkeypatch.context() as patched:
            patched.setattr(name, lambda: True)
            assert kernels_for(torch.zeros(2, 16, 4, 4)) is None


def test_it_begins_once_enough_was_pooled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooling_native, "_pooled", pooling_native._Pooled())
    monkeypatch.setattr(pooling_native, "_ENOUGH", 2 * 16 * 4 * 4 * 3)
    features = torch.zeros(2, 16, 4, 4).bfloat16()
    assert [kernels_for(features) is not None for _ in range(4)] == [False, False, True, True]


@pytest.mark.parametrize("error", [ImportError("no llvmlite"), AttributeError("another llvmlite")])
def test_without_llvm_it_pools_by_operations_and_says_so(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(pooling_native, "_compile", fail)
    monkeypatch.setattr(pooling_native, "_pooled", pooling_native._Pooled(1 << 60))
    make_kernels.cache_clear()
    try:
        features = torch.randn(2, 16, 4, 4).bfloat16().requires_grad_()
        for _ in range(2):
            assert type(pool_relu(features).grad_fn).__name__.startswith("_PoolRelu")
        assert [record.message for record in caplog.records if "No machine code for pooling" in record.message] != []
        assert len(caplog.records) == 1, "said once"
    finally:
        make_kernels.cache_clear()


def test_a_gradient_may_lie_in_memory_as_it_likes() -> None:
    features = torch.randn(2, 16, 6, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    everywhere = torch.ones(1, dtype=torch.bfloat16).expand(2, 16, 3, 2)  # one number, strides of 0
    assert torch.equal(run(pool_relu, features, everywhere)[1], run(pool_relu, features, everywhere.clone())[1])


def test_infinity_in_training_still_reaches_the_gradients() -> None:
    weight = torch.randn(16, 2, 3, 3).bfloat16().requires_grad_()
    images = torch.randn(1, 2, 6, 6).bfloat16()
    images[0, :, 2, 2] = float("inf")
    pool_relu(F.conv2d(images, weight, padding=1)).sum().backward()
    assert not torch.isfinite(weight.grad).all()
