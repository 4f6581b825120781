"""The loop of `assay.training.penalty`, written for LLVM."""

from typing import Any

from assay.models.native import (
    FLOAT,
    SIZE,
    WORD,
    Array,
    Loop,
    MachineCode,
    constant,
    has_fused_multiply_add,
    new_module,
)
from assay.training.penalty import CHUNK, LANES


def make_code() -> MachineCode:
    """Make the machine code of `assay.training.penalty.PenaltyLoop`.

    Raises:
        RuntimeError: The processor does not multiply and add in one instruction; or LLVM cannot.
    """
    if not has_fused_multiply_add():
        raise RuntimeError("the processor has no fused multiply-add")
    module = new_module("penalty")
    loop = Loop(module, "penalty", num_values=6)
    at = loop.builder
    weights, gradient, sums, length, *bits = loop.values
    arrays = Array(weights, FLOAT), Array(gradient, FLOAT)
    factors = [at.bitcast(at.trunc(number, WORD), FLOAT) for number in bits]
    with loop.visit(loop.first, loop.end) as chunk:
        begin = loop.product(chunk, CHUNK)
        rest = at.sub(length, begin)
        end = loop.total(begin, at.select(at.icmp_signed("<", rest, SIZE(CHUNK)), rest, SIZE(CHUNK)))
        whole = loop.total(begin, at.and_(at.sub(end, begin), SIZE(-LANES)))
        for lanes, first, last in ((LANES, begin, whole), (1, whole, end)):
            totals = _add(loop, arrays, [loop.everywhere(factor, lanes) for factor in factors], first, last)
            for number, total in enumerate(totals):
                place = loop.product(loop.total(loop.product(chunk, 3), number), LANES + 1)
                loop.store(total, Array(sums, FLOAT), loop.total(place, 0 if lanes == LANES else LANES))
    loop.close()
    return MachineCode(str(module))


def _add(loop: Loop, arrays: tuple[Array, Array], factors: list[Any], first: Any, last: Any) -> list[Any]:
    """Add the terms' gradient to a part of the gradient, a vector at a time; return the sums, lane by lane."""
    at, lanes = loop.builder, factors[0].type.count
    weights, gradient = arrays
    l1, l2 = factors
    zeros = constant(FLOAT, 0, lanes)
    sums = [loop.variable(zeros.type, zeros) for _ in range(3)]
    with loop.visit(first, last, step=lanes) as place:
        weight = loop.load(weights, place, lanes)
        is_positive, is_negative = at.fcmp_ordered(">", weight, zeros), at.fcmp_ordered("<", weight, zeros)
        signed = at.select(is_positive, l1, at.select(is_negative, at.fneg(l1), zeros))
        value = loop.multiply_add(l2, weight, at.fadd(loop.load(gradient, place, lanes), signed))
        loop.store(value, gradient, place)
        absolute = at.select(is_negative, at.fneg(weight), weight)
        at.store(at.fadd(at.load(sums[0]), absolute), sums[0])
        for factor, total in ((weight, sums[1]), (value, sums[2])):
            at.store(loop.multiply_add(factor, factor, at.load(total)), total)
    return [at.load(total) for total in sums]
