"""The Relax functions of one loop: its body, levels that call it again and again, and the calls of these.

What a function reads of the graph around the loop is passed to it: Relax functions see nothing but their parameters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import tvm
from tvm import relax

from tvmbridge.errors import UnboundValueError
from tvmbridge.frontend.operator import Operator, Tensor, TensorSequence, Value, carrier
from tvmbridge.frontend.trace.bodies import Bodies

_DEEPEST = 4  # loops in loops, each of which takes up to a quarter of a megabyte of the stack
# What is carried and what is fixed, as a function's parameters, and the values around by name → the function's results.
Body = Callable[[list[Tensor], list[Tensor], dict[str, Value]], list[relax.Expr]]


@dataclasses.dataclass(frozen=True)
class LoopFunctions:
    """One loop while its functions are written.

    carried: what its functions take and give, before the first iteration: the index, whether it goes on where only
    the run knows, the states. fixed: what they take besides. inputs: of the graph, that decide any of these.
    """

    op: Operator
    bodies: Bodies
    carried: list[Tensor]
    outer: dict[str, Value]
    fixed: list[Tensor]

    @classmethod
    def of(
        cls, op: Operator, bodies: Bodies, carried: list[Tensor], more: dict[str, Value] | None = None
    ) -> LoopFunctions:
        """A loop over a node's body. more: values that it needs besides what the body reads."""
        if len(bodies.around.trips) > _DEEPEST:
            op.refuse(f"more than {_DEEPEST} loops in each other")
        outer = {**bodies.outer, **(more or {})}
        fixed = {id(tensor): tensor for value in outer.values() for tensor in _computed(value)}
        return cls(op, bodies, carried, outer, list(fixed.values()))

    @property
    def inputs(self) -> frozenset[str]:
        """The graph's inputs that the loop's results are computed of."""
        return frozenset().union(*(tensor.inputs for tensor in (*self.carried, *self.fixed)))

    def write(self, name: str, trace: Body) -> tvm.ir.GlobalVar:
        """A function of what is carried and fixed; `trace` gives its results from what it sees of them."""
        builder, inputs = self.op.builder, self.inputs
        params = self._params()
        carried = [Tensor(var, each.dtype, inputs=inputs) for var, each in zip(params, self.carried, strict=False)]
        there = {
            id(each): Tensor(var, each.dtype, inputs=each.inputs)
            for var, each in zip(params[len(carried) :], self.fixed, strict=True)
        }
        outer = {name: _replaced(value, there) for name, value in self.outer.items()}
        with builder.function(name, params=params, private=True):
            try:
                with builder.dataflow():
                    made = builder.emit_output(relax.Tuple(trace(carried, list(there.values()), outer)))
            except BaseException as exc:
                builder._end_block()
                builder.end_scope()
                if isinstance(exc, UnboundValueError) and not exc.inputs:
                    self.op.refuse(f"in its body, what changes from one iteration to the next decides: {exc.message}")
                raise
            return builder.emit_func_output(made)

    def write_level(self, below: tvm.ir.GlobalVar, times: int) -> tvm.ir.GlobalVar:
        """A function that calls the one below up to `times` times, as long as the loop goes on."""
        params = self._params()
        fixed = params[len(self.carried) :]

        def rest(left: int, arguments: Sequence[relax.Expr]) -> relax.SeqExpr:
            made = relax.Var("made", self._result())
            bindings = [relax.VarBinding(made, relax.Call(below, [*arguments, *fixed]))]
            if left == 1:
                return relax.SeqExpr([relax.BindingBlock(bindings)], made)
            parts = [relax.Var(f"part{k}", each) for k, each in enumerate(self._types())]
            bindings += [relax.VarBinding(part, relax.TupleGetItem(made, k)) for k, part in enumerate(parts)]
            last = relax.Var("last", self._result())
            choice = relax.If(parts[1], rest(left - 1, parts), relax.SeqExpr([], made))
            return relax.SeqExpr([relax.BindingBlock([*bindings, relax.VarBinding(last, choice)])], last)

        body = rest(times, params[: len(self.carried)])
        return self.op.builder.add_func(relax.Function(params, body, self._result()), "loop_level")

    def write_entry(self, first: tvm.ir.GlobalVar) -> tvm.ir.GlobalVar:
        """A function that calls another one if the loop begins at all."""
        params = self._params()
        made, last = relax.Var("made", self._result()), relax.Var("last", self._result())
        taken = relax.SeqExpr([relax.BindingBlock([relax.VarBinding(made, relax.Call(first, params))])], made)
        choice = relax.If(params[1], taken, relax.SeqExpr([], relax.Tuple(params[: len(self.carried)])))
        body = relax.SeqExpr([relax.BindingBlock([relax.VarBinding(last, choice)])], last)
        return self.op.builder.add_func(relax.Function(params, body, self._result()), "loop")

    def chain(
        self, functions: Sequence[tvm.ir.GlobalVar], carried: Sequence[Tensor], fixed: Sequence[Tensor]
    ) -> list[relax.Expr]:
        """Call one function after the other; what is carried in the end, and what all of them collect, joined."""
        op, arguments = self.op, [tensor.expr for tensor in carried]
        collected: list[list[relax.Expr]] = []
        for function in functions:
            made = op.emit(relax.Call(function, [*arguments, *(tensor.expr for tensor in fixed)]))
            parts = [op.emit(relax.TupleGetItem(made, k)) for k in range(len(made.ty.fields))]
            arguments = parts[: len(self.carried)]
            collected.append(parts[len(self.carried) :])
        rows = list(zip(*collected, strict=True))
        return [*arguments, *(row[0] if len(row) == 1 else op.emit(relax.op.concat(list(row), 0)) for row in rows)]

    def checked(self, values: Sequence[Value]) -> list[relax.Expr]:
        """States after an iteration, which are to be of the types that they had before."""
        before = self.carried[len(self.carried) - len(values) :]
        for position, (value, state) in enumerate(zip(values, before, strict=True)):
            if not isinstance(value, Tensor):
                self.op.refuse(f"its state {position} is no tensor")
            if (value.dtype, value.shape) != (state.dtype, state.shape):
                was, now = (f"{tensor.dtype}{list(tensor.shape)}" for tensor in (state, value))
                self.op.refuse(f"its state {position} is {was} before and {now} after an iteration")
        return [value.expr for value in values if isinstance(value, Tensor)]

    def _types(self) -> list[relax.TensorType]:
        return [relax.TensorType(tensor.shape, carrier(tensor.dtype)) for tensor in self.carried]

    def _result(self) -> relax.TupleType:
        return relax.TupleType(self._types())

    def _params(self) -> list[relax.Var]:
        fixed = [relax.TensorType(tensor.shape, carrier(tensor.dtype)) for tensor in self.fixed]
        return [relax.Var(f"arg{k}", each) for k, each in enumerate([*self._types(), *fixed])]


def _computed(value: Value) -> list[Tensor]:
    """The tensors of a value that only the run knows."""
    items = value.items if isinstance(value, TensorSequence) else (value,)
    return [item for item in items if isinstance(item, Tensor) and item.array is None]


def _replaced(value: Value, there: Mapping[int, Tensor]) -> Value:
    """A value with other tensors in the place of some, by id."""
    if isinstance(value, TensorSequence):
        return TensorSequence(tuple(there.get(id(item), item) for item in value.items), value.dtype)
    return there.get(id(value), value) if isinstance(value, Tensor) else value
