"""Tensors whose axes are stored in another order or shape than the model has them, and what it takes to move them.

A transpose or a reshape moves nothing by itself: it changes how the stored tensor is read. Only where an operator wants
its operand otherwise than it is stored is it moved, once for all who want the same.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import tvm
from tvm import relax

Shape = tuple[int, ...]
Order = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Laid:
    """A tensor of the model and where it is: permute_dims(tensor, order) is `stored`, read in the shape `view`."""

    stored: relax.Expr
    order: Order
    view: Shape

    @property
    def shape(self) -> Shape:
        """The tensor's own shape."""
        return tuple(self.view[self.order.index(axis)] for axis in range(len(self.order)))

    @property
    def is_natural(self) -> bool:
        """Whether the tensor is stored as the model has it."""
        return self.order == natural(len(self.order)) and self.view == static_shape(self.stored)


def natural(rank: int) -> Order:
    """The order in which nothing is moved."""
    return tuple(range(rank))


def static_shape(expr: relax.Expr) -> Shape | None:
    """The shape of a tensor; None where it is none, or where the run decides on its extents."""
    shape = expr.ty.shape if isinstance(expr.ty, relax.TensorType) else None
    if not isinstance(shape, relax.ShapeExpr) or not all(isinstance(axis, tvm.tirx.IntImm) for axis in shape.values):
        return None
    return tuple(int(axis) for axis in shape.values)


def known_shape(expr: relax.Expr) -> Shape:
    """The shape of a tensor of which it is known that it is static; ValueError where it is not."""
    shape = static_shape(expr)
    if shape is None:
        raise ValueError(f"no static shape: {expr.ty}")
    return shape


def permuted(shape: Shape, order: Order) -> Shape:
    """The shape of permute_dims(tensor of `shape`, order)."""
    return tuple(shape[axis] for axis in order)


def axis_groups(old: Shape, new: Shape) -> list[tuple[list[int], list[int]]] | None:
    """The smallest runs of axes, those of extent 1 left out, that a reshape maps to each other; None if it is empty."""
    if 0 in old or 0 in new:
        return None
    left = [axis for axis, extent in enumerate(old) if extent != 1]
    right = [axis for axis, extent in enumerate(new) if extent != 1]
    groups = []
    while left and right:
        taken, given = [left.pop(0)], [right.pop(0)]
        while (have := math.prod(old[a] for a in taken)) != (want := math.prod(new[a] for a in given)):
            if have < want:
                taken.append(left.pop(0))
            else:
                given.append(right.pop(0))
        groups.append((taken, given))
    return groups


def reshaped(laid: Laid, shape: Shape) -> tuple[Order, Laid] | None:
    """How a tensor is to be stored so that a reshape to `shape` moves nothing, and the reshaped tensor read from there.

    The runs of axes that the reshape splits or joins stay together, in the order in which their last axes are stored:
    channels that are last stay last.
    """
    groups = axis_groups(laid.shape, shape)
    if groups is None:
        return None
    places = [axis for axis in laid.order if laid.shape[axis] != 1]
    groups.sort(key=lambda group: max(places.index(axis) for axis in group[0]))
    wanted = [axis for taken, _ in groups for axis in taken]
    order = laid.order if wanted == places else (*wanted, *(a for a in laid.order if laid.shape[a] == 1))
    new_order = [axis for _, given in groups for axis in given]
    for axis, extent in enumerate(shape):
        if extent == 1:  # moves nothing wherever it is: behind the axis that the model has before it
            new_order.insert(new_order.index(axis - 1) + 1 if axis else 0, axis)
    return order, Laid(laid.stored, tuple(new_order), permuted(shape, tuple(new_order)))


def seen_through(stored: Shape, view: Shape, operand: Shape) -> Shape | None:
    """The shape in which an operand that broadcasts to `view` broadcasts to `stored`; None where there is none."""
    groups = axis_groups(stored, view)
    if groups is None:
        return None
    shape = [1] * len(stored)
    for taken, given in groups:
        extents = [operand[axis] for axis in given]
        if extents == [view[axis] for axis in given]:
            for axis in taken:
                shape[axis] = stored[axis]
        elif any(extent != 1 for extent in extents):
            return None
    return tuple(shape)


class Layouts:
    """What is known of a function's variables while it is rewritten. builder: where the moves are emitted."""

    def __init__(self, builder: relax.BlockBuilder) -> None:
        self.builder = builder
        self._known: dict[relax.Var, Laid | tuple[Laid, ...]] = {}
        self._moved: dict[tuple[relax.Expr, Order, Shape], relax.Expr] = {}

    def emit(self, expr: relax.Expr) -> relax.Var:
        """A variable with this value."""
        return self.builder.emit(expr)

    def record(self, var: relax.Var, laid: Laid | tuple[Laid, ...]) -> None:
        """Remember where a variable of the old function is now."""
        self._known[var] = laid

    def find(self, var: relax.Expr) -> Laid | tuple[Laid, ...] | None:
        """Where a variable of the old function is; None for one that is stored as the model has it."""
        return self._known.get(var) if isinstance(var, relax.Var) else None

    def store(self, laid: Laid, order: Order, shape: Shape | None = None) -> relax.Expr:
        """The tensor stored in this order; shape: of the same elements, if not that of the tensor."""
        view = permuted(laid.shape, order)
        shape = view if shape is None else shape
        key = (laid.stored, tuple(laid.order.index(axis) for axis in order), (*laid.view, -1, *shape))
        if key not in self._moved:
            expr = laid.stored
            if _in_memory(laid.shape, order) != _in_memory(laid.shape, laid.order):
                axes = [laid.order.index(axis) for axis in order]
                expr = self.emit(relax.op.permute_dims(self._viewed(expr, laid.view), axes))
            self._moved[key] = self._viewed(expr, shape)
        return self._moved[key]

    def natural(self, laid: Laid) -> relax.Expr:
        """The tensor as the model has it."""
        return self.store(laid, natural(len(laid.order)))

    def forget_moves_since(self, before: int) -> None:
        """Forget the newest moves, which were emitted where what follows cannot see them."""
        for key in list(self._moved)[before:]:
            del self._moved[key]

    def count_moves(self) -> int:
        """How many moves are known."""
        return len(self._moved)

    def _viewed(self, expr: relax.Expr, shape: Shape) -> relax.Expr:
        return expr if static_shape(expr) == shape else self.emit(relax.op.reshape(expr, shape))


def _in_memory(shape: Shape, order: Sequence[int]) -> list[int]:
    return [axis for axis in order if shape[axis] != 1]
