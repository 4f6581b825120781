import torch
from torch import nn

from assay.training.finite import non_finite_error


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def test_names_the_first_layer_whose_output_is_not_finite() -> None:
    module = network()
    with torch.no_grad():
        module[0].bias[1] = float("inf")
    error = non_finite_error(module, lambda: module(torch.ones(2, 3)), 7, 2, float("nan"), [4, 9, 1, 0, 3, 8])
    assert "step 7 (epoch 2): NaN or infinity in the output of layer '0'" in str(error)
    assert "rows 4, 9, 1, 0, 3, ..." in str(error)


def test_names_the_first_gradient_of_the_backward_pass() -> None:
    module = network()
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    module[0].weight.grad[0, 0] = float("nan")
    module[0].bias.grad[0] = float("nan")
    error = non_finite_error(module, lambda: module(torch.ones(2, 3)), 1, 1, 0.5, [0])
    assert "the gradient of '0.bias'" in str(error)


def test_hooks_are_taken_off_again() -> None:
    module = network()
    non_finite_error(module, lambda: module(torch.ones(1, 3)), 1, 1, 0.5, [0])
    assert all(not layer._forward_hooks for layer in module)
