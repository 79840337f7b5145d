"""The work that an unscheduled kernel has to do: arithmetic, and bytes to read and write."""

from __future__ import annotations

import math
from collections.abc import Sequence

import tvm
import tvm_ffi


def count_flops(function: tvm.tirx.PrimFunc) -> float | None:
    """Arithmetic of one call, as TVM counts it; None where how much it is depends on the data."""
    unbounded: list[tvm.Object] = []

    def visit_for(loop: tvm.tirx.For) -> None:
        if not isinstance(loop.extent, tvm.tirx.IntImm):
            unbounded.append(loop)

    tvm_ffi.structural_walk(function.body, [(tvm.tirx.For, visit_for), (tvm.tirx.While, unbounded.append)])
    return None if unbounded else tvm.s_tir.analysis.estimate_tir_flops(tvm.IRModule({"main": function}))


def count_bytes(function: tvm.tirx.PrimFunc) -> int:
    """Bytes of the outputs, and of what is read of the inputs, each element once; all extents are known.

    A kernel that takes some rows of a table reads no more elements than it has iterations.
    """
    touched = [0] * len(function.params)

    def visit_block(block: tvm.s_tir.SBlock) -> None:
        iterations = _elements([axis.dom.extent for axis in block.iter_vars])
        for region in (*block.reads, *block.writes):
            for index, parameter in enumerate(function.params):
                if region.source.same_as(parameter):
                    elements = _elements([axis.extent for axis in region.region])
                    touched[index] += iterations * elements if iterations and elements else _elements(parameter.shape)

    tvm_ffi.structural_walk(function.body, [(tvm.s_tir.SBlock, visit_block)])
    return sum(
        min(count, _elements(parameter.shape)) * ((tvm.DataType(str(parameter.dtype)).bits + 7) // 8)
        for count, parameter in zip(touched, function.params, strict=True)
    )


def _elements(extents: Sequence[tvm.tirx.PrimExpr]) -> int:
    """How many there are; 0 where an extent is not known."""
    return math.prod(int(extent) if isinstance(extent, tvm.tirx.IntImm) else 0 for extent in extents)
