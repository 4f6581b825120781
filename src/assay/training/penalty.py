"""The L1 and L2 terms and the norm of the gradient in one pass over the weights, where a training gains by it.

torch's operations go up to nine times over weights and gradient, which are among the largest arrays of a small model's
step.
"""

import logging
import struct
from functools import cache
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from assay.params import TrainParams

if TYPE_CHECKING:
    from assay.models.native import MachineCode

CHUNK = 4096
"""Numbers whose sums are taken in float32, lane by lane; those of the chunks are added in float64."""

LANES = 16
"""Numbers at once, whatever the processor: the sums are the same on each. Those that are left over have a lane more."""

_ENOUGH = 1 << 27
"""Weights times steps, from which on making machine code is worth it."""

_log = logging.getLogger(__name__)


class PenaltyLoop:
    """Machine code for weights of any number.

    Args:
        code: The loop.
    """

    def __init__(self, code: "MachineCode") -> None:
        self._code = code

    @property
    def is_parallel(self) -> bool:
        """Whether it runs in as many threads as torch, not in one."""
        return self._code.is_parallel

    def add(
        self, weights: Float[Tensor, " weight"], gradient: Float[Tensor, " weight"], l1: float, l2: float
    ) -> Float[Tensor, "3"]:
        """Add ``l1 * sign(w) + l2 * w`` to a gradient, in place.

        Args:
            weights: The weights, contiguous, float32, on the CPU.
            gradient: The same of the gradient.
            l1: Factor of the L1 term.
            l2: Factor of the L2 term.

        Returns:
            The sums of ``|w|``, of ``w^2`` and of the squares of what the gradient is then, float64.
        """
        num_chunks = -(-len(weights) // CHUNK)
        sums = torch.empty((num_chunks, 3, LANES + 1))
        factors = (int.from_bytes(struct.pack("<f", factor), "little") for factor in (l1, l2))
        arrays = (weights.data_ptr(), gradient.data_ptr(), sums.data_ptr())
        self._code.run("penalty", num_chunks, (*arrays, len(weights), *factors))
        return sums.sum((0, 2), dtype=torch.float64)


def penalty_loop(num_weights: int, num_steps: int, params: TrainParams, num_threads: int) -> PenaltyLoop | None:
    """Return the machine code where a training on a CPU gains by it, else None.

    It follows from the whole training, not from what a process did before: its sums are rounded otherwise than torch's.

    Args:
        num_weights: Weights that the terms act on.
        num_steps: Steps of the training.
        params: The factors of the terms.
        num_threads: Threads that it computes with.
    """
    if (params.l1 <= 0 and params.l2 <= 0) or num_weights * num_steps < _ENOUGH:
        return None
    loop = _make()
    return None if loop is None or not (num_threads == 1 or loop.is_parallel) else loop


@cache
def _make() -> PenaltyLoop | None:
    try:
        from assay.training.penalty_code import make_code

        return PenaltyLoop(make_code())
    except Exception as error:  # whatever it is, torch's operations do it
        _log.warning("No machine code for the L1 and L2 terms (%s): training takes longer.", error)
        return None
