import pytest
import torch
import torch.nn.functional as F
from torch import nn

from assay.models.build import build_model
from assay.params import TrainParams
from assay.training.losses import add_penalty
from assay.training.master import MasterWeights
from tests.models.test_cnn import IMAGES, SPEC

LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def loss_of(module: nn.Module, enabled: bool) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        logits = module(IMAGES)
    return F.cross_entropy(logits.float(), LABELS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_those_of_the_module_by_itself(dtype: torch.dtype) -> None:
    alone, module = build_model(SPEC, 0).eval(), build_model(SPEC, 0).eval()
    loss_of(alone, dtype == torch.bfloat16).backward()
    master = MasterWeights(module, dtype)
    for _ in range(2):  # nothing of the first step is left in the second
        master.refresh()
        loss_of(master.module, dtype == torch.bfloat16).backward()
        gradients = master.collect()
    expected = {name: parameter.grad for name, parameter in alone.named_parameters()}
    module.load_state_dict(expected, strict=False)  # lays them out as the parameters are
    assert torch.equal(gradients, torch.cat([master.weights, master.rest]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_update_reaches_the_module_and_the_one_that_computes(dtype: torch.dtype) -> None:
    module = build_model(SPEC, 0).eval()
    start = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    master = MasterWeights(module, dtype)
    assert all(torch.equal(parameter, start[name]) for name, parameter in module.named_parameters())
    with torch.no_grad():
        master.weights.mul_(0.5)
    master.refresh()
    for (name, ours), working in zip(module.named_parameters(), master.module.parameters(), strict=True):
        assert torch.equal(ours, start[name] * (0.5 if ours.ndim > 1 else 1.0))
        assert ours.stride() == start[name].stride()
        assert torch.equal(working, ours.to(dtype))


def test_terms_on_the_weights_are_added_in_float32() -> None:
    module = build_model(SPEC, 0)
    master = MasterWeights(module, torch.bfloat16)
    master.refresh()
    gradients = master.collect()
    add_penalty(master.weights, gradients[: master.weights.numel()], TrainParams(l2=1.0))
    assert torch.equal(gradients[: master.weights.numel()], master.weights)
    assert not gradients[master.weights.numel() :].any()


def test_buffers_and_frozen_parameters_are_shared() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    module[0].bias.requires_grad_(False)
    master = MasterWeights(module, torch.bfloat16)
    assert master.module[1].running_mean is module[1].running_mean
    assert master.module[0].bias is module[0].bias
    assert master.module[0].weight is not module[0].weight


def test_normalisation_layers_stay_in_float32() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
    master = MasterWeights(module, torch.bfloat16)
    types = {name: parameter.dtype for name, parameter in master.module.named_parameters()}
    assert {name for name, dtype in types.items() if dtype == torch.float32} == {"1.weight", "1.bias"}
    master.refresh()
    with torch.autocast("cpu", torch.bfloat16):
        logits = master.module(torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(0)))
    F.cross_entropy(logits.float(), torch.tensor([0, 1, 2, 0])).backward()
    gradients = master.collect()
    assert torch.equal(gradients[-4:], torch.cat([module[1].weight.grad, module[1].bias.grad]))
    assert gradients[-4:].abs().sum() > 0
