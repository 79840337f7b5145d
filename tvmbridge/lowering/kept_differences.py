"""Keeps TVM's simplifier from cancelling terms of floats: it takes (x + y) - y for x, and x - x for 0.

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


class _Function:
    """One kernel, and which of its buffers are sums."""

    def __init__(self, function: tirx.PrimFunc) -> None:
        self._sums: dict[tvm.ir.Var, tvm.ir.Expr] = {}
        tvm_ffi.structural_walk(function.body, (tirx.BufferStore, self._note))

    def _note(self, store: tirx.BufferStore) -> None:
        if isinstance(store.value, (tirx.Add, tirx.Sub)):
            self._sums[store.buffer] = store.value

    def terms(self, expr: tvm.ir.Expr) -> set[Any]:
        """What an expression adds up, through buffers that hold sums: buffers, at whatever indices, and numbers."""
        found: set[Any] = set()
        waiting, seen = [expr], set()
        while waiting:
            node = waiting.pop()
            if isinstance(node, tirx.FloatImm):
                found.add(float(node.value))
            elif isinstance(node, (tirx.Add, tirx.Sub)):
                waiting += [node.a, node.b]
            elif isinstance(node, tirx.Mul) and isinstance(node.b, tirx.FloatImm):  # a difference that was kept
                waiting.append(node.a)
            elif isinstance(node, tvm.ir.TensorLoad):
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
