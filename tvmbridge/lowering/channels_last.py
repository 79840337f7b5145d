"""Lays convolutions and what lies between them out channels-last: a module without any is left alone.

TVM's ConvertLayout wants a layout of every tensor on its way and fails on some that no convolution is near.
"""

from __future__ import annotations

import tvm
from tvm import relax

_DESIRED = {"relax.nn.conv2d": ["NHWC", "HWIO"]}


@tvm.transform.module_pass(opt_level=0, name="ChannelsLast")
def channels_last(module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
    """Before: conv2d of any layout. After: NHWC and HWIO."""
    if not _calls_any(module, frozenset(_DESIRED)):
        return module
    return relax.transform.ConvertLayout(_DESIRED)(module)


def _calls_any(module: tvm.IRModule, operators: frozenset[str]) -> bool:
    found: list[str] = []

    def visit(expr: relax.Expr) -> None:
        if isinstance(expr, relax.Call) and getattr(expr.op, "name", "") in operators:
            found.append(expr.op.name)

    for _, function in module.functions_items():
        if isinstance(function, relax.Function):
            relax.analysis.post_order_visit(function, visit)
    return bool(found)
