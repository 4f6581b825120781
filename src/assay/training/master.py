"""Float32 master weights end to end in two tensors, and the module that computes with them."""

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.training.optimizers import weights_of


class MasterWeights:
    """A module's trainable parameters and their gradients, each end to end in float32.

    A step of a small model spends much of its time on calls, one for each parameter: casts, norms, updates. Here the
    norm, the cast and the update are one call for all of them. The module's own parameters become views, so its state
    is always what was trained. Normalisation layers compute in float32 whatever the type, as torch's want it.

    Args:
        module: Module in float32, on its device.
        dtype: Type to compute in, ``torch.float32`` or ``torch.bfloat16``.

    Attributes:
        module: Module to compute with: the given one, or its copy in bfloat16, which shares its buffers.
        weights: What weight decay and the L1 and L2 terms act on, float32 ``[weight]``.
        rest: Biases, and gains and shifts of normalisation layers, float32 ``[rest]``; maybe none.
        parameters: The module's own trainable parameters, in the order of `values`.
        gradients: The gradients of both, in this order, float32 ``[weight + rest]``.
        is_lowered: Whether `lowered` is what `values` are by now; forgotten by `refresh`.

    Source:
        Micikevicius et al., "Mixed precision training", ICLR 2018, section 3.1.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        weights, biases, others = _kinds(module)
        self.parameters = parameters = [*weights, *biases, *others]
        num_weights, num_lowered, num_values = (
            sum(p.numel() for p in some) for some in (weights, [*weights, *biases], parameters)
        )
        self._values = torch.empty(num_values, device=parameters[0].device)
        self.gradients = torch.zeros_like(self._values)
        self._slots = _slots(self.gradients, parameters)
        _move(parameters, self._values)
        self.weights, self.rest = (nn.Parameter(part) for part in self._values.tensor_split([num_weights]))
        self._gradients = self.gradients.tensor_split([num_weights])
        self.is_lowered = False
        if dtype == torch.float32:
            self.module, self._working, self._lowered = module, parameters, None
            return
        self.module, copied = _copy(module, [*weights, *biases])
        self._working = [*copied, *others]
        self._lowered = torch.empty(num_lowered, dtype=dtype, device=self._values.device)
        _move(copied, self._lowered)

    @property
    def values(self) -> Float[Tensor, " value"]:
        """All trainable parameters, float32: weights first, then the rest."""
        return self._values

    @property
    def lowered(self) -> Tensor | None:
        """What `module` computes with in bfloat16, the first of `values`; None where it computes in float32."""
        return self._lowered

    @property
    def are_lowered(self) -> list[bool]:
        """For each of `parameters`, whether `module` computes with it in bfloat16."""
        return [
            working.dtype != parameter.dtype for working, parameter in zip(self._working, self.parameters, strict=True)
        ]

    def refresh(self) -> None:
        """Bring `module` to the state of the master weights, and forget all gradients."""
        if self._lowered is not None and not self.is_lowered:
            self._lowered.copy_(self._values[: len(self._lowered)])
        self.is_lowered = False
        for parameter in (*self._working, self.weights, self.rest):
            parameter.grad = None

    @torch.no_grad()
    def collect(self) -> Float[Tensor, " value"]:
        """Take over the gradients that the backward pass left at `module`.

        Returns:
            `gradients`, which is what the optimizer sees, too.
        """
        for slot, parameter in zip(self._slots, self._working, strict=True):
            if parameter.grad is None:
                slot.zero_()
            else:
                slot.copy_(parameter.grad)
        self.weights.grad, self.rest.grad = self._gradients
        return self.gradients

    def gradients_in_place(self) -> list[Tensor]:
        """Return the gradients of `parameters` where the backward pass left them, in the types that it has.

        They lie in memory as the parameters do; one that does not is copied.
        """
        return [_laid_out(working.grad, working) for working in self._working]


def _kinds(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Sort the trainable parameters: weights, biases beside weights, and those of layers without weights."""
    weights = weights_of(module)
    known = {id(weight) for weight in weights}
    biases: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for layer in module.modules():
        own = list(layer.parameters(recurse=False))
        rest = [p for p in own if p.requires_grad and id(p) not in known]
        (biases if any(p.ndim >= 2 for p in own) else others).extend(rest)
        known |= {id(p) for p in rest}
    return weights, biases, others


def _slots(values: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Cut a flat tensor into views, one in the shape and memory layout of each parameter."""
    parts = torch.split(values, [parameter.numel() for parameter in parameters])
    return [
        part.as_strided(parameter.shape, torch.empty_like(parameter).stride())
        for part, parameter in zip(parts, parameters, strict=True)
    ]


def _move(parameters: Sequence[nn.Parameter], values: Tensor) -> None:
    """Have parameters live in a flat tensor, with the values that they have."""
    for parameter, slot in zip(parameters, _slots(values, parameters), strict=True):
        parameter.data = slot.copy_(parameter.detach())


def _laid_out(gradient: Tensor | None, parameter: Tensor) -> Tensor:
    """Return a gradient as its parameter lies in memory; zeros where there is none."""
    if gradient is not None and gradient.stride() == parameter.stride():
        return gradient
    given = torch.zeros_like(parameter)
    return given if gradient is None else given.copy_(gradient)


def _copy(module: nn.Module, parameters: Sequence[nn.Parameter]) -> tuple[nn.Module, list[nn.Parameter]]:
    """Copy a module with parameters of its own and all else shared; return it and the new parameters."""
    memo: dict[int, object] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    copied = [nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    memo |= {id(old): new for old, new in zip(parameters, copied, strict=True)}
    return copy.deepcopy(module, memo), copied
