"""By index: gathering, scattering, one-hot rows, tables of embeddings."""

from __future__ import annotations

import numpy as np

from tests.random_graphs.graph import ANY, FLOATS, NUMBERS, Graph, Rejected, Tensor


def _indices(g: Graph, shape: tuple[int, ...], limit: int, *, negative: bool = True) -> Tensor:
    low = -limit if negative and g.opset >= 11 and g.choices.odds(0.3) else 0
    value = np.asarray(g.generator.integers(low, limit, shape)).astype(g.choices.of(("int64", "int64", "int32")))
    return g.weight(value)


def gather(g: Graph) -> Tensor:
    x = g.pick(ANY, low=1, high=4)
    axis = g.axis(x)
    shape = g.choices.of(((), (1,), (3,), (5,), (2, 3)))
    return g.op("Gather", [x, _indices(g, shape, x.shape[axis])], axis=axis if g.choices.odds(0.85) or axis else None)


def embedding(g: Graph) -> Tensor:
    """A table of rows, looked up by a run-time input."""
    width = g.choices.of((1, 5, 8, 17))
    rows = g.choices.of((3, 10, 33))
    indices = g.feed(g.generator.integers(0, rows, g.choices.of(((4,), (2, 7), (1, 1)))))
    table = g.weight(g.normal((rows, width), g.choices.of(FLOATS)))
    return g.op("Gather", [table, indices])


def gather_elements(g: Graph) -> Tensor:
    x = g.pick(ANY, low=1)
    axis = g.axis(x)
    shape = list(x.shape)
    shape[axis] = g.choices.of((1, 2, x.shape[axis], 9))
    return g.op("GatherElements", [x, _indices(g, tuple(shape), x.shape[axis])], axis=axis)


def gather_nd(g: Graph) -> Tensor:
    x = g.pick(NUMBERS, low=1)
    batch = g.choices.integer(0, 1) if g.opset >= 12 and x.rank > 1 else 0
    depth = g.choices.integer(1, x.rank - batch)
    shape = (*x.shape[:batch], *g.choices.of(((), (3,), (2, 2))), depth)
    if batch and len(shape) < batch + 1:
        raise Rejected("no indices")
    limits = np.array(x.shape[batch : batch + depth])
    low = -limits if g.choices.odds(0.3) else np.zeros_like(limits)
    value = np.asarray(g.generator.integers(low, limits, shape)).astype("int64")
    return g.op("GatherND", [x, g.weight(value)], batch_dims=batch or None)


def scatter_elements(g: Graph) -> Tensor:
    """Distinct indices along the axis, so that the order does not matter; any where updates are added."""
    x = g.pick(NUMBERS, low=1)
    axis = g.axis(x)
    count = g.choices.integer(1, x.shape[axis])
    shape = list(x.shape)
    shape[axis] = count
    reduction = None
    if g.opset >= 16 and g.choices.odds(0.5) and x.dtype in ("float32", "int32", "int64", "float64"):
        reduction = g.choices.of(("add", "mul", *(("max", "min") if g.opset >= 18 else ())))
    if reduction is None:
        order = np.argsort(g.generator.random(x.shape), axis=axis)
        indices = np.take(order, range(count), axis=axis)
    else:
        indices = g.generator.integers(0, x.shape[axis], shape)
    if g.opset >= 11 and g.choices.odds(0.3):
        indices = indices - x.shape[axis]
    inputs = [x, g.weight(np.asarray(indices).astype("int64")), g.weight(g.data(shape, x.dtype))]
    return g.op("ScatterElements" if g.opset >= 11 else "Scatter", inputs, axis=axis, reduction=reduction)


def scatter_nd(g: Graph) -> Tensor:
    x = g.pick(NUMBERS, low=1)
    depth = g.choices.integer(1, x.rank)
    places = int(np.prod(x.shape[:depth]))
    count = g.choices.integer(1, min(5, places))
    reduction = None
    if g.opset >= 16 and g.choices.odds(0.5) and x.dtype in ("float32", "int32", "int64", "float64"):
        reduction = g.choices.of(("add", "mul", *(("max", "min") if g.opset >= 18 else ())))
    flat = g.generator.choice(places, size=count, replace=reduction is not None)
    indices = np.stack(np.unravel_index(flat, x.shape[:depth]), axis=-1).astype("int64")
    updates = g.weight(g.data((count, *x.shape[depth:]), x.dtype))
    return g.op("ScatterND", [x, g.weight(indices), updates], reduction=reduction)


def one_hot(g: Graph) -> Tensor:
    depth = g.choices.of((2, 5, 7))
    shape = g.shape(0, 3)
    low = -depth if g.choices.odds(0.3) and g.opset >= 11 else 0
    value = np.asarray(g.generator.integers(low, depth + 2, shape)).astype(g.choices.of(("int64", "int32")))
    dtype = g.choices.of(("float32", "int64", "int32"))
    on_off = g.constant(np.array([-1, 3], dtype))
    axis = g.choices.integer(-len(shape) - 1, len(shape))
    count = g.constant([depth]) if g.choices.odds(0.5) else g.scalar(depth, "int64")
    return g.op("OneHot", [g.constant(value) if g.choices.odds(0.3) else g.feed(value), count, on_off], axis=axis)


def extreme_place(g: Graph) -> Tensor:
    """An index that is computed, then used."""
    x = g.pick(FLOATS, low=2, high=4)
    place = g.op("ArgMax", [x], axis=x.rank - 1, keepdims=1)
    return g.op("GatherElements", [x, place], axis=-1)


OPERATORS = (
    gather, gather, gather, embedding, gather_elements, gather_nd, scatter_elements, scatter_nd, one_hot, extreme_place,
)  # fmt: skip
