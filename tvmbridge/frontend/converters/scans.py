"""Running sums and products along an axis."""

from __future__ import annotations

from collections.abc import Callable

from tvm import relax

from tvmbridge.frontend.converters.reductions import cast
from tvmbridge.frontend.operator import Converter, Operator


def _running(scan: Callable[..., relax.Expr]) -> Converter:
    """float16 in float32: its sums overflow, and each step would round."""

    def convert(op: Operator) -> relax.Expr:
        known, rank, dtype = op.known(1, "its axis"), len(op.shape(0)), op.dtype(0)
        axis = 0 if known is None else int(known.reshape(-1)[0])
        if not -rank <= axis < rank:
            op.refuse(f"its axis {axis} is none of a tensor of rank {rank}")
        axis, backwards = axis % rank, bool(op.attribute("reverse", 0))
        wide = "float32" if dtype == "float16" else dtype
        x = cast(op, op.input(0), wide)
        if backwards:
            x = op.emit(relax.op.flip(x, axis))
        x = op.emit(scan(x, axis, wide, exclusive=bool(op.attribute("exclusive", 0))))
        if backwards:
            x = op.emit(relax.op.flip(x, axis))
        return cast(op, x, dtype)

    return convert


CONVERTERS: dict[str, Converter] = {
    "CumProd": _running(relax.op.cumprod),
    "CumSum": _running(relax.op.cumsum),
}
