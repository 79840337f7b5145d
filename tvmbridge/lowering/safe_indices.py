"""Keeps gathers and scatters within their tensors, whatever indices the model computes at run time.

TVM reads and writes wherever an index points. Here an index out of range becomes the nearest one in range ("clip"), of
the possible answers the one that holds for every dtype (NaN would not) and costs two instructions an index instead of
a branch an element. An input that is used as an index never gets that far: the runtime refuses what is out of range.
Before: any Relax functions. After: no take of mode "fast", and no gather, scatter or roi_align of unclipped indices.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator


def _static_shape(expr: relax.Expr) -> list[int] | None:
    shape = expr.ty.shape
    if not isinstance(shape, relax.ShapeExpr) or not all(isinstance(axis, tvm.tirx.IntImm) for axis in shape.values):
        return None
    return [int(axis) for axis in shape.values]


def _along_axis(call: relax.Call, shape: list[int]) -> list[int]:
    return [shape[int(call.attrs.axis)]]


def _along_leading_axes(call: relax.Call, shape: list[int]) -> list[int]:
    first = int(getattr(call.attrs, "batch_dims", 0))
    return shape[first : first + int(call.args[1].ty.shape[-1])]


# Operator → how many elements its indices may count, one number or one for each component of an index; lowest index.
_INDEXING: dict[str, tuple[Callable[[relax.Call, list[int]], list[int]], bool]] = {
    "relax.gather_elements": (_along_axis, False),
    "relax.gather_nd": (_along_leading_axes, False),
    "relax.scatter_elements": (_along_axis, True),  # the one that counts from the end itself
    "relax.scatter_nd": (_along_leading_axes, False),
}


@mutator
class _Clipper(PyExprMutator):
    def visit_call_(self, op: relax.Call) -> relax.Expr:
        call = super().visit_call_(op)
        name = getattr(call.op, "name", "")
        if name == "relax.take" and str(call.attrs.mode) == "fast":
            axis = call.attrs.axis
            return relax.op.take(call.args[0], call.args[1], None if axis is None else int(axis), mode="clip")
        if name == "relax.vision.roi_align":
            return relax.Call(
                call.op, [call.args[0], self._clip_images(call), *call.args[2:]], call.attrs, call.ty_args
            )
        if name not in _INDEXING:
            return call
        count, from_the_end = _INDEXING[name]
        shape = _static_shape(call.args[0])
        if shape is None or 0 in shape:
            return call
        indices = self._clip(call.args[1], np.array(count(call, shape)), from_the_end)
        return relax.Call(call.op, [call.args[0], indices, *call.args[2:]], call.attrs, call.ty_args)

    def _clip_images(self, call: relax.Call) -> relax.Expr:
        """The regions with the first of their five numbers, the index of the image, within the batch."""
        images, dtype = int(call.args[0].ty.shape[0]), str(call.args[1].ty.dtype)
        lowest, highest = np.full(5, -np.inf, dtype), np.full(5, np.inf, dtype)
        lowest[0], highest[0] = 0, images - 1
        clipped = self.builder_.emit(relax.op.minimum(call.args[1], relax.const(highest, dtype)))
        return self.builder_.emit(relax.op.maximum(clipped, relax.const(lowest, dtype)))

    def _clip(self, indices: relax.Expr, counts: np.ndarray, from_the_end: bool) -> relax.Expr:
        dtype = str(indices.ty.dtype)
        if isinstance(indices, tvm.ir.GenericConst):
            known = indices.value.numpy()
            if np.all((known >= (-counts if from_the_end else 0)) & (known < counts)):
                return indices
        highest = (counts - 1).clip(max=np.iinfo(dtype).max)
        clipped = relax.op.minimum(indices, relax.const(highest.astype(dtype), dtype))
        if not dtype.startswith("uint"):
            lowest = (-counts if from_the_end else np.zeros_like(counts)).clip(min=np.iinfo(dtype).min)
            clipped = relax.op.maximum(self.builder_.emit(clipped), relax.const(lowest.astype(dtype), dtype))
        return self.builder_.emit(clipped)


@tvm.transform.module_pass(opt_level=0, name="SafeIndices")
def safe_indices(module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
    """Clip every index that is used on a tensor."""
    clipper = _Clipper(module)
    for var, function in module.functions_items():
        if isinstance(function, relax.Function):
            clipper.builder_.update_func(var, clipper.visit_expr(function))
    return clipper.builder_.get()
