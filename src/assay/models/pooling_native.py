"""The loops of `assay.models.pooling` as machine code, made by LLVM when a process has enough to pool.

One pass over memory instead of ten, in the threads that torch computes with. Arrays are contiguous,
``[image, row, column, channel]``.
"""

import ctypes
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
    if type(features) is not Tensor or _is_looked_on():  # sizes may be symbols, which counting would bind
        return None
    _pooled.numbers += features.numel()
    if _pooled.numbers < _ENOUGH or features.shape[1] % LANES:
        return None
    kernels = make_kernels()
    if kernels is None or (not kernels.is_parallel and torch.get_num_threads() > _MOST_THREADS_FOR_ONE):
        return None
    return kernels


def _is_looked_on() -> bool:
    is_traced: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return is_traced or torch.compiler.is_compiling()


class PoolKernels:
    """Machine code for this processor.

    ``large`` is what is pooled, int16 (bits of 16-bit floats that are ordered as integers) or float32, and ``small``
    of the same type what comes of it, ``[image, row // 2, column // 2, channel]``; ``places`` is int8 and as large.

    Args:
        engine: Owner of the code.
        threads: A library through which torch's threads are found; None where they are not GNU's.
    """

    def __init__(self, engine: Any, threads: ctypes.CDLL | None) -> None:
        self._engine = engine
        self._addresses: dict[tuple[str, torch.dtype], int] = {
            (way, kind): engine.get_function_address(f"{way}_{name}")
            for way in ("forward", "backward")
            for kind, name in _NAMES.items()
        }
        signature = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 3, *[ctypes.c_int64] * 5)
        self._alone = {key: signature(address) for key, address in self._addresses.items()}
        self._share = engine.get_function_address("share")
        self._parallel: Callable[..., None] | None = None
        if threads is not None:
            pointer, number = ctypes.c_void_p, ctypes.c_uint
            self._parallel = ctypes.CFUNCTYPE(None, pointer, pointer, number, number)(("GOMP_parallel", threads))
            names = ("omp_get_thread_num", "omp_get_num_threads")
            self._who = [ctypes.cast(getattr(threads, name), pointer).value or 0 for name in names]

    @property
    def is_parallel(self) -> bool:
        """Whether it runs in as many threads as torch, not in one."""
        return self._parallel is not None

    def forward(self, large: Tensor, small: Tensor, places: Tensor) -> None:
        """Write the maxima that are positive, else 0, to ``small``, and where in the window they are to ``places``."""
        self._run("forward", large, small, places)

    def backward(self, large: Tensor, small: Tensor, places: Tensor) -> None:
        """Write each gradient in ``small`` to its place in ``large``, and 0 elsewhere.

        An odd last row or column is not written.
        """
        self._run("backward", large, small, places)

    def _run(self, way: str, large: Tensor, small: Tensor, places: Tensor) -> None:
        key, (images, *sizes) = (way, large.dtype), large.shape
        arrays = (large.data_ptr(), small.data_ptr(), places.data_ptr())
        num_threads = torch.get_num_threads()
        if num_threads == 1 or self._parallel is None:
            self._alone[key](*arrays, 0, images, *sizes)
            return
        job = (ctypes.c_uint64 * 10)(*arrays, images, *sizes, self._addresses[key], *self._who)
        self._parallel(self._share, ctypes.addressof(job), num_threads, 0)


@cache
def make_kernels() -> PoolKernels | None:
    """Make the machine code, unless this process has it; None where LLVM is not there or cannot."""
    try:
        return PoolKernels(_compile(), _threads_of_torch())
    except Exception as error:  # whatever it is, a training goes on without
        _log.warning("No machine code for pooling (%s): it takes some more time, with the same result.", error)
        return None


def _threads_of_torch() -> ctypes.CDLL | None:
    """Return what finds the GNU runtime that torch itself is bound to: another copy would have threads of its own."""
    try:
        library = ctypes.CDLL(
            str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"), os.RTLD_NOLOAD | os.RTLD_NOW
        )
        return library if library.GOMP_parallel and library.omp_get_num_threads else None
    except (OSError, AttributeError):  # another system's name, or another runtime
        return None


def _compile() -> Any:
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
    return engine


def _module_text(triple: str) -> str:
    """All loops in LLVM's language."""
    from llvmlite import ir

    module = ir.Module("pooling")
    module.triple = triple
    for kind, name in ((ir.IntType(16), "integers"), (ir.FloatType(), "floats")):
        _write_forward(_WindowLoop(module, f"forward_{name}", kind))
        _write_backward(_WindowLoop(module, f"backward_{name}", kind))
    _write_share(module)
    return str(module)


def _write_forward(loop: "_WindowLoop") -> None:
    """The larger of two numbers is the second only if it is larger, or NaN, as in torch."""
    at = loop.builder

    def second_wins(first: Any, second: Any) -> Any:
        if not loop.is_float:
            return at.icmp_signed(">", second, first)
        return at.or_(at.fcmp_ordered(">", second, first), at.fcmp_unordered("uno", second, second))

    upper_left, upper_right, lower_left, lower_right = (loop.load(loop.large, where) for where in loop.corners)
    is_right = second_wins(upper_left, upper_right)
    upper = at.select(is_right, upper_right, upper_left)
    upper_place = at.select(is_right, loop.places_of(1), loop.places_of(0))
    is_right = second_wins(lower_left, lower_right)
    lower = at.select(is_right, lower_right, lower_left)
    lower_place = at.select(is_right, loop.places_of(3), loop.places_of(2))
    is_lower = second_wins(upper, lower)
    largest = at.select(is_lower, lower, upper)
    place = at.select(is_lower, lower_place, upper_place)
    zeros = loop.zeros()
    passes = at.fcmp_unordered(">", largest, zeros) if loop.is_float else at.icmp_signed(">", largest, zeros)
    loop.store(at.select(passes, largest, zeros), loop.small, loop.window)
    loop.store(at.select(passes, place, loop.places_of(NOBODY)), loop.places, loop.window)
    loop.close()


