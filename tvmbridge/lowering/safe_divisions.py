"""Keeps integer divisions from ending the process: by zero, and of the least integer by -1, processors trap.

ONNX leaves division by zero open; quotient and remainder are 0 here, as in NumPy. The least integer by -1 wraps.
Before: kernels. After: none divides integers by what only the run knows, unless it is neither 0 nor -1.
"""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import tirx

_DIVISIONS = (tirx.Div, tirx.FloorDiv, tirx.Mod, tirx.FloorMod)


def _guarded(node: tirx.Div | tirx.FloorDiv | tirx.Mod | tirx.FloorMod) -> tvm.ir.Expr:
    dtype = str(node.ty.dtype)
    if isinstance(node.b, tirx.IntImm) or not dtype.startswith(("int", "uint")):
        return node
    none, one = (tirx.const(number, dtype) for number in (0, 1))
    by_zero = tirx.EQ(node.b, none)
    if dtype.startswith("uint"):
        return tirx.Select(by_zero, none, type(node)(node.a, tirx.Select(by_zero, one, node.b)))
    by_minus_one = tirx.EQ(node.b, tirx.const(-1, dtype))
    divided = type(node)(node.a, tirx.Select(tirx.Or(by_zero, by_minus_one), one, node.b))
    negated = none if isinstance(node, (tirx.Mod, tirx.FloorMod)) else none - node.a
    return tirx.Select(by_zero, none, tirx.Select(by_minus_one, negated, divided))


@tvm.transform.module_pass(opt_level=0, name="SafeDivisions")
def safe_divisions(module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
    """Guard the divisions of integers in every kernel."""
    guarded = {}
    for var, function in module.functions_items():
        if isinstance(function, tirx.PrimFunc):
            changed = tvm_ffi.structural_map(function, (_DIVISIONS, _guarded))
            if not changed.same_as(function):
                guarded[var] = changed
    for var, function in guarded.items():
        module.update_func(var, function)
    return module
