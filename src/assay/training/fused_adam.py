"""Adam and AdamW on a CPU in two passes over the weights, where a training gains by it.

A small model's weights, moments and gradients are larger than a core's cache, so what a step of the optimizer costs is
how often they are moved. torch's operations take gradients over into float32, add the L1 and L2 terms, take the norm,
step, and cast the weights for the next forward pass: 13 numbers are read or written for each weight. Here one pass
reads gradients and weights for the norm, and another one does the rest: 8.5 numbers.
"""

import ctypes
import logging
import math
import struct
from functools import cache
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from assay.params import AdamParams, AdamWParams, TrainParams
from assay.training.master import MasterWeights
from assay.training.optimizers import set_learning_rate
from assay.training.penalty import CHUNK, LANES

if TYPE_CHECKING:
    from assay.models.native import MachineCode

COLUMNS = ("first value", "values", "parameter", "offset in it", "is bfloat16", "is a weight")
"""What the loops are told of a chunk of parameters. Each parameter has a gradient, in bfloat16 or float32."""

_ENOUGH = 1 << 27
"""Weights times steps, from which on making machine code is worth it."""

_log = logging.getLogger(__name__)


class FusedAdam:
    """The update, see `assay.training.update.Update`.

    With ``g`` the gradient of the cross-entropy, ``w`` a weight, ``f`` the factor of clipping, and the other names as
    in the sources::

        g_t = f * (g + l1 * sign(w) + l2 * w)
        w  <- (1 - rate * decay) * w
        m  <- m + (1 - beta1) * (g_t - m)
        v  <- beta2 * v + (1 - beta2) * g_t^2
        w  <- w - rate / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)

    without the terms and the decay where ``w`` is a bias, a gain or a shift. All of it is float32 and rounded where
    torch's fused kernel rounds, except in what that computes one at a time, the last few of the weights and of the
    rest; the sums of `measure` are rounded otherwise. The optimizer's state is as torch's own, of which the moments lie
    end to end.

    Args:
        master: The weights and their module, on the CPU.
        optimizer: Optimizer of the master weights, Adam or AdamW.
        params: Terms and clipping.
        code: What `assay.training.fused_adam_code` makes.

    Source:
        Kingma and Ba, ICLR 2015, algorithm 1; Loshchilov and Hutter, ICLR 2019, algorithm 2.
    """

    def __init__(
        self,
        master: MasterWeights,
        optimizer: Optimizer,
        params: TrainParams,
        code: "MachineCode",
    ) -> None:
        self._master, self._optimizer, self._params, self._code = master, optimizer, params, code
        self._table = _table(master)
        self._sums = torch.empty((len(self._table), 3, LANES + 1))
        self._gradients: list[Tensor] = []
        self._addresses = (ctypes.c_int64 * len(master.parameters))()
        self._averages, self._squares = torch.zeros_like(master.values), torch.zeros_like(master.values)
        self._states: list[dict[str, Tensor]] = []
        for part in (slice(master.weights.numel()), slice(master.weights.numel(), None))[: len(optimizer.param_groups)]:
            state = {"exp_avg": self._averages[part], "exp_avg_sq": self._squares[part]}
            self._states.append({"step": torch.zeros(())} | state)

    @torch.no_grad()
    def measure(self) -> Float[Tensor, "2"]:
        """See `assay.training.update.Update`."""
        master, params = self._master, self._params
        self._gradients = master.gradients_in_place()
        self._addresses[:] = [gradient.data_ptr() for gradient in self._gradients]
        arrays = (*self._sources(), master.values.data_ptr(), self._sums.data_ptr())
        self._code.run("measure", len(self._table), (*arrays, *_bits(params.l1, params.l2)))
        absolute, squares, squared_norm = self._sums.sum((0, 2), dtype=torch.float64).tolist()
        return torch.tensor((params.l1 * absolute + params.l2 / 2 * squares, math.sqrt(squared_norm)))

    @torch.no_grad()
    def apply(self, rate: float, measured: Float[Tensor, "2"]) -> None:
        """See `assay.training.update.Update`."""
        master, params = self._master, self._params
        if not self._has_state():
            self._take_state()
        for state in self._states:
            state["step"] += 1
        step, group = self._states[0]["step"].item(), self._optimizer.param_groups[0]
        beta1, beta2 = group["betas"]
        numbers = (
            *(params.l1, params.l2, _clip_factor(measured[1], params.max_grad_norm), 1 - rate * group["weight_decay"]),
            *(1 - beta1, beta2, 1 - beta2, math.sqrt(1 - beta2**step), group["eps"], -(rate / (1 - beta1**step))),
        )
        arrays = (
            master.values,
            self._averages,
            self._squares,
            master.values if master.lowered is None else master.lowered,
        )
        values = (*self._sources(), *(array.data_ptr() for array in arrays), *_bits(*numbers))
        self._code.run("step", len(self._table), values)
        set_learning_rate(self._optimizer, rate)
        self._gradients = []
        master.is_lowered = params.ema_decay is None  # else the module holds the average in between

    def _sources(self) -> tuple[int, int]:
        return self._table.data_ptr(), ctypes.addressof(self._addresses)

    def _has_state(self) -> bool:
        """Whether the optimizer's state is what this one computes with: it is not where a checkpoint was read."""
        return all(
            self._optimizer.state[group["params"][0]].get(name) is tensor
            for group, own in zip(self._optimizer.param_groups, self._states, strict=True)
            for name, tensor in own.items()
        )

    def _take_state(self) -> None:
        """Take the optimizer's state over, and have it be what this one computes with; it begins with zeros."""
        for group, own in zip(self._optimizer.param_groups, self._states, strict=True):
            state = self._optimizer.state[group["params"][0]]
            for name, value in state.items():
                own[name].copy_(value)
            state.update(own)