def _write_backward(loop: "_WindowLoop") -> None:
    at = loop.builder
    gradient, place = loop.load(loop.small, loop.window), loop.load(loop.places, loop.window)
    for corner, where in enumerate(loop.corners):
        is_here = at.icmp_signed("==", place, loop.places_of(corner))
        loop.store(at.select(is_here, gradient, loop.zeros()), loop.large, where)
    loop.close()


class _WindowLoop:
    """A function that visits all windows of some images, `LANES` channels at a time.

    Attributes:
        builder: Where instructions go: where a visit begins.
        large: The array before pooling.
        small: The array after it.
        places: The places.
        corners: Offsets into `large` of a window's numbers, in reading order.
        window: Offset into `small` and `places`.
        is_float: Whether numbers are floats, not integers.
    """

    def __init__(self, module: Any, name: str, kind: Any) -> None:
        from llvmlite import ir

        self._ir, self._index = ir, (size := ir.IntType(64))
        self._number, self._place = ir.VectorType(kind, LANES), ir.VectorType(ir.IntType(8), LANES)
        self.is_float = isinstance(kind, ir.FloatType)
        arrays = [kind.as_pointer(), kind.as_pointer(), ir.IntType(8).as_pointer()]
        self._function = function = ir.Function(module, ir.FunctionType(ir.VoidType(), [*arrays, *[size] * 5]), name)
        self.large, self.small, self.places, first, end, height, width, channels = function.args
        for array in function.args[:3]:
            array.add_attribute("noalias")
        self.builder = at = ir.IRBuilder(function.append_basic_block())
        self._open_loops: list[tuple[Any, Any, Any, Any]] = []

        rows, columns = (at.lshr(whole, size(1)) for whole in (height, width))
        image = self._loop(first, end, size(1))
        row, column = self._loop(size(0), rows, size(1)), self._loop(size(0), columns, size(1))
        channel = self._loop(size(0), channels, size(LANES))
        below = at.mul(width, channels)
        top = at.mul(at.add(at.mul(image, height), at.mul(row, size(2))), below)
        corner = at.add(top, at.add(at.mul(at.mul(column, size(2)), channels), channel))
        self.corners = [at.add(corner, offset) for offset in (size(0), channels, below, at.add(below, channels))]
        number_of_row = at.add(at.mul(image, rows), row)
        self.window = at.add(at.mul(at.add(at.mul(number_of_row, columns), column), channels), channel)

    def zeros(self) -> Any:
        """Zeros of the numbers' type."""
        return self._ir.Constant(self._number, [0] * LANES)

    def places_of(self, corner: int) -> Any:
        """The same place in all lanes."""
        return self._ir.Constant(self._place, [corner] * LANES)

    def load(self, array: Any, offset: Any) -> Any:
        """Read `LANES` values."""
        return self.builder.load(self._lanes(array, offset), align=1)

    def store(self, values: Any, array: Any, offset: Any) -> None:
        """Write `LANES` values."""
        self.builder.store(values, self._lanes(array, offset), align=1)

    def close(self) -> None:
        """End the visit, the loops and the function."""
        at = self.builder
        for index, step, head, after in reversed(self._open_loops):
            index.add_incoming(at.add(index, step), at.block)
            at.branch(head)
            at.position_at_end(after)
        at.ret_void()

    def _loop(self, begin: Any, end: Any, step: Any) -> Any:
        """Begin a loop; return its index."""
        at, before = self.builder, self.builder.block
        head, body, after = (self._function.append_basic_block() for _ in range(3))
        at.branch(head)
        at.position_at_end(head)
        index = at.phi(self._index)
        index.add_incoming(begin, before)
        at.cbranch(at.icmp_signed("<", index, end), body, after)
        at.position_at_end(body)
        self._open_loops.append((index, step, head, after))
        return index

    def _lanes(self, array: Any, offset: Any) -> Any:
        vector = self._place if array is self.places else self._number
        return self.builder.bitcast(self.builder.gep(array, [offset]), vector.as_pointer())


def _write_share(module: Any) -> None:
    """What each thread of a team runs: a loop over its share of the images, in order, about as torch divides a batch.

    Its argument is ten 64-bit numbers: three arrays, images, height, width, channels, the loop, and two functions
    that tell this thread's number and the size of its team.
    """
    from llvmlite import ir

    size, byte = ir.IntType(64), ir.IntType(8)
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [size.as_pointer()]), "share")
    at = ir.IRBuilder(function.append_basic_block())
    job = [at.load(at.gep(function.args[0], [size(place)])) for place in range(10)]
    arrays, (images, height, width, channels, loop, *who) = job[:3], job[3:]
    tell = ir.FunctionType(ir.IntType(32), []).as_pointer()
    number, team = (at.zext(at.call(at.inttoptr(address, tell), []), size) for address in who)
    first, end = (at.udiv(at.mul(images, part), team) for part in (number, at.add(number, size(1))))
    kind = ir.FunctionType(ir.VoidType(), [*[byte.as_pointer()] * 3, *[size] * 5]).as_pointer()
    addresses = [at.inttoptr(array, byte.as_pointer()) for array in arrays]
    at.call(at.inttoptr(loop, kind), [*addresses, first, end, height, width, channels])
    at.ret_void()
