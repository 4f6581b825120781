"""Optimizers with fused updates, and which parameters count as weights."""

from collections.abc import Callable
from inspect import unwrap
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from assay.params import AdamParams, AdamWParams, OptimizerParams, RmspropParams, SgdParams


def weights_of(module: nn.Module) -> list[nn.Parameter]:
    """Return the weights that regularization acts on: trainable parameters of two or more axes.

    Biases and the gains and shifts of normalisation layers have one axis and are left alone.
    """
    return [parameter for parameter in module.parameters() if parameter.requires_grad and parameter.ndim >= 2]


class _Eager(Optimizer):
    """An optimizer without torch's wrappers for its compiler.

    The wrappers keep `torch.compile`, which nothing here uses, off these methods; for that they import it at the first
    call: 800 modules, which is two fifths of the CPU time of a training of seconds.
    """

    add_param_group = unwrap(Optimizer.add_param_group)
    state_dict = unwrap(Optimizer.state_dict)


class _EagerSGD(_Eager, SGD):
    step = torch.no_grad()(unwrap(SGD.step))


def _adam_step(usual: Callable[..., Any]) -> Callable[..., Any]:
    """Return a step that calls the fused kernel at once, where the optimizer has its state, and the usual one before.

    The usual step sorts tensors by device and type each time, about a seventh of a small model's call.
    Here a group has one tensor.
    """

    def step(optimizer: Adam) -> None:
        groups = [(group, group["params"][0]) for group in optimizer.param_groups]
        if any(parameter.grad is None or not optimizer.state[parameter] for _, parameter in groups):
            usual(optimizer)
            return
        for group, parameter in groups:
            state = optimizer.state[parameter]
            state["step"] += 1
            update = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
            update(
                [parameter],
                [parameter.grad],
                [state["exp_avg"]],
                [state["exp_avg_sq"]],
                [],
                [state["step"]],
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )

    return torch.no_grad()(step)


class _EagerAdam(_Eager, Adam):
    step = _adam_step(torch.no_grad()(unwrap(Adam.step)))


class _EagerAdamW(_Eager, AdamW):
    step = _adam_step(torch.no_grad()(unwrap(AdamW.step)))


class _EagerRMSprop(_Eager, RMSprop):
    step = torch.no_grad()(unwrap(RMSprop.step))


def build_optimizer(weights: Tensor, rest: Tensor, params: OptimizerParams) -> Optimizer:
    """Build the optimizer with fused kernels.

    Args:
        weights: What weight decay acts on, on its device.
        rest: All other parameters; maybe empty.
        params: Which optimizer, and its settings.

    Returns:
        An optimizer of two parameter groups: weights, with weight decay where there is one, and the rest, without.

    Source:
        SGD with momentum as in Sutskever et al., ICML 2013; Adam: Kingma and Ba, ICLR 2015, algorithm 1; AdamW:
        Loshchilov and Hutter, ICLR 2019, algorithm 2; RMSprop: Tieleman and Hinton, COURSERA lecture 6.5, 2012, of
        which torch has no fused kernel.
    """
    decay = params.weight_decay if isinstance(params, AdamWParams) else 0.0
    groups: list[dict[str, Any]] = [{"params": [weights], "weight_decay": decay}]
    if rest.numel() > 0:
        groups.append({"params": [rest], "weight_decay": 0.0})
    rate = params.learning_rate
    match params:
        case SgdParams():
            # torch refuses Nesterov without momentum, where it is plain SGD.
            nesterov = params.nesterov and params.momentum > 0
            return _EagerSGD(groups, lr=rate, momentum=params.momentum, nesterov=nesterov, fused=True)
        case AdamParams():
            return _EagerAdam(groups, lr=rate, betas=(params.beta1, params.beta2), fused=True)
        case AdamWParams():
            return _EagerAdamW(groups, lr=rate, betas=(params.beta1, params.beta2), fused=True)
        case RmspropParams():
            return _EagerRMSprop(groups, lr=rate, alpha=params.smoothing, momentum=params.momentum, foreach=False)


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Use one learning rate for all parameter groups from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = rate
