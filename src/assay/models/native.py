"""Machine code made by LLVM in this process: loops over a batch's images, in the threads that torch computes with."""

import ctypes
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from llvmlite import binding, ir
from torch import Tensor


class _BrainFloat(ir.types.Type):  # type: ignore[misc]
    """LLVM's bfloat16, which llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BrainFloat)

    def __hash__(self) -> int:
        return hash(_BrainFloat)


BYTE, SHORT, WORD, SIZE, FLOAT = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_BFLOAT = _BrainFloat()
_ASK_FOR_TILES = (158, 0x1023, 18)
"""Linux's arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA: for all threads of this process, and its children."""

_HEADER = 5
"""Numbers of a job before a loop's own: the loop, who tells a thread's number and the team's size, shares, images."""


class MachineCode:
    """Machine code for this processor.

    A batch is cut into as many shares as torch has threads, in order, about as torch divides it: what a thread works
    on is in its core's cache. Which images are in a share does not depend on which threads do the work.

    Args:
        text: A module in LLVM's language, of functions that `Loop` wrote.
    """

    def __init__(self, text: str) -> None:
        binding.initialize_native_target()
        binding.initialize_native_asmprinter()
        machine = binding.Target.from_default_triple().create_target_machine(
            cpu=binding.get_host_cpu_name(), features=binding.get_host_cpu_features().flatten(), opt=2
        )
        module = binding.parse_assembly(text)
        module.verify()
        passes = binding.create_pass_builder(machine, binding.create_pipeline_tuning_options(speed_level=2))
        passes.getModulePassManager().run(module, passes)
        self._engine = binding.create_mcjit_compiler(module, machine)
        self._engine.finalize_object()
        self._functions: dict[str, tuple[int, Callable[..., None]]] = {}
        self._share = self._engine.get_function_address("share")
        self._parallel: Callable[..., None] | None = None
        self._who = [0, 0]
        threads = _threads_of_torch()
        if threads is not None:
            pointer, number = ctypes.c_void_p, ctypes.c_uint
            self._parallel = ctypes.CFUNCTYPE(None, pointer, pointer, number, number)(("GOMP_parallel", threads))
            names = ("omp_get_thread_num", "omp_get_num_threads")
            self._who = [ctypes.cast(getattr(threads, name), pointer).value or 0 for name in names]

    @property
    def is_parallel(self) -> bool:
        """Whether it runs in as many threads as torch, not in one."""
        return self._parallel is not None

    def run(self, name: str, num_images: int, values: Sequence[int]) -> None:
        """Run a loop over a batch.

        Args:
            name: Its name in the module.
            num_images: Size of the batch.
            values: What the loop takes: addresses and sizes.
        """
        if name not in self._functions:
            address = self._engine.get_function_address(name)
            self._functions[name] = address, ctypes.CFUNCTYPE(None, ctypes.c_void_p, *[ctypes.c_int64] * 3)(address)
        address, function = self._functions[name]
        num_shares = torch.get_num_threads()
        job = (ctypes.c_int64 * (_HEADER + len(values)))(address, *self._who, num_shares, num_images, *values)
        if num_shares > 1 and self._parallel is not None:
            self._parallel(self._share, ctypes.addressof(job), num_shares, 0)
            return
        for share in range(num_shares):
            first, end = (num_images * number // num_shares for number in (share, share + 1))
            function(ctypes.addressof(job), first, end, share)


def sum_of_shares(values: Tensor) -> Tensor:
    """Add up what each share came to, ``[share, ...]``."""
    return values[0] if len(values) == 1 else values.sum(0)


def new_module(name: str) -> Any:
    """Return a module of LLVM that has what threads begin with; `str` of it is what `MachineCode` takes."""
    module = ir.Module(name)
    module.triple = binding.get_process_triple()
    _write_share(module)
    return module


def has_fused_multiply_add() -> bool:
    """Return whether the processor multiplies and adds in one instruction."""
    features = binding.get_host_cpu_features()
    return bool(features.get("fma")) or bool(features.get("neon"))


def has_brain_float_products() -> bool:
    """Return whether the processor multiplies bfloat16, sixteen pairs at a time (AVX512-BF16)."""
    return bool(binding.get_host_cpu_features().get("avx512bf16"))


@cache
def may_multiply_tiles() -> bool:
    """Return whether the processor multiplies tiles of bfloat16 (AMX) and the system lets this process."""
    if not binding.get_host_cpu_features().get("amx-bf16") or platform.machine() != "x86_64":
        return False
    if sys.platform != "linux":
        return False
    return bool(ctypes.CDLL(None).syscall(*_ASK_FOR_TILES) == 0)


def may_choose_lanes() -> bool:
    """Return whether the processor puts sixteen float32 into any order in one instruction (AVX512F)."""
    return bool(binding.get_host_cpu_features().get("avx512f"))


def float_lanes() -> int:
    """Return how many float32 the processor computes with at once, 8 or 16."""
    return 16 if may_choose_lanes() else 8


@dataclass(frozen=True)
class Array:
    """An array in memory.

    Attributes:
        address: Where it is, a 64-bit number of LLVM.
        kind: LLVM's type of its numbers.
    """

    address: Any
    kind: Any


class Loop:
    """A function that visits images ``first`` to ``end``, as it is written.

    Args:
        module: Where it goes.
        name: Its name.
        num_values: How many values its jobs have.

    Attributes:
        builder: Where instructions go.
        first: Number of the first image.
        end: Number of the image after the last one.
        share: Number of the share.
        values: The job's values, 64-bit numbers.
    """

    def __init__(self, module: Any, name: str, num_values: int) -> None:
        self._module = module
        kind = ir.FunctionType(ir.VoidType(), [SIZE.as_pointer(), SIZE, SIZE, SIZE])
        self._function = ir.Function(module, kind, name)
        self.builder = at = ir.IRBuilder(self._function.append_basic_block())
        job, self.first, self.end, self.share = self._function.args
        self.values = [at.load(at.gep(job, [SIZE(_HEADER + place)])) for place in range(num_values)]

    def close(self) -> None:
        """End the function."""
        self.builder.ret_void()

    @contextmanager
    def visit(self, begin: Any, end: Any, step: int = 1) -> Iterator[Any]:
        """Repeat what is written in the block; give its index."""
        index = self.variable(SIZE, _number(begin))
        after = self._open(lambda value: self.builder.icmp_signed("<", value, _number(end)), index)
        value = self.builder.load(index)
        yield value
        self.builder.store(self.builder.add(value, SIZE(step)), index)
        self._close(after)

    @contextmanager
    def visit_ones(self, mask: Any) -> Iterator[Any]:
        """Repeat what is written in the block for each bit of a mask that is 1; give its number, lowest first."""
        kind = mask.type
        rest = self.variable(kind, mask)
        after = self._open(lambda value: self.builder.icmp_unsigned("!=", value, kind(0)), rest)
        value = self.builder.load(rest)
        number = self.builder.cttz(value, ir.IntType(1)(1))
        yield number if kind.width == SIZE.width else self.builder.zext(number, SIZE)
        self.builder.store(self.builder.and_(value, self.builder.sub(value, kind(1))), rest)
        self._close(after)

    @contextmanager
    def visit_pairs_of_ones(self, mask: Any) -> Iterator[tuple[Any, Any, Any]]:
        """The same for two bits at a time; give both numbers and whether there is a second, else it is the first."""
        at, kind = self.builder, mask.type
        rest = self.variable(kind, mask)
        after = self._open(lambda value: at.icmp_unsigned("!=", value, kind(0)), rest)

        def next_one() -> Any:
            value = at.load(rest)
            at.store(at.and_(value, at.sub(value, kind(1))), rest)
            number = at.cttz(value, ir.IntType(1)(0))
            return number if kind.width == SIZE.width else at.zext(number, SIZE)

        first = next_one()
        is_pair = at.icmp_unsigned("!=", at.load(rest), kind(0))
        second = at.select(is_pair, next_one(), first)
        yield first, second, is_pair
        self._close(after)

    def variable(self, kind: Any, value: Any) -> Any:
        """Return where a local variable is, which LLVM keeps in a register."""
        with self.builder.goto_entry_block():
            place = self.builder.alloca(kind)
        self.builder.store(value, place)
        return place

    def total(self, *terms: Any) -> Any:
        """Add 64-bit numbers."""
        result, *rest = map(_number, terms)
        for term in rest:
            result = self.builder.add(result, term)
        return result

    def product(self, *factors: Any) -> Any:
        """Multiply 64-bit numbers."""
        result, *rest = map(_number, factors)
        for factor in rest:
            result = self.builder.mul(result, factor)
        return result

    def part(self, array: Array, number: Any, length: Any) -> Array:
        """Return the array of so many numbers that has this place in an array of them."""
        address = self.builder.inttoptr(array.address, array.kind.as_pointer())
        begin = self.builder.gep(address, [self.product(number, length)])
        return Array(self.builder.ptrtoint(begin, SIZE), array.kind)

    def load(self, array: Array, offset: Any, lanes: int | None = None) -> Any:
        """Read one number, or a vector of several."""
        kind = array.kind if lanes is None else ir.VectorType(array.kind, lanes)
        return self.builder.load(self._at(array, offset, kind), align=1)

    def store(self, value: Any, array: Array, offset: Any) -> None:
        """Write one number, or a vector of several."""
        self.builder.store(value, self._at(array, offset, value.type), align=1)

    def multiply_add(self, first: Any, second: Any, third: Any) -> Any:
        """Return ``first * second + third`` of float32 vectors, rounded once."""
        kind = first.type
        name = f"llvm.fma.v{kind.count}f32"
        function = self._module.globals.get(name) or ir.Function(self._module, ir.FunctionType(kind, [kind] * 3), name)
        return self.builder.call(function, [first, second, third])

    def add_pairs(self, first: Any, second: Any, third: Any) -> Any:
        """Return ``third + first[0] * second[0] + first[1] * second[1]`` in each of 16 lanes, with AVX512-BF16.

        Args:
            first: In each lane two bfloat16, as 32-bit numbers.
            second: The same.
            third: float32.
        """
        name, pairs = "llvm.x86.avx512bf16.dpbf16ps.512", ir.VectorType(_BFLOAT, 2 * third.type.count)
        kind = ir.FunctionType(third.type, [third.type, pairs, pairs])
        function = self._module.globals.get(name) or ir.Function(self._module, kind, name)
        return self.builder.call(function, [third, *(self.builder.bitcast(value, pairs) for value in (first, second))])

    def interleaved(self, first: Any, second: Any, lanes: Sequence[int]) -> Any:
        """Return pairs of 16-bit numbers, as 32-bit numbers: for each of these lanes that of both vectors."""
        order = [lane + side * first.type.count for lane in lanes for side in (0, 1)]
        return self.builder.bitcast(self.shuffled(first, second, order), ir.VectorType(WORD, len(lanes)))

    def shuffled(self, first: Any, second: Any, order: Sequence[int]) -> Any:
        """Return a vector of lanes of two others, those of the second numbered on."""
        return self.builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(WORD, len(order)), list(order)))

    def chosen(self, vector: Any, lanes: Any) -> Any:
        """Return for each of 16 lanes that lane of a float32 vector whose number is there, with `may_choose_lanes`.

        Args:
            vector: What is chosen from.
            lanes: Numbers of 32 bits, of which the lowest four bits count.
        """
        name = "llvm.x86.avx512.permvar.sf.512"
        kind = ir.FunctionType(vector.type, [vector.type, lanes.type])
        function = self._module.globals.get(name) or ir.Function(self._module, kind, name)
        return self.builder.call(function, [vector, lanes])

    @contextmanager
    def tiles(self, shapes: Any) -> Iterator[None]:
        """Use tiles of some shapes in the block; afterwards they are as they were, for whoever else uses them.

        Args:
            shapes: Address of the 64 bytes that the processor is told.
        """
        at = self.builder
        with at.goto_entry_block():
            before = at.bitcast(at.alloca(ir.ArrayType(BYTE, 64)), BYTE.as_pointer())
        self._instruct("sttilecfg", before)
        self._instruct("ldtilecfg", at.inttoptr(shapes, BYTE.as_pointer()))
        yield
        self._instruct("ldtilecfg", before)

    def zero_tile(self, number: int) -> None:
        """Make all numbers of a tile 0."""
        self._instruct("tilezero", BYTE(number))

    def load_tile(self, number: int, array: Array, offset: Any, stride: int) -> None:
        """Read a tile whose rows are so many bytes apart."""
        self._instruct("tileloadd64", BYTE(number), self._at(array, offset, BYTE), SIZE(stride))

    def store_tile(self, number: int, array: Array, offset: Any, stride: int) -> None:
        """Write a tile, its rows so many bytes apart."""
        self._instruct("tilestored64", BYTE(number), self._at(array, offset, BYTE), SIZE(stride))

    def multiply_tiles(self, result: int, first: int, second: int) -> None:
        """Add the product of two tiles of bfloat16 to one of float32; the second has pairs of its rows together."""
        self._instruct("tdpbf16ps", BYTE(result), BYTE(first), BYTE(second))

    def _instruct(self, name: str, *values: Any) -> None:
        name = f"llvm.x86.{name}"
        kind = ir.FunctionType(ir.VoidType(), [value.type for value in values])
        function = self._module.globals.get(name) or ir.Function(self._module, kind, name)
        for place, value in enumerate(values):
            if value.type == BYTE:
                function.args[place].add_attribute("immarg")
        self.builder.call(function, values)

    def everywhere(self, number: Any, lanes: int) -> Any:
        """Return a vector with one number in all lanes."""
        kind = ir.VectorType(number.type, lanes)
        nothing = ir.Constant(kind, ir.Undefined)
        return self.builder.shuffle_vector(
            self.builder.insert_element(nothing, number, WORD(0)), nothing, constant(WORD, 0, lanes)
        )

    def widened(self, value: Any) -> Any:
        """Return float32 for the bits of bfloat16; float32 as it is."""
        lanes = value.type.count if isinstance(value.type, ir.VectorType) else None
        if _kind_of(value) == FLOAT:
            return value
        shift = WORD(16) if lanes is None else constant(WORD, 16, lanes)
        words = self.builder.zext(value, shift.type)
        return self.builder.bitcast(
            self.builder.shl(words, shift), FLOAT if lanes is None else ir.VectorType(FLOAT, lanes)
        )

    def narrowed(self, vector: Any, kind: Any) -> Any:
        """Return a float32 vector as it is, or as bits of bfloat16: to the nearest, ties to even.

        Where the processor does it (AVX512-BF16), what is denormal becomes 0.
        """
        if kind == FLOAT:
            return vector
        if vector.type.count == 16 and has_brain_float_products():
            return self.converted(vector)
        at, lanes = self.builder, vector.type.count
        words = at.bitcast(vector, ir.VectorType(WORD, lanes))
        is_odd = at.and_(at.lshr(words, constant(WORD, 16, lanes)), constant(WORD, 1, lanes))
        rounded = at.add(words, at.add(is_odd, constant(WORD, 0x7FFF, lanes)))
        return at.trunc(at.lshr(rounded, constant(WORD, 16, lanes)), ir.VectorType(SHORT, lanes))

    def converted(self, vector: Any) -> Any:
        """Return a float32 vector as bits of bfloat16 in one instruction of AVX512-BF16; what is denormal becomes 0."""
        lanes = vector.type.count
        short = self.builder.fptrunc(vector, ir.VectorType(_BFLOAT, lanes))
        return self.builder.bitcast(short, ir.VectorType(SHORT, lanes))

    def _at(self, array: Array, offset: Any, kind: Any) -> Any:
        address = self.builder.inttoptr(array.address, array.kind.as_pointer())
        place = self.builder.gep(address, [_number(offset)])
        return place if kind == array.kind else self.builder.bitcast(place, kind.as_pointer())

    def _open(self, goes_on: Callable[[Any], Any], variable: Any) -> tuple[Any, Any]:
        head, body, after = (self._function.append_basic_block() for _ in range(3))
        self.builder.branch(head)
        self.builder.position_at_end(head)
        self.builder.cbranch(goes_on(self.builder.load(variable)), body, after)
        self.builder.position_at_end(body)
        return head, after

    def _close(self, blocks: tuple[Any, Any]) -> None:
        head, after = blocks
        self.builder.branch(head)
        self.builder.position_at_end(after)


