"""Keeps TVM's simplifier from cancelling terms of floats: it takes (x + y) - y for x, and x - x for 0, in choices too.

Floating-point addition rounds, which a program may count on ((x + 2²³) - 2²³ is a rounding), and the difference of two
infinities is NaN. A difference at risk becomes a + b · (-1), the same number to the last bit, which LLVM makes one
subtraction again.
Before: fused kernels. After: no float difference, of which one side is a term of the other, is written as one.
"""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import tirx


def _is_float(expr: tvm.ir.Expr) -> bool:
    return str(expr.ty.dtype).startswith("float")


def _parts(node: tvm.ir.Expr) -> list[tvm.ir.Expr]:
    """What a sum adds up, or a choice is made among; none of anything else."""
    if isinstance(node, (tirx.Add, tirx.Sub, tirx.Max, tirx.Min)):
        return [node.a, node.b]
    if isinstance(node, tirx.Select):
        return [node.true_value, node.false_value]
    if isinstance(node, tvm.ir.Call) and getattr(node.op, "name", "") == "tirx.if_then_else":
        return list(node.args[1:])
    if isinstance(node, tirx.Mul) and isinstance(node.b, tirx.FloatImm):  # a difference that was kept
        return [node.a]
    return []


class _Function:
    """One kernel, and which of its buffers are sums or choices."""

    def __init__(self, function: tirx.PrimFunc) -> None:
        self._sums: dict[tvm.ir.Var, tvm.ir.Expr] = {}
        tvm_ffi.structural_walk(function.body, (tirx.BufferStore, self._note))

    def _note(self, store: tirx.BufferStore) -> None:
        loads: list[tvm.ir.TensorLoad] = []
        tvm_ffi.structural_walk(store.value, (tvm.ir.TensorLoad, loads.append))
        if _parts(store.value) and not any(
            load.source.same_as(store.buffer) for load in loads
        ):  # a reduction reads itself
            self._sums[store.buffer] = store.value

    def terms(self, expr: tvm.ir.Expr) -> set[Any]:
        """What an expression adds up, through buffers that hold sums: buffers, at whatever indices, and numbers."""
        found: set[Any] = set()
        waiting, seen = [expr], set()
        while waiting:
            node = waiting.pop()
            if isinstance(node, tirx.FloatImm):
                found.add(float(node.value))
            waiting += _parts(node)
            if isinstance(node, tvm.ir.TensorLoad):
                found.add(node.source)
                if node.source in self._sums and node.source not in seen:
                    seen.add(node.source)
                    waiting.append(self._sums[node.source])
        return found

    def kept(self, node: tirx.Sub) -> tvm.ir.Expr:
        """The difference, written so that nothing cancels where something could."""
        if not _is_float(node) or self.terms(node.a).isdisjoint(self.terms(node.b)):
            return node
        return node.a + node.b * tirx.const(-1.0, str(node.ty.dtype))


@tvm.transform.module_pass(opt_level=0, name="KeptDifferences")
def kept_differences(module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
    """Rewrite the differences at risk in every kernel."""
    changed = {}
    for var, function in module.functions_items():
        if isinstance(function, tirx.PrimFunc):
            kept = tvm_ffi.structural_map(function, (tirx.Sub, _Function(function).kept))
            if not kept.same_as(function):
                changed[var] = kept
    for var, function in changed.items():
        module.update_func(var, function)
    return module
