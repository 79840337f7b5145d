"""Keeps divided differences, such as (7 - i) % 8 in the index of a reversed tile, from mistakes of TVM 0.27.

Its FlattenBuffer takes a[(7 - i) % 8] for a[-(i % -8)], which is another element, and a vector of (7 - i) // 2 that
occurs twice becomes a name that is defined twice. It does not look behind names.
"""

from __future__ import annotations

from typing import TypeVar

import tvm
import tvm_ffi
from tvm import tirx

_Code = TypeVar("_Code", tvm.ir.Expr, tirx.PrimFunc)


def with_named_differences(code: _Code) -> _Code:
    """The expression or function with a name for each difference that it divides or takes a remainder of.

    The names are new at each call: one name with different values in two places is an error to TVM.
    """

    def name(node: tirx.FloorDiv | tirx.FloorMod) -> tvm.ir.Expr:
        differences: list[tvm.ir.Expr] = []
        tvm_ffi.structural_walk(node.a, (tirx.Sub, lambda difference: differences.append(difference)))
        if not differences:
            return node
        var = tvm.ir.Var("difference", str(node.ty.dtype))
        return tirx.Let(var, node.a, type(node)(var, node.b))

    return tvm_ffi.structural_map(code, ((tirx.FloorDiv, tirx.FloorMod), name))
