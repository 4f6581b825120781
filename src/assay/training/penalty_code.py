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
            own = [loop.everywhere(factor, lanes) for factor in factors]
            totals = add_sums(loop, *arrays, own, 0, first, last, is_written=True)
            store_sums(loop, totals, Array(sums, FLOAT), chunk)
    loop.close()
    return MachineCode(str(module))


def penalized(loop: Loop, weight: Any, gradient: Any, l1: Any, l2: Any) -> Any:
    """Return ``gradient + l1 * sign(weight) + l2 * weight`` of vectors."""
    at, zeros = loop.builder, constant(FLOAT, 0, weight.type.count)
    is_positive, is_negative = at.fcmp_ordered(">", weight, zeros), at.fcmp_ordered("<", weight, zeros)
    signed = at.select(is_positive, l1, at.select(is_negative, at.fneg(l1), zeros))
    return loop.multiply_add(l2, weight, at.fadd(gradient, signed))


def add_sums(
    loop: Loop,
    weights: Array,
    gradient: Array,
    factors: list[Any],
    begin: Any,
    first: Any,
    last: Any,
    *,
    is_written: bool = False,
) -> list[Any]:
    """Add up a part of the weights, lane by lane: ``|w|``, ``w^2``, and the squares of the gradient with the terms.

    Args:
        loop: Where it is written.
        weights: The weights, float32.
        gradient: Gradients, as float32 or as bits of bfloat16.
        factors: Those of the L1 and the L2 term, in all lanes.
        begin: The weight that the first number of `gradient` belongs to.
        first: The first number that is visited.
        last: The end of what is visited.
        is_written: Whether the gradient with the terms is written in its place, float32.
    """
    at, lanes = loop.builder, factors[0].type.count
    zeros = constant(FLOAT, 0, lanes)
    sums = [loop.variable(zeros.type, zeros) for _ in range(3)]
    with loop.visit(first, last, step=lanes) as place:
        weight = loop.load(weights, loop.total(begin, place), lanes)
        value = penalized(loop, weight, loop.widened(loop.load(gradient, place, lanes)), *factors)
        if is_written:
            loop.store(value, gradient, place)
        absolute = at.select(at.fcmp_ordered("<", weight, zeros), at.fneg(weight), weight)
        at.store(at.fadd(at.load(sums[0]), absolute), sums[0])
        for factor, total in ((weight, sums[1]), (value, sums[2])):
            at.store(loop.multiply_add(factor, factor, at.load(total)), total)
    return [at.load(total) for total in sums]


def store_sums(loop: Loop, totals: list[Any], sums: Array, chunk: Any) -> None:
    """Write what `add_sums` came to into ``[chunk, sum, lane]``, single numbers after the lanes."""
    lanes = totals[0].type.count
    for number, total in enumerate(totals):
        place = loop.product(loop.total(loop.product(chunk, 3), number), LANES + 1)
        loop.store(total, sums, loop.total(place, 0 if lanes == LANES else LANES))
