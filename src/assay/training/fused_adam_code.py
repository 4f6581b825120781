"""The loops of `assay.training.fused_adam`, written for LLVM."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from assay.models.native import (
    FLOAT,
    SHORT,
    SIZE,
    WORD,
    Array,
    Loop,
    MachineCode,
    constant,
    has_fused_multiply_add,
    new_module,
)
from assay.training.fused_adam import COLUMNS
from assay.training.penalty import LANES
from assay.training.penalty_code import add_sums, penalized, store_sums


def make_code(is_lowered: bool) -> MachineCode:
    """Make the machine code of `assay.training.fused_adam.FusedAdam`.

    Args:
        is_lowered: Whether the weights are wanted in bfloat16, too, and large gradients are.

    Raises:
        RuntimeError: The processor does not multiply and add in one instruction; or LLVM cannot.
    """
    if not has_fused_multiply_add():
        raise RuntimeError("the processor has no fused multiply-add")
    module = new_module("adam")
    _write_measure(module, is_lowered)
    _write_step(module, is_lowered)
    return MachineCode(str(module))


def _write_measure(module: Any, is_lowered: bool) -> None:
    loop = Loop(module, "measure", num_values=6)
    at = loop.builder
    table, addresses, values, sums, *bits = loop.values
    factors = _floats(loop, bits)
    with loop.visit(loop.first, loop.end) as row:

        def measure(chunk: _Chunk, lanes: int, first: Any, last: Any) -> None:
            own = [loop.everywhere(at.select(chunk.is_weight, factor, FLOAT(0)), lanes) for factor in factors]
            totals = add_sums(loop, Array(values, FLOAT), chunk.gradient, own, chunk.first, first, last)
            nothing = constant(FLOAT, 0, lanes)
            weights = [at.select(chunk.is_weight, total, nothing) for total in totals[:2]]
            store_sums(loop, [*weights, totals[2]], Array(sums, FLOAT), row)

        _visit_chunk(loop, table, addresses, row, is_lowered, measure)
    loop.close()


def _write_step(module: Any, is_lowered: bool) -> None:
    loop = Loop(module, "step", num_values=16)
    at = loop.builder
    table, addresses, values, averages, squares, lowered, *bits = loop.values
    numbers = _floats(loop, bits)
    places = [Array(array, FLOAT) for array in (values, averages, squares)]
    with loop.visit(loop.first, loop.end) as row:

        def step(chunk: _Chunk, lanes: int, first: Any, last: Any) -> None:
            l1, l2, clip, decay, *others = numbers
            own = (at.select(chunk.is_weight, number, FLOAT(no)) for number, no in ((l1, 0), (l2, 0), (decay, 1)))
            l1, l2, decay, clip, *others = (loop.everywhere(number, lanes) for number in (*own, clip, *others))
            of_gradient, beta2, of_square, correction, eps, rate = others
            # torch's interpolation starts from the end that is nearer.
            is_near = at.fcmp_ordered("<", numbers[4], FLOAT(0.5))
            share = at.select(is_near, of_gradient, at.fsub(of_gradient, constant(FLOAT, 1, lanes)))
            with loop.visit(first, last, step=lanes) as offset:
                here = loop.total(chunk.first, offset)
                weight, average, square = (loop.load(array, here, lanes) for array in places)
                value = loop.widened(loop.load(chunk.gradient, offset, lanes))
                value = at.fmul(penalized(loop, weight, value, l1, l2), clip)
                start = at.select(is_near, average, value)
                average = loop.multiply_add(share, at.fsub(value, average), start)
                square = loop.multiply_add(at.fmul(of_square, value), value, at.fmul(square, beta2))
                divisor = at.fadd(at.fdiv(_root(loop, square), correction), eps)
                weight = at.fadd(at.fmul(weight, decay), at.fdiv(at.fmul(rate, average), divisor))
                for result, array in zip((weight, average, square), places, strict=True):
                    loop.store(result, array, here)
                if chunk.gradient.kind == SHORT:
                    loop.store(loop.narrowed(weight, SHORT), Array(lowered, SHORT), here)

        _visit_chunk(loop, table, addresses, row, is_lowered, step)
    loop.close()


@dataclass(frozen=True)
class _Chunk:
    """Some values of a parameter.

    Attributes:
        first: Number of the first one.
        gradient: Their gradient.
        is_weight: Whether the terms and the decay act on them, one bit.
    """

    first: Any
    gradient: Array
    is_weight: Any


def _visit_chunk(
    loop: Loop, table: Any, addresses: Any, row: Any, is_lowered: bool, write: Callable[[_Chunk, int, Any, Any], None]
) -> None:
    """Write what is to be done with a chunk, for whole vectors and for the rest, and for both types of gradients.

    Args:
        loop: Where it is written.
        table: Address of the rows of `assay.training.fused_adam`.
        addresses: Address of where the gradient of each parameter is.
        row: Number of the chunk.
        is_lowered: Whether there are gradients in bfloat16.
        write: Called with a chunk, the lanes of a vector, and the first and the end of what is to be visited.
    """
    at, width = loop.builder, len(COLUMNS)
    cells = [loop.load(Array(table, SIZE), loop.total(loop.product(row, width), column)) for column in range(width)]
    first, length, number, offset, has_lowered, is_weight = cells
    address = loop.load(Array(addresses, SIZE), number)
    whole = at.and_(length, SIZE(-LANES))
    kinds = [(SHORT, SIZE(0), has_lowered)] if is_lowered else []
    for kind, no, yes in (*kinds, (FLOAT, has_lowered, SIZE(1))):
        with loop.visit(no, yes):  # once, or not at all
            gradient = loop.part(Array(address, kind), offset, 1)
            chunk = _Chunk(first, gradient, at.icmp_signed("!=", is_weight, SIZE(0)))
            write(chunk, LANES, SIZE(0), whole)
            write(chunk, 1, whole, length)


def _floats(loop: Loop, bits: list[Any]) -> list[Any]:
    at = loop.builder
    return [at.bitcast(at.trunc(number, WORD), FLOAT) for number in bits]


def _root(loop: Loop, value: Any) -> Any:
    kind = value.type
    name = f"llvm.sqrt.v{kind.count}f32"
    module = loop.builder.module
    function = module.globals.get(name) or ir.Function(module, ir.FunctionType(kind, [kind]), name)
    return loop.builder.call(function, [value])
