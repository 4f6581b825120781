"""The two loops of `assay.models.pooling` as machine code, made by LLVM when a process has enough to pool.

One pass over memory instead of ten. Numbers are the bits of 16-bit floats, read as integers; arrays are contiguous,
``[image, row, column, channel]``.
"""

import ctypes
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

LANES = 16
"""Channels that are computed at once, 256 bits of them; the number of channels has to be a multiple."""

NOBODY = 4
"""Place of a window in which nothing is positive; 0 to 3 are its four numbers in reading order."""

_MOST_THREADS = 4
_ENOUGH = 1 << 27

_log = logging.getLogger(__name__)

_Kernel = Callable[[int, int, int, int, int, int, int], None]


@dataclass(frozen=True)
class PoolKernels:
    """Machine code for this processor.

    Attributes:
        forward: From the addresses of the numbers int16 ``[image, row, column, channel]``, of the maxima int16 and
            of their places int8, both ``[image, row // 2, column // 2, channel]``, and the four sizes of the first.
        backward: From the addresses of the maxima's gradient, of the numbers' gradient and of the places, and the
            same sizes. An odd last row or column is not written.
        engine: Owner of the code.
    """

    forward: _Kernel
    backward: _Kernel
    engine: Any


@dataclass
class _Pooled:
    """How many numbers this process has pooled."""

    numbers: int = 0


_pooled = _Pooled()


def kernels_for(features: Tensor) -> PoolKernels | None:
    """Return the machine code, where it is worth making and applies.

    Making it takes 0.3 s, so the first `_ENOUGH` numbers of a process go without, and so do more threads than
    `_MOST_THREADS`: it runs in one. With or without, the results are the same bits.

    Args:
        features: What is to be pooled, 16-bit floats ``[batch, channel, height, width]``.
    """
    _pooled.numbers += features.numel()
    if _pooled.numbers < _ENOUGH or features.shape[1] % LANES or torch.get_num_threads() > _MOST_THREADS:
        return None
    return make_kernels()


@cache
def make_kernels() -> PoolKernels | None:
    """Make the machine code, once for a process; None where LLVM is not there or cannot."""
    try:
        return _compile()
    except (ImportError, OSError, RuntimeError) as error:
        _log.warning("No machine code for pooling (%s): it takes some more time, with the same result.", error)
        return None


def _compile() -> PoolKernels:
    from llvmlite import binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(), features=binding.get_host_cpu_features().flatten(), opt=3
    )
    module = binding.parse_assembly(_module_text(binding.get_process_triple()))
    module.verify()
    passes = binding.create_pass_builder(machine, binding.create_pipeline_tuning_options(speed_level=3))
    passes.getModulePassManager().run(module, passes)
    engine = binding.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    signature = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3, *[ctypes.c_int64] * 4)
    forward, backward = (signature(engine.get_function_address(name)) for name in ("forward", "backward"))
    return PoolKernels(forward, backward, engine)


def _module_text(triple: str) -> str:
    """Both loops in LLVM's language."""
    from llvmlite import ir

    module = ir.Module("pooling")
    module.triple = triple
    number, place = ir.VectorType(ir.IntType(16), LANES), ir.VectorType(ir.IntType(8), LANES)

    def all_lanes(kind: Any, value: int) -> Any:
        return ir.Constant(kind, [value] * LANES)

    zero = all_lanes(number, 0)

    loop = _WindowLoop(module, "forward", number, place)
    at = loop.builder
    upper_left, upper_right, lower_left, lower_right = (loop.load(loop.large, where) for where in loop.corners)
    is_right = at.icmp_signed("<", upper_left, upper_right)
    upper = at.select(is_right, upper_right, upper_left)
    upper_place = at.select(is_right, all_lanes(place, 1), all_lanes(place, 0))
    is_right = at.icmp_signed("<", lower_left, lower_right)
    lower = at.select(is_right, lower_right, lower_left)
    lower_place = at.select(is_right, all_lanes(place, 3), all_lanes(place, 2))
    is_lower = at.icmp_signed("<", upper, lower)
    largest = at.select(is_lower, lower, upper)
    is_positive = at.icmp_signed(">", largest, zero)
    winner = at.select(is_positive, at.select(is_lower, lower_place, upper_place), all_lanes(place, NOBODY))
    loop.store(at.select(is_positive, largest, zero), loop.small, loop.window)
    loop.store(winner, loop.places, loop.window)
    loop.close()

    loop = _WindowLoop(module, "backward", number, place)
    at = loop.builder
    gradient, winner = loop.load(loop.small, loop.window), loop.load(loop.places, loop.window)
    for corner, where in enumerate(loop.corners):
        is_winner = at.icmp_signed("==", winner, all_lanes(place, corner))
        loop.store(at.select(is_winner, gradient, zero), loop.large, where)
    loop.close()
    return str(module)


