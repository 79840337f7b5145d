"""What computing takes, roughly: the operations of an element, and whether a kernel is worth the start of threads."""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import tirx

from tvmbridge.schedules.loops.expressions import is_float, name_of
from tvmbridge.targets import Target

THREADS_NS = 8_000  # of one core's work: for less, starting a second thread costs more than it brings
VECTOR_NS = 0.25  # of one core, for an operation of a vector: about one a cycle
_FUNCTION = 16  # operations of a function such as exp, which is a polynomial in vectors
_ONE_INSTRUCTION = ("if_then_else", "sqrt", "fabs", "floor", "ceil", "trunc", "nearbyint", "round", "fma")


def worth_threads(work_ns: float, target: Target) -> bool:
    """Whether so much work of one core is dealt out to several."""
    return target.cores > 1 and work_ns >= THREADS_NS


def operations(expr: tvm.ir.Expr) -> int:
    """How many operations compute the expression, a load being one; those of indices, integers and truths are free."""
    count = 0

    def visit(node: tvm.ir.Expr) -> tvm_ffi.WalkResult | None:
        nonlocal count
        if isinstance(node, tvm.ir.TensorLoad):
            count += 1
            return tvm_ffi.WalkResult.SKIP
        if isinstance(node, tvm.ir.Call) and name_of(node) not in _ONE_INSTRUCTION:
            count += _FUNCTION
        elif not isinstance(node, tvm.ir.Op | tvm.ir.Var | tirx.FloatImm) and is_float(node):
            count += 1
        return None

    tvm_ffi.structural_walk(expr, (tvm.ir.Expr, visit), order="pre")
    return count
