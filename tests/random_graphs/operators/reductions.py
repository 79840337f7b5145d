"""Over axes: reductions, arguments of extremes, TopK, cumulative sums, softmax and its kin."""

from __future__ import annotations

from tests.random_graphs.graph import FLOATS, NUMBERS, SIGNED, Graph, Rejected, Tensor

_REDUCTIONS = [
    "ReduceSum",
    "ReduceMean",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceL1",
    "ReduceL2",
    "ReduceSumSquare",
    "ReduceLogSum",
    "ReduceLogSumExp",
]


def reduce(g: Graph) -> Tensor:
    kind = g.choices.of(_REDUCTIONS)
    x = g.pick(FLOATS + SIGNED[:2])
    if kind == "ReduceLogSum":
        x = g.op("Add", [g.op("Abs", [x]), g.scalar(1, x.dtype)])
    elif kind in ("ReduceProd", "ReduceLogSumExp") and x.is_float:
        x = g.op("Add", [g.op("Tanh", [x]), g.scalar(1.25, x.dtype)])
    axes: list[int] | None = [axis for axis in range(x.rank) if g.choices.odds(0.5)]
    if axes and g.choices.odds(0.4):
        axes = [axis - x.rank for axis in axes]
    if not axes:
        axes = None
    keep = g.choices.of((None, 0, 1))
    if g.opset < (13 if kind == "ReduceSum" else 18):
        return g.op(kind, [x], axes=axes, keepdims=keep)
    skip = 1 if g.choices.odds(0.2) else None
    inputs = [x] if axes is None else [x, g.constant(axes)]
    return g.op(kind, inputs, keepdims=keep, noop_with_empty_axes=skip)


def argument(g: Graph) -> Tensor:
    x = g.pick((*FLOATS, "int32", "int8", "uint8"), low=1)
    last = g.choices.of((None, 0, 1)) if g.opset >= 12 else None
    kind = g.choices.of(("ArgMax", "ArgMin"))
    return g.op(kind, [x], axis=g.axis(x), keepdims=g.choices.of((None, 0, 1)), select_last_index=last)


def top_k(g: Graph) -> Tensor:
    x = g.pick((*FLOATS, "int32", "int64"), low=1)
    axis = g.axis(x)
    k = g.choices.integer(1, x.shape[axis])
    if g.opset < 10:
        return g.ops("TopK", [x], 2, axis=axis, k=k)[0]
    largest = g.choices.of((None, 0, 1)) if g.opset >= 11 else None
    return g.ops("TopK", [x, g.constant([k])], 2, axis=axis, largest=largest)[0]


def cumulative_sum(g: Graph) -> Tensor:
    x = g.pick((*FLOATS, "int32", "int64"), low=1)
    axis = g.scalar(g.axis(x), g.choices.of(("int64", "int32")))
    flags = {name: g.choices.of((None, 0, 1)) for name in ("exclusive", "reverse")}
    return g.op("CumSum", [x, axis], **flags)


def softmax(g: Graph) -> Tensor:
    x = g.pick(FLOATS, low=1)
    kind = g.choices.of(("Softmax", "Softmax", "LogSoftmax", "Hardmax"))
    axis = g.axis(x) if g.opset >= 11 else g.choices.integer(0, x.rank - 1)
    return g.op(kind, [x], axis=axis if g.choices.odds(0.8) else None)


def size(g: Graph) -> Tensor:
    """Whole-tensor facts, which are constants, joined with what is not."""
    x = g.pick(FLOATS)
    count = g.op("Cast", [g.op("Size", [x])], to=1)
    return g.op("Div", [g.op("Cast", [x], to=1), count])


def mirrored_extreme(g: Graph) -> Tensor:
    """The larger of each element and the one at the mirrored place."""
    x = g.pick(NUMBERS[:1], low=1, high=3)
    if g.opset < 10:
        raise Rejected("no steps")
    return g.op("Max", [x, g.op("Slice", [x, *(g.constant([each]) for each in (-1, -1 - x.shape[-1], -1, -1))])])


OPERATORS = (reduce, reduce, reduce, reduce, argument, top_k, cumulative_sum, softmax, softmax, size, mirrored_extreme)
