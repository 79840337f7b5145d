"""Keeps divided differences, such as (7 - i) % 8 in the index of a reversed tile, from mistakes of TVM 0.27.

Its FlattenBuffer takes a[(7 - i) % 8] for a[-(i % -8)], which is another element, and a vector of (7 - i) // 2 that
occurs twice becomes a name that is defined twice. Differences of which a constant is taken are no trouble to it.
"""

from __future__ import annotations

from typing import TypeVar

import tvm
import tvm_ffi
from tvm import tirx

_Code = TypeVar("_Code", tvm.ir.Expr, tirx.PrimFunc)


def without_divided_differences(code: _Code) -> _Code:
    """The expression or function with another form of each quotient and remainder of a difference.

    A constant less something is turned round. Other differences get names, behind which TVM does not look; the names
    are new at each call: one name with different values in two places is an error to TVM.
    """

    def rewrite(node: tirx.FloorDiv | tirx.FloorMod) -> tvm.ir.Expr:
        if not _subtracts(node.a):
            return node
        turned = _turned_round(node)
        if turned is not None:
            return turned
        var = tvm.ir.Var("difference", str(node.ty.dtype))
        return tirx.Let(var, node.a, type(node)(var, node.b))

    return tvm_ffi.structural_map(code, ((tirx.FloorDiv, tirx.FloorMod), rewrite))


def _subtracts(expr: tvm.ir.Expr) -> bool:
    """Whether anything but a constant is subtracted in the expression."""
    found: list[tvm.ir.Expr] = []
    tvm_ffi.structural_walk(expr, (tirx.Sub, found.append))
    return any(not isinstance(difference.b, tirx.IntImm) for difference in found)


def _turned_round(node: tirx.FloorDiv | tirx.FloorMod) -> tvm.ir.Expr | None:
    """-x // n as -1 - (x - 1) // n, and -x % n as n - 1 - (x - 1) % n, where -x is a constant less something."""
    difference, divisor = node.a, node.b
    if not isinstance(difference, tirx.Sub) or not isinstance(difference.a, tirx.IntImm) or _subtracts(difference.b):
        return None
    if not isinstance(divisor, tirx.IntImm) or int(divisor) < 1:
        return None
    dtype = str(node.ty.dtype)
    before = difference.b - tirx.IntImm(dtype, int(difference.a) + 1)
    last = -1 if isinstance(node, tirx.FloorDiv) else int(divisor) - 1
    return tirx.IntImm(dtype, last) - type(node)(before, divisor)