def constant(kind: Any, value: float, lanes: int) -> Any:
    """Return a vector of LLVM with one constant in all lanes."""
    return ir.Constant(ir.VectorType(kind, lanes), [value] * lanes)


def _number(value: Any) -> Any:
    return SIZE(value) if isinstance(value, int) else value


def _kind_of(value: Any) -> Any:
    return value.type.element if isinstance(value.type, ir.VectorType) else value.type


def _threads_of_torch() -> ctypes.CDLL | None:
    """Return what finds the GNU runtime that torch itself is bound to: another copy would have threads of its own."""
    try:
        library = ctypes.CDLL(
            str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"), os.RTLD_NOLOAD | os.RTLD_NOW
        )
        return library if library.GOMP_parallel and library.omp_get_num_threads else None
    except (OSError, AttributeError):  # another system's name, or another runtime
        return None


def _write_share(module: Any) -> None:
    """What each thread of a team runs: the loop over one share after the other, until none is left for it."""
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [SIZE.as_pointer()]), "share")
    at = ir.IRBuilder(function.append_basic_block())
    (job,) = function.args
    loop, *who, num_shares, images = (at.load(at.gep(job, [SIZE(place)])) for place in range(_HEADER))
    tell = ir.FunctionType(WORD, []).as_pointer()
    thread, team = (at.zext(at.call(at.inttoptr(address, tell), []), SIZE) for address in who)
    kind = ir.FunctionType(ir.VoidType(), [SIZE.as_pointer(), SIZE, SIZE, SIZE]).as_pointer()
    before = at.block
    head, body, after = (function.append_basic_block() for _ in range(3))
    at.branch(head)
    at.position_at_end(head)
    share = at.phi(SIZE)
    share.add_incoming(thread, before)
    at.cbranch(at.icmp_unsigned("<", share, num_shares), body, after)
    at.position_at_end(body)
    first, end = (at.udiv(at.mul(images, part), num_shares) for part in (share, at.add(share, SIZE(1))))
    at.call(at.inttoptr(loop, kind), [job, first, end, share])
    share.add_incoming(at.add(share, team), at.block)
    at.branch(head)
    at.position_at_end(after)
    at.ret_void()
