"""Operators that move elements: pads, gathers."""

from __future__ import annotations

import numpy as np
from tvm import relax

from tvmbridge.frontend.operator import Converter, Operator

_PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}


def _pad(op: Operator) -> relax.Expr | None:
    """Pads that crop, or that only the run decides, are left to TVM."""
    rank, dtype = len(op.shape(0)), op.dtype(0)
    pads = np.asarray(op.attribute("pads")) if not op.has(1) else op.known(1, "its pads")
    value = op.constant(2) if op.has(2) else np.asarray(op.attribute("value", 0))
    axes = op.known(3, "its axes") if op.has(3) else np.arange(rank)
    mode = op.attribute("mode", "constant")
    if pads is None or value is None or axes is None or mode not in _PAD_MODES or (pads < 0).any():
        return None
    if dtype.startswith(("int64", "uint64")) and abs(value.item()) >= 2**53:  # more than the operator's float holds
        return None
    width = np.zeros((rank, 2), np.int64)
    width[axes % rank] = pads.reshape(2, -1).T
    if not width.any():
        return op.input(0)
    return relax.op.nn.pad(op.input(0), width.ravel().tolist(), _PAD_MODES[mode], value.item())


def _gather(op: Operator) -> relax.Expr | None:
    """The extent from which negative indices count back is known here; TVM would compute it in each run."""
    data, indices = op.inputs
    axis = op.attribute("axis", 0)
    known, dtype = op.constant(1), op.dtype(1)
    count = op.shape(0)[axis]
    if known is not None:
        indices = relax.const(np.where(known < 0, known + count, known).astype(dtype), dtype)
    else:
        negative = op.emit(relax.op.less(indices, relax.const(0, dtype)))
        wrapped = op.emit(relax.op.add(indices, relax.const(count, dtype)))
        indices = op.emit(relax.op.where(negative, wrapped, indices))
    return relax.op.take(data, indices, axis, mode="fast")


CONVERTERS: dict[str, Converter] = {
    "Gather": _gather,
    "Pad": _pad,
}
