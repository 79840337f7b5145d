"""The steps of a row with one variable for the elements of a row, so that a thread can keep its share in registers.

A step that reads what an earlier one has stored for the very same element finds it in a register of its own thread.
What it reads of other elements is computed again where it is read: nothing but reductions crosses threads.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import tvm
import tvm_ffi
from tvm import tirx

from tvmbridge.schedules.loops.expressions import chooses, loads, number, substitute, variables
from tvmbridge.schedules.loops.indices import coordinates, flat_offset
from tvmbridge.schedules.loops.stages import Axis
from tvmbridge.schedules.reading.invariants import without_invariants
from tvmbridge.schedules.reading.row_steps import Combine, Rows, Step, simplifier, with_indices


@dataclasses.dataclass(frozen=True)
class ElementStep:
    """`buffer[indices] = value` for each of `count` elements of a row, or, where `combine` is set, once of all of them.

    element: the variable that counts them; None where there is one value a row. held: the buffer is no output.
    """

    element: tvm.ir.Var | None
    count: int
    buffer: tvm.ir.Var
    indices: tuple[tvm.ir.Expr, ...]
    held: bool
    combine: Combine | None
    init: tvm.ir.Expr | None
    value: tvm.ir.Expr

    @property
    def is_map(self) -> bool:
        """Whether it has a result for each element."""
        return self.element is not None and self.combine is None

    @property
    def place(self) -> tvm.ir.Expr:
        """Where it stores, counted from the start of its buffer."""
        return flat_offset(self.buffer, self.indices)


def element_steps(rows: Rows, *, hold: bool) -> list[ElementStep] | None:
    """The steps of a row in order; None where they cannot be those of elements.

    hold: whether a thread holds elements in registers from step to step; otherwise nothing but what there is once a row
    is held, and elements are computed and loaded again.
    """
    elements: dict[int, tvm.ir.Var] = {}
    found: list[ElementStep] = []
    for whole in rows.steps:
        for part in without_invariants(whole):
            step = _with_element(part, rows, elements)
            if step is None:
                return None
            for earlier in reversed([other for other in found if other.is_map]):
                step = _computed_again(step, earlier, rows, hold)
                if step is None:
                    return None
            found.append(step)
    return _without_unread(_loaded_once(found) if hold else found)


def _with_element(step: Step, rows: Rows, elements: dict[int, tvm.ir.Var]) -> ElementStep | None:
    """The step over one variable. What it holds is counted in the order of its buffer; None where that cannot be."""
    count = math.prod(axis.extent for axis in step.axes)
    if not step.axes:
        return ElementStep(None, 1, step.buffer, step.indices, step.held, step.combine, step.init, step.value)
    element = elements.setdefault(count, tvm.ir.Var("element", "int64"))
    simplify = simplifier([*rows.axes, Axis(element, count)])
    for axes in itertools.permutations(step.axes):
        values = coordinates(element, axes)
        found = ElementStep(
            element=element,
            count=count,
            buffer=step.buffer,
            indices=tuple(simplify(substitute(index, values)) for index in step.indices),
            held=step.held,
            combine=step.combine,
            init=step.init,
            value=with_indices(substitute(step.value, values), simplify),
        )
        if not found.is_map or not found.held or _is_zero(simplify(found.place - element)):
            return found
    return None


def _is_zero(expr: tvm.ir.Expr) -> bool:
    return isinstance(expr, tirx.IntImm) and int(expr) == 0


def _computed_again(step: ElementStep, earlier: ElementStep, rows: Rows, hold: bool) -> ElementStep | None:
    """The step with what it reads of an earlier one's elements computed again, but for what its own thread holds.

    None where it reads other elements of an output.
    """
    own = [Axis(step.element, step.count)] if step.element is not None else []
    simplify = simplifier([*rows.axes, *own])
    elsewhere = False

    def again(load: tvm.ir.TensorLoad) -> tvm.ir.Expr:
        nonlocal elsewhere
        if not load.source.same_as(earlier.buffer):
            return load
        assert earlier.element is not None
        place = flat_offset(load.source, load.indices)
        if earlier.element.same_as(step.element) and _is_zero(simplify(place - earlier.place)):
            return load if hold else earlier.value
        if not earlier.held:
            elsewhere = True
            return load
        return with_indices(substitute(earlier.value, {earlier.element: place}), simplify)

    value = tvm_ffi.structural_map(step.value, (tvm.ir.TensorLoad, again))
    return None if elsewhere else dataclasses.replace(step, value=value)


def _loaded_once(steps: Sequence[ElementStep]) -> list[ElementStep]:
    """The steps with what several of them read of an input loaded by a step of its own, before the first."""
    own = {step.buffer for step in steps}
    uses: list[tuple[tvm.ir.TensorLoad, list[int]]] = []
    for place, step in enumerate(steps):
        for load in loads(step.value):
            # What a condition guards may not be read where it does not hold.
            if load.source in own or chooses(step.value) or not _depends(load, step.element):
                continue
            same = next((places for other, places in uses if tvm_ffi.structural_equal(other, load)), None)
            if same is None:
                uses.append((load, [place]))
            elif place not in same:
                same.append(place)
    found = [[step] for step in steps]
    for load, places in uses:
        if len(places) < 2:
            continue
        element, count = steps[places[0]].element, steps[places[0]].count
        assert element is not None
        held = tirx.decl_buffer([number(count)], str(load.source.dtype), "loaded")

        def from_register(other: tvm.ir.TensorLoad) -> tvm.ir.TensorLoad:
            return tirx.BufferLoad(held, [element]) if tvm_ffi.structural_equal(other, load) else other  # noqa: B023

        for place in places:
            step = found[place][-1]
            found[place][-1] = dataclasses.replace(
                step, value=tvm_ffi.structural_map(step.value, (tvm.ir.TensorLoad, from_register))
            )
        found[places[0]].insert(0, ElementStep(element, count, held, (element,), True, None, None, load))
    return [step for group in found for step in group]


def _depends(load: tvm.ir.TensorLoad, element: tvm.ir.Var | None) -> bool:
    return any(var.same_as(element) for index in load.indices for var in variables(index))


def _without_unread(steps: Sequence[ElementStep]) -> list[ElementStep]:
    """The steps without those whose buffer is no output and which nobody reads any longer."""
    read: set[tvm.ir.Var] = set()
    found: list[ElementStep] = []
    for step in reversed(steps):
        if not step.held or step.buffer in read:
            read |= {load.source for load in loads(step.value)}
            found.insert(0, step)
    return found