def fused_adam(
    master: MasterWeights,
    optimizer: Optimizer,
    params: TrainParams,
    num_steps: int,
    num_threads: int,
) -> FusedAdam | None:
    """Return the update where a training on a CPU gains by it, else None.

    It follows from the whole training, not from what a process did before: its sums are rounded otherwise than torch's.

    Args:
        master: The weights.
        optimizer: Their optimizer.
        params: How they are trained.
        num_steps: Steps of the training.
        num_threads: Threads that it computes with.
    """
    if not isinstance(params.optimizer, AdamParams | AdamWParams) or params.layer_decay < 1:
        return None
    if master.weights.numel() * num_steps < _ENOUGH:
        return None
    code = _make(master.lowered is not None)
    if code is None or not (num_threads == 1 or code.is_parallel):
        return None
    return FusedAdam(master, optimizer, params, code)


@cache
def _make(is_lowered: bool) -> "MachineCode | None":
    try:
        from assay.training.fused_adam_code import make_code

        return make_code(is_lowered)
    except Exception as error:  # whatever it is, torch's operations do it
        _log.warning("No machine code for Adam (%s): training takes longer.", error)
        return None


def _table(master: MasterWeights) -> Tensor:
    """Return chunks of parameters as rows of `COLUMNS`."""
    num_weights, rows, first = master.weights.numel(), [], 0
    for number, (parameter, is_lowered) in enumerate(zip(master.parameters, master.are_lowered, strict=True)):
        length = parameter.numel()
        for offset in range(0, length, CHUNK):
            size, is_weight = min(CHUNK, length - offset), first < num_weights
            rows.append((first + offset, size, number, offset, int(is_lowered), int(is_weight)))
        first += length
    return torch.tensor(rows, dtype=torch.int64)


def _clip_factor(norm: Float[Tensor, ""], max_norm: float | None) -> float:
    """Return what a gradient is multiplied by so that its norm is at most `max_norm`, as torch's clipping does."""
    return 1.0 if max_norm is None else float(torch.clamp(max_norm / (norm + 1e-6), max=1.0))


def _bits(*numbers: float) -> tuple[int, ...]:
    """Return the bits of numbers, rounded to float32."""
    return struct.unpack(f"<{len(numbers)}I", struct.pack(f"<{len(numbers)}f", *numbers))