class _WindowLoop:
    """A function that visits all windows, `LANES` channels at a time; the builder stands where a visit begins.

    Attributes:
        builder: Where instructions go.
        large: The array before pooling.
        small: The array after it.
        places: The places.
        corners: Offsets into `large` of a window's numbers, in reading order.
        window: Offset into `small` and `places`.
    """

    def __init__(self, module: Any, name: str, number: Any, place: Any) -> None:
        from llvmlite import ir

        self._index = size = ir.IntType(64)
        self._kinds = {number.element: number, place.element: place}
        before, after = number.element.as_pointer(), place.element.as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [before, before, after, *[size] * 4])
        self._function = function = ir.Function(module, kind, name)
        first, second, self.places, *sizes = function.args
        for array in function.args[:3]:
            array.add_attribute("noalias")
        self.large, self.small = (first, second) if name == "forward" else (second, first)
        self.builder = at = ir.IRBuilder(function.append_basic_block("entry"))
        self._ends: list[tuple[Any, int, Any, Any]] = []

        images, height, width, channels = sizes
        rows, columns = (at.lshr(whole, size(1)) for whole in (height, width))
        image, row, column = self._open(images, 1), self._open(rows, 1), self._open(columns, 1)
        channel = self._open(channels, LANES)
        below = at.mul(width, channels)
        top = at.mul(at.add(at.mul(image, height), at.mul(row, size(2))), below)
        first_corner = at.add(top, at.add(at.mul(at.mul(column, size(2)), channels), channel))
        offsets = (size(0), channels, below, at.add(below, channels))
        self.corners: Sequence[Any] = [at.add(first_corner, offset) for offset in offsets]
        number_of_row = at.add(at.mul(image, rows), row)
        self.window = at.add(at.mul(at.add(at.mul(number_of_row, columns), column), channels), channel)

    def load(self, array: Any, offset: Any) -> Any:
        """Read `LANES` values."""
        return self.builder.load(self._lanes(array, offset), align=1)

    def store(self, values: Any, array: Any, offset: Any) -> None:
        """Write `LANES` values."""
        self.builder.store(values, self._lanes(array, offset), align=1)

    def close(self) -> None:
        """End the visit, the loops and the function."""
        at = self.builder
        for index, step, head, after in reversed(self._ends):
            index.add_incoming(at.add(index, self._index(step)), at.block)
            at.branch(head)
            at.position_at_end(after)
        at.ret_void()

    def _open(self, end: Any, step: int) -> Any:
        """Begin a loop from 0; return its index."""
        at, before = self.builder, self.builder.block
        head, body, after = (self._function.append_basic_block() for _ in range(3))
        at.branch(head)
        at.position_at_end(head)
        index = at.phi(self._index)
        index.add_incoming(self._index(0), before)
        at.cbranch(at.icmp_signed("<", index, end), body, after)
        at.position_at_end(body)
        self._ends.append((index, step, head, after))
        return index

    def _lanes(self, array: Any, offset: Any) -> Any:
        whole = self._kinds[array.type.pointee]
        return self.builder.bitcast(self.builder.gep(array, [offset]), whole.as_pointer())
