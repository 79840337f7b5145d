"""An element-wise stage read as pieces: boxes of its output in which no condition is open and offsets are linear.

The output is taken as one flat index. Every division and remainder of it that occurs (reshapes, transposes, tiles,
broadcasts) cuts it into digits, the axes of the piece, of which the offsets of most reads are linear sums; conditions
and clips on an axis (concat, pad) cut the box in two. What is then contiguous in all reads and the write is one axis.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import tvm
import tvm.sym
import tvm_ffi
from tvm import tirx

from tvmbridge.schedules.cpu.emit import number
from tvmbridge.schedules.cpu.stages import Axis, Stage, stores_at_its_axes, substitute

# A stage that falls into more is left with conditions in its loops: code grows with every piece.
_MAX_PIECES = 64
_COMPARISONS = (tirx.LT, tirx.LE, tirx.GT, tirx.GE, tirx.EQ, tirx.NE)


@dataclasses.dataclass(frozen=True)
class Piece:
    """`buffer[offset] = value` for every point of the axes, outermost first, none of extent 1.

    Offsets, the loads' too, count elements from the start of the buffer: see `at`.
    """

    axes: tuple[Axis, ...]
    buffer: tvm.ir.Var
    offset: tvm.ir.Expr
    value: tvm.ir.Expr


@dataclasses.dataclass(frozen=True)
class Linear:
    """A sum: `steps[v] * v` for each variable, a constant, and terms that are neither."""

    steps: Mapping[tvm.ir.Var, int]
    constant: int
    others: tuple[tvm.ir.Expr, ...]

    def __add__(self, other: Linear) -> Linear:
        steps = dict(self.steps)
        for var, step in other.steps.items():
            steps[var] = steps.get(var, 0) + step
        steps = {var: step for var, step in steps.items() if step}
        return Linear(steps, self.constant + other.constant, self.others + other.others)

    def __mul__(self, factor: int) -> Linear:
        steps = {var: step * factor for var, step in self.steps.items()}
        return Linear(steps, self.constant * factor, tuple(other * factor for other in self.others))


def linear(expr: tvm.ir.Expr) -> Linear:
    """An integer expression as a sum."""
    if isinstance(expr, tirx.IntImm):
        return Linear({}, int(expr), ())
    if isinstance(expr, tvm.ir.Var):
        return Linear({expr: 1}, 0, ())
    if isinstance(expr, tirx.Add):
        return linear(expr.a) + linear(expr.b)
    if isinstance(expr, tirx.Sub):
        return linear(expr.a) + linear(expr.b) * -1
    if isinstance(expr, tirx.Mul) and isinstance(expr.b, tirx.IntImm):
        return linear(expr.a) * int(expr.b)
    if isinstance(expr, tirx.Mul) and isinstance(expr.a, tirx.IntImm):
        return linear(expr.b) * int(expr.a)
    return Linear({}, 0, (expr,))


def at(buffer: tvm.ir.Var, offset: tvm.ir.Expr) -> list[tvm.ir.Expr]:
    """The indices of the element at an offset: all in the last, which a row-major layout adds to 0 of the others."""
    return [*(number(0) for _ in buffer.shape[1:]), offset] if len(buffer.shape) else []


def offset_of(load: tvm.ir.TensorLoad) -> tvm.ir.Expr:
    """The offset of a load in a piece."""
    return load.indices[-1] if len(load.indices) else number(0)


def can_be_pieces(stage: Stage) -> bool:
    """Whether the stage stores every element of its buffer once, in order, without a reduction."""
    extents = [axis.extent for axis in stage.spatial]
    shape = [int(axis) for axis in stage.buffer.shape if isinstance(axis, tirx.IntImm)]
    if stage.reduction or len(shape) != len(stage.buffer.shape) or math.prod(shape) != math.prod(extents):
        return False
    return stores_at_its_axes(stage) or (not shape and math.prod(extents) == 1)


def read_pieces(stage: Stage) -> tuple[Piece, ...]:
    """The pieces of a stage that `can_be_pieces`; none where it has no element."""
    size = math.prod(axis.extent for axis in stage.spatial)
    if size == 0:
        return ()
    flat = tvm.ir.Var("flat", "int64")
    places: dict[tvm.ir.Var, tvm.ir.Expr] = {}
    stride = size
    for axis in stage.spatial:
        stride //= axis.extent
        places[axis.var] = tirx.floormod(tirx.floordiv(flat, number(stride)), number(axis.extent))
    whole = [(Axis(flat, size), 0, size)]
    value = _simplified(_with_flat_offsets(substitute(stage.value, places)), whole)
    digits = _digits(value, flat, size)
    offset = number(0)
    stride = size
    for axis in digits:
        stride //= axis.extent
        offset = offset + axis.var * stride
    box = [(axis, 0, axis.extent) for axis in digits]
    value = _simplified(substitute(value, {flat: offset}), box)
    found: list[Piece] = []
    boxes = [(box, value)]
    while boxes:
        box, value = boxes.pop()
        cut = _boundary(value, box) if len(boxes) + len(found) < _MAX_PIECES else None
        if cut is None:
            found.append(_piece(stage.buffer, offset, value, box))
            continue
        place, position = cut
        axis, first, end = box[place]
        for part in ((axis, position, end), (axis, first, position)):  # a stack: the last is the next
            smaller = [*box[:place], part, *box[place + 1 :]]
            boxes.append((smaller, _simplified(value, smaller)))
    return tuple(found)


_Box = Sequence[tuple[Axis, int, int]]


def _with_flat_offsets(value: tvm.ir.Expr) -> tvm.ir.Expr:
    def flat(load: tvm.ir.TensorLoad) -> tvm.ir.Expr:
        offset = number(0)
        for index, extent in zip(load.indices, load.source.shape, strict=True):
            wide = index if str(index.ty.dtype) == "int64" else tirx.Cast("int64", index)
            offset = offset * extent + wide
        return tirx.BufferLoad(load.source, at(load.source, offset))

    return tvm_ffi.structural_map(value, (tvm.ir.TensorLoad, flat))


def _digits(value: tvm.ir.Expr, flat: tvm.ir.Var, size: int) -> list[Axis]:
    """The axes that the divisions in the value cut the flat index into, outermost first."""
    cuts = {size}

    def note(node: tirx.FloorDiv | tirx.FloorMod) -> None:
        by = int(node.b) if isinstance(node.b, tirx.IntImm) else 0
        inner = node.a
        if (isinstance(inner, tvm.ir.Var) and inner.same_as(flat)) or (
            isinstance(inner, tirx.FloorMod) and inner.a.same_as(flat)
        ):
            cuts.add(by)
        elif isinstance(inner, tirx.FloorDiv) and inner.a.same_as(flat) and isinstance(inner.b, tirx.IntImm):
            cuts.add(int(inner.b) * by)

    tvm_ffi.structural_walk(value, (tirx.FloorDiv, note))
    tvm_ffi.structural_walk(value, (tirx.FloorMod, note))
    axes: list[Axis] = []
    below = 1
    for cut in sorted(cuts - {0, 1}):
        if size % cut == 0 and cut % below == 0:
            axes.append(Axis(tvm.ir.Var(f"d{len(axes)}", "int64"), cut // below))
            below = cut
    return axes[::-1]


def _range(sum_: Linear, box: _Box) -> tuple[int, int] | None:
    """The least and the greatest value in the box; None where other terms take part."""
    if sum_.others:
        return None
    bounds = {axis.var: (first, end - 1) for axis, first, end in box}
    if any(var not in bounds for var in sum_.steps):
        return None
    ends = [sorted((step * bounds[var][0], step * bounds[var][1])) for var, step in sum_.steps.items()]
    return sum_.constant + sum(low for low, _ in ends), sum_.constant + sum(high for _, high in ends)


def _is_integer(expr: tvm.ir.Expr) -> bool:
    return str(expr.ty.dtype).startswith(("int", "uint"))


def _decided(comparison: tirx.LT, box: _Box) -> tvm.ir.Expr:
    """A comparison, or its result where the box decides it."""
    if not _is_integer(comparison.a):
        return comparison
    ends = _range(linear(comparison.a) + linear(comparison.b) * -1, box)
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


def _simplified(value: tvm.ir.Expr, box: _Box) -> tvm.ir.Expr:
    """The value with what the box decides decided, and its offsets simplified; floating point is left as it is."""
    analyzer = tvm.sym.Analyzer()
    for axis, first, end in box:
        analyzer.bind(axis.var, tvm.ir.Range(number(first), number(end)))

    def truth(expr: tvm.ir.Expr) -> bool | None:
        return bool(int(expr)) if isinstance(expr, tirx.IntImm) else None

    def compare(node: tirx.LT) -> tvm.ir.Expr:
        if not _is_integer(node.a):
            return node
        return _decided(type(node)(analyzer.simplify(node.a), analyzer.simplify(node.b)), box)

    def cast(node: tirx.Cast) -> tvm.ir.Expr:
        return tirx.Cast(node.ty.dtype, analyzer.simplify(node.value)) if _is_integer(node.value) else node

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
        if getattr(node.op, "name", "") not in ("prim.if_then_else", "tirx.if_then_else"):
            return node
        known = truth(node.args[0])
        return node if known is None else node.args[1] if known else node.args[2]

    def extreme(node: tirx.Min | tirx.Max) -> tvm.ir.Expr:
        if not _is_integer(node):
            return node
        first_is_less = truth(_decided(tirx.LE(node.a, node.b), box))
        if first_is_less is None:
            return node
        return node.a if first_is_less == isinstance(node, tirx.Min) else node.b

    def load(node: tvm.ir.TensorLoad) -> tvm.ir.Expr:
        return tirx.BufferLoad(node.source, at(node.source, analyzer.simplify(offset_of(node))))

    return tvm_ffi.structural_map(
        value,
        [
            (tvm.ir.TensorLoad, load),
            (_COMPARISONS, compare),
            (tirx.Cast, cast),
            (tirx.And, both),
            (tirx.Or, either),
            (tirx.Select, choose),
            (tvm.ir.Call, call),
            ((tirx.Min, tirx.Max), extreme),
        ],
    )


def _boundary(value: tvm.ir.Expr, box: _Box) -> tuple[int, int] | None:
    """(place of an axis in the box, position on it) where some condition or clip of the value changes; None: nowhere."""
    found: list[tuple[int, int]] = []

    def note(node: tirx.LT) -> None:
        if not found and _is_integer(node.a):
            cut = _zero(linear(node.a) + linear(node.b) * -1, box)
            if cut is not None:
                found.append(cut)

    tvm_ffi.structural_walk(value, ((*_COMPARISONS, tirx.Min, tirx.Max), note))
    return found[0] if found else None


def _zero(difference: Linear, box: _Box) -> tuple[int, int] | None:
    """Where along its coarsest axis a sum passes through 0; None where that is not at one position."""
    ends = _range(difference, box)
    if ends is None or not ends[0] <= 0 <= ends[1] or not difference.steps:
        return None
    var = max(difference.steps, key=lambda var: abs(difference.steps[var]))
    place = next(i for i, (axis, _, _) in enumerate(box) if axis.var.same_as(var))
    _, first, end = box[place]
    step = difference.steps[var]
    rest = _range(difference + Linear({var: -step}, 0, ()), box)
    if rest is None or end - first < 2 or rest[1] - rest[0] >= abs(step):
        return None
    # step * x + [rest] reaches over 0 only around x = -rest / step.
    around = sorted({-(rest[0] // step), -(rest[1] // step)} if step > 0 else {rest[0] // -step, rest[1] // -step})
    inside = [x for centre in around for x in (centre, centre + 1) if first < x < end]
    return (place, inside[0]) if inside else None


def _piece(buffer: tvm.ir.Var, offset: tvm.ir.Expr, value: tvm.ir.Expr, box: _Box) -> Piece:
    """The box with its axes from 0, those of extent 1 gone and those that are contiguous in everything merged."""
    axes = [Axis(tvm.ir.Var(axis.var.name, "int64"), end - first) for axis, first, end in box]
    moved = {
        old.var: new.var + first if new.extent > 1 else number(first)
        for (old, first, _), new in zip(box, axes, strict=True)
    }
    axes = [axis for axis in axes if axis.extent > 1]
    bounds = [(axis, 0, axis.extent) for axis in axes]
    analyzer = tvm.sym.Analyzer()
    offset = analyzer.simplify(substitute(offset, moved))
    value = _simplified(substitute(value, moved), bounds)
    steps, free = accesses(value)
    steps.append(linear(offset).steps)
    merged: list[Axis] = []
    places: dict[tvm.ir.Var, tvm.ir.Expr] = {}
    for axis in axes:
        last = merged[-1] if merged else None
        if (
            last is not None
            and not any(var.same_as(last.var) or var.same_as(axis.var) for var in free)
            and all(step.get(last.var, 0) == step.get(axis.var, 0) * axis.extent for step in steps)
        ):
            # Every use of the pair is a multiple of (last * extent + axis): the inner one can stand for it.
            places[last.var] = number(0)
            merged[-1] = Axis(axis.var, last.extent * axis.extent)
        else:
            merged.append(axis)
    bounds = [(axis, 0, axis.extent) for axis in merged]
    offset = analyzer.simplify(substitute(offset, places))
    return Piece(tuple(merged), buffer, offset, _simplified(substitute(value, places), bounds))


def accesses(value: tvm.ir.Expr) -> tuple[list[Mapping[tvm.ir.Var, int]], list[tvm.ir.Var]]:
    """The steps of every load's offset, and the variables that the value uses in any other way."""
    steps: list[Mapping[tvm.ir.Var, int]] = []

    def without_steps(load: tvm.ir.TensorLoad) -> tvm.ir.Expr:
        sum_ = linear(offset_of(load))
        steps.append(sum_.steps)
        rest = number(0)
        for other in sum_.others:
            rest = rest + other
        return tirx.BufferLoad(load.source, at(load.source, rest))

    rest = tvm_ffi.structural_map(value, (tvm.ir.TensorLoad, without_steps))
    return steps, [var for var in tirx.analysis.undefined_vars(rest) if str(var.ty.dtype).startswith("int")]
