"""Decides the conditions and clips of an expression within a box, and finds where to cut it for those left open."""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import tirx

from tvmbridge.schedules.loops.expressions import is_choice
from tvmbridge.schedules.loops.indices import Box, Linear, analyzer, at, linear, offset, range_of

_COMPARISONS = (tirx.LT, tirx.LE, tirx.GT, tirx.GE, tirx.EQ, tirx.NE)


def _is_integer(expr: tvm.ir.Expr) -> bool:
    """Whether it may be an index. Unsigned integers are data: TVM has no -1 of them for a difference.

    tvm_ffi's structural_map does not survive what a callback raises: it damages the heap.
    """
    return str(expr.ty.dtype).startswith("int")


def _decided(comparison: tirx.LT, box: Box) -> tvm.ir.Expr:
    """A comparison, or its result where the box decides it."""
    if not _is_integer(comparison.a):
        return comparison
    ends = range_of(linear(comparison.a) - linear(comparison.b), box)
    if ends is None:
        return comparison
    low, high = ends
    outcomes = {
        tirx.LT: (high < 0, low >= 0),
        tirx.LE: (high <= 0, low > 0),
        tirx.GT: (low > 0, high <= 0),
        tirx.GE: (low >= 0, high < 0),
        tirx.EQ: (low == high == 0, low > 0 or high < 0),
        tirx.NE: (low > 0 or high < 0, low == high == 0),
    }
    yes, no = outcomes[type(comparison)]
    return tirx.IntImm("bool", int(yes)) if yes or no else comparison


def simplified(value: tvm.ir.Expr, box: Box) -> tvm.ir.Expr:
    """The value with what the box decides decided, and its offsets simplified; floating point is left as it is."""
    simplify = analyzer(box).simplify

    def truth(expr: tvm.ir.Expr) -> bool | None:
        return bool(int(expr)) if isinstance(expr, tirx.IntImm) else None

    def compare(node: tirx.LT) -> tvm.ir.Expr:
        if not _is_integer(node.a):
            return node
        return _decided(type(node)(simplify(node.a), simplify(node.b)), box)

    def cast(node: tirx.Cast) -> tvm.ir.Expr:
        return tirx.Cast(node.ty.dtype, simplify(node.value)) if _is_integer(node.value) else node

    def both(node: tirx.And) -> tvm.ir.Expr:
        a, b = truth(node.a), truth(node.b)
        if a is False or b is True:
            return node.a
        return node.b if a is True or b is False else node

    def either(node: tirx.Or) -> tvm.ir.Expr:
        a, b = truth(node.a), truth(node.b)
        if a is True or b is False:
            return node.a
        return node.b if a is False or b is True else node

    def choose(node: tirx.Select) -> tvm.ir.Expr:
        known = truth(node.condition)
        return node if known is None else node.true_value if known else node.false_value

    def call(node: tvm.ir.Call) -> tvm.ir.Expr:
        known = truth(node.args[0]) if is_choice(node) else None
        return node if known is None else node.args[1] if known else node.args[2]

    def extreme(node: tirx.Min | tirx.Max) -> tvm.ir.Expr:
        if not _is_integer(node):
            return node
        first_is_less = truth(_decided(tirx.LE(node.a, node.b), box))
        if first_is_less is None:
            return node
        return node.a if first_is_less == isinstance(node, tirx.Min) else node.b

    def divide(node: tirx.FloorDiv | tirx.FloorMod) -> tvm.ir.Expr:
        ends = range_of(linear(node.a), box)
        if ends is None or not isinstance(node.b, tirx.IntImm) or ends[0] // int(node.b) != ends[1] // int(node.b):
            return node
        quotient = ends[0] // int(node.b)
        if isinstance(node, tirx.FloorDiv):
            return tirx.IntImm(str(node.ty.dtype), quotient)
        return node.a - quotient * int(node.b)

    def load(node: tvm.ir.TensorLoad) -> tvm.ir.Expr:
        return tirx.BufferLoad(node.source, at(node.source, simplify(offset(node))))

    return tvm_ffi.structural_map(
        value,
        [
            (tvm.ir.TensorLoad, load),
            (_COMPARISONS, compare),
            (tirx.Cast, cast),
            ((tirx.FloorDiv, tirx.FloorMod), divide),
            (tirx.And, both),
            (tirx.Or, either),
            (tirx.Select, choose),
            (tvm.ir.Call, call),
            ((tirx.Min, tirx.Max), extreme),
        ],
    )


def boundary(value: tvm.ir.Expr, box: Box) -> tuple[int, int] | None:
    """(which axis of the box, position on it) where some condition or clip of the value changes; None: nowhere."""
    found: list[tuple[int, int]] = []

    def note(node: tirx.LT) -> None:
        if not found and _is_integer(node.a):
            cut = _zero(linear(node.a) - linear(node.b), box)
            if cut is not None:
                found.append(cut)

    tvm_ffi.structural_walk(value, ((*_COMPARISONS, tirx.Min, tirx.Max), note))
    return found[0] if found else None


def _zero(difference: Linear, box: Box) -> tuple[int, int] | None:
    """Where along its coarsest axis a sum passes through 0; None where that is not at one position."""
    ends = range_of(difference, box)
    if ends is None or not ends[0] <= 0 <= ends[1] or not difference.steps:
        return None
    var = max(difference.steps, key=lambda var: abs(difference.steps[var]))
    place = next(i for i, (axis, _, _) in enumerate(box) if axis.var.same_as(var))
    _, first, end = box[place]
    step = difference.steps[var]
    rest = range_of(difference + Linear({var: -step}, 0, ()), box)
    if rest is None or end - first < 2 or rest[1] - rest[0] >= abs(step):
        return None
    # step * x + [rest] reaches over 0 only around x = -rest / step.
    around = sorted({-(rest[0] // step), -(rest[1] // step)} if step > 0 else {rest[0] // -step, rest[1] // -step})
    inside = [x for centre in around for x in (centre, centre + 1) if first < x < end]
    return (place, inside[0]) if inside else None
