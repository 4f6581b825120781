"""Where a NaN or infinity came from."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from assay.errors import NonFiniteError


def non_finite_error(
    module: nn.Module, forward: Callable[[], Tensor], step: int, epoch: int, loss: float, rows: list[int]
) -> NonFiniteError:
    """Find the first layer that went wrong and say so.

    Args:
        module: The module, with the gradients of the failed step.
        forward: Runs the module on the failed batch again.
        step: Number of the failed step, 1 for the first.
        epoch: Its epoch, 1 for the first.
        loss: Its loss.
        rows: Row numbers of the batch's examples.

    Returns:
        The error to raise.
    """
    where = _first_activation(module, forward) or _first_gradient(module)
    shown = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
    return NonFiniteError(
        f"step {step} (epoch {epoch}): NaN or infinity in {where}; the loss is {loss}. The batch's examples are rows "
        f"{shown}. The weights are as they were before this step. Lower train.optimizer.learning_rate, or set "
        "train.max_grad_norm."
    )


def _first_activation(module: nn.Module, forward: Callable[[], Tensor]) -> str | None:
    """Name the first layer, in the order of computation, whose output is not finite."""
    found: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def look(layer: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not torch.isfinite(output).all():
                found.append(f"the output of layer {name!r}")

        return look

    leaves = [(name, layer) for name, layer in module.named_modules() if not list(layer.children())]
    handles = [layer.register_forward_hook(watch(name)) for name, layer in leaves]
    try:
        with torch.no_grad():
            logits = forward()
    finally:
        for handle in handles:
            handle.remove()
    if not found and not torch.isfinite(logits).all():
        return "the logits"
    return found[0] if found else None


def _first_gradient(module: nn.Module) -> str:
    """Name the first parameter, in the order of the backward pass, whose gradient is not finite."""
    for name, parameter in reversed(list(module.named_parameters())):
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
            return f"the gradient of {name!r}"
    return "the sum of loss terms or gradients, each finite by itself"
