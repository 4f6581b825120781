"""The loops of `assay.models.pooling` as machine code, made by LLVM when a process has enough to pool.

One pass over memory instead of ten, in the threads that torch computes with. Arrays are contiguous,
``[image, row, column, channel]``.
"""

import logging
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from assay.models import native

LANES = 16
"""Channels that are computed at once; the number of channels has to be a multiple."""

NOBODY = 4
"""Place of a window in which nothing is positive; 0 to 3 are its four numbers in reading order."""

_NAMES = {torch.int16: "integers", torch.float32: "floats"}
_ENOUGH = 1 << 27
_MOST_THREADS_FOR_ONE = 4
"""Torch's operations in more threads than this are quicker than machine code in one."""

_log = logging.getLogger(__name__)


@dataclass
class _Pooled:
    """How many numbers this process has pooled."""

    numbers: int = 0


_pooled = _Pooled()


def kernels_for(features: Tensor) -> "PoolKernels | None":
    """Return the machine code, where it is worth making and applies.

    Making it takes a quarter of a second, so the first `_ENOUGH` numbers of a process go without. With or without,
    the results are the same numbers; zeros of float32 may differ in their sign. An export or a compiler that looks on
    is to see operations; under the transforms of `torch.func`, which nothing here uses, machine code does not work.

    Args:
        features: What is to be pooled, ``[batch, channel, height, width]``, on the CPU.
    """
    if type(features) is not Tensor or is_looked_on():  # sizes may be symbols, which counting would bind
        return None
    _pooled.numbers += features.numel()
    if _pooled.numbers < _ENOUGH or features.shape[1] % LANES:
        return None
    kernels = make_kernels()
    if kernels is None or (not kernels.is_parallel and torch.get_num_threads() > _MOST_THREADS_FOR_ONE):
        return None
    return kernels


def is_looked_on() -> bool:
    """Return whether an export or a compiler is to see each operation."""
    is_traced: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return is_traced or torch.compiler.is_compiling()


class PoolKernels:
    """Machine code for this processor.

    ``large`` is what is pooled, int16 (bits of 16-bit floats that are ordered as integers) or float32, and ``small``
    of the same type what comes of it, ``[image, row // 2, column // 2, channel]``; ``places`` is int8 and as large.

    Args:
        code: The loops.
    """

    def __init__(self, code: "native.MachineCode") -> None:
        self._code = code

    @property
    def is_parallel(self) -> bool:
        """Whether it runs in as many threads as torch, not in one."""
        return self._code.is_parallel

    def forward(self, large: Tensor, small: Tensor, places: Tensor) -> None:
        """Write the maxima that are positive, else 0, to ``small``, and where in the window they are to ``places``."""
        self._run("forward", large, small, places)

    def backward(self, large: Tensor, small: Tensor, places: Tensor) -> None:
        """Write each gradient in ``small`` to its place in ``large``, and 0 elsewhere.

        An odd last row or column is not written.
        """
        self._run("backward", large, small, places)

    def _run(self, way: str, large: Tensor, small: Tensor, places: Tensor) -> None:
        images, *sizes = large.shape
        arrays = (large.data_ptr(), small.data_ptr(), places.data_ptr())
        self._code.run(f"{way}_{_NAMES[large.dtype]}", images, (*arrays, *sizes))


@cache
def make_kernels() -> PoolKernels | None:
    """Make the machine code, unless this process has it; None where LLVM is not there or cannot."""
    try:
        return PoolKernels(_compile())
    except Exception as error:  # whatever it is, a training goes on without
        _log.warning("No machine code for pooling (%s): it takes some more time, with the same result.", error)
        return None


def _compile() -> "native.MachineCode":
    from assay.models.pooling_loops import make_code

    return make_code()
