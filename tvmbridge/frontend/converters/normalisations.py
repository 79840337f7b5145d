"""Normalisations: by the statistics of batches, of instances, and by norms."""

from __future__ import annotations

from collections.abc import Callable

from tvm import relax, te, tirx

from tvmbridge.frontend.converters.reductions import cast
from tvmbridge.frontend.operator import Converter, Operator

_GREATEST_HALF = 65504


def _wide(dtype: str) -> str:
    """What statistics are computed in."""
    return "float64" if dtype == "float64" else "float32"


def _moments(op: Operator, x: relax.Expr, axes: list[int]) -> tuple[relax.Expr, relax.Expr, relax.Expr]:
    """The mean over axes, x - mean, and the variance, which is never below 0 as it is the mean of squares."""
    mean = op.emit(relax.op.mean(x, axes, keepdims=True))
    distance = op.emit(relax.op.subtract(x, mean))
    variance = op.emit(relax.op.mean(op.emit(relax.op.multiply(distance, distance)), axes, keepdims=True))
    return mean, distance, variance


def _standardise(
    op: Operator, x: relax.Expr, axes: list[int], epsilon: float
) -> tuple[relax.Expr, relax.Expr, relax.Expr]:
    """(x - mean) / deviation over axes; the mean; 1 / deviation."""
    mean, distance, variance = _moments(op, x, axes)
    enlarged = op.emit(relax.op.add(variance, relax.const(epsilon, str(x.ty.dtype))))
    inverse = op.emit(relax.op.divide(relax.const(1, str(x.ty.dtype)), op.emit(relax.op.sqrt(enlarged))))
    return op.emit(relax.op.multiply(distance, inverse)), mean, inverse


def _mean_variance_norm(op: Operator) -> relax.Expr:
    """ONNX's own nodes subtract two sums of squares, whose difference may be below 0 where the data hardly vary."""
    dtype = op.dtype(0)
    rank = len(op.shape(0))
    axes = sorted({axis % rank for axis in op.attribute("axes", (0, 2, 3))})
    _, distance, variance = _moments(op, cast(op, op.input(0), _wide(dtype)), axes)
    deviation = op.emit(relax.op.add(op.emit(relax.op.sqrt(variance)), relax.const(1e-9, _wide(dtype))))
    return cast(op, op.emit(relax.op.divide(distance, deviation)), dtype)


def _instance_norm(op: Operator) -> relax.Expr:
    """A group norm of as many groups as there are channels; of float64, which TVM's lacks, its steps."""
    x, scale, shift = op.inputs
    axes, epsilon = list(range(2, len(op.shape(0)))), op.attribute("epsilon", 1e-5)
    if op.dtype(0) != "float64":
        return relax.op.nn.group_norm(x, scale, shift, op.shape(0)[1], 1, axes, epsilon)
    normal, _, _ = _standardise(op, x, axes, epsilon)
    channels = [-1, *[1] * len(axes)]
    scale, shift = (op.emit(relax.op.reshape(row, channels)) for row in (scale, shift))
    return op.emit(relax.op.add(op.emit(relax.op.multiply(normal, scale)), shift))


def _layer_norm(op: Operator) -> list[relax.Expr] | None:
    """TVM's has parameters of the normalised shape and one result; here are the others."""
    shape, dtype = op.shape(0), op.dtype(0)
    axis = op.attribute("axis", -1) % len(shape)
    fits = all(op.shape(position) == shape[axis:] for position in (1, 2) if op.has(position))
    if fits and not any(op.used[1:]):
        return None
    x = cast(op, op.input(0), _wide(dtype))
    normal, mean, inverse = _standardise(op, x, list(range(axis, len(shape))), op.attribute("epsilon", 1e-5))
    y = op.emit(relax.op.multiply(cast(op, normal, dtype), op.input(1)))
    if op.has(2):
        y = op.emit(relax.op.add(y, op.input(2)))
    statistics = [cast(op, value, op.result_dtype(k)) for k, value in enumerate((mean, inverse), 1) if k < len(op.used)]
    return [y, *statistics]


def _local_response_norm(op: Operator) -> relax.Expr | None:
    """TVM's is of 3 or 4 axes, and as many channels before as after."""
    shape, size, dtype = op.shape(0), int(op.attribute("size")), op.dtype(0)
    if len(shape) in (3, 4) and size % 2:
        return None
    wide, count, before = _wide(dtype), shape[1], (size - 1) // 2

    def sum_of_squares(tensor: te.Tensor) -> te.Tensor:
        beside = te.reduce_axis((0, size))

        def element(*index: tirx.Var) -> tirx.Expr:
            channel = index[1] + beside.var - before
            value = tensor(index[0], tirx.min(tirx.max(channel, 0), count - 1), *index[2:])
            inside = tirx.all(channel >= 0, channel < count)
            return te.sum(tirx.Select(inside, value * value, tirx.const(0, wide)), axis=beside)

        return te.compute(shape, element, name="squares")

    x = cast(op, op.input(0), wide)
    factor = relax.const(op.attribute("alpha", 1e-4) / size, wide)
    part = op.emit(relax.op.multiply(op.compute(sum_of_squares, x), factor))
    base = op.emit(relax.op.add(part, relax.const(op.attribute("bias", 1.0), wide)))
    divisor = op.emit(relax.op.power(base, relax.const(op.attribute("beta", 0.75), wide)))
    return cast(op, op.emit(relax.op.divide(x, divisor)), dtype)


def _batch_norm(op: Operator) -> list[relax.Expr] | None:
    """In training by the statistics of the batch, which the running ones then take in. TVM has the other mode."""
    if op.attribute("spatial", 1) == 0:
        op.refuse("statistics of each place by itself (spatial=0)")
    training = bool(op.attribute("training_mode", 0)) or any(op.used[1:])
    rank, types = len(op.shape(0)), {op.dtype(position) for position in range(5)}
    if not training and len(types) == 1 and rank > 1:
        return None
    wide = "float64" if "float64" in types else "float32"
    axes = [axis for axis in range(rank) if axis != 1] if rank > 1 else [0]
    x, scale, shift, mean, variance = (cast(op, op.input(position), wide) for position in range(5))
    results: list[relax.Expr] = []
    if training:
        momentum = relax.const(op.attribute("momentum", 0.9), wide)
        rest = relax.const(1 - op.attribute("momentum", 0.9), wide)
        running = [op.emit(relax.op.multiply(old, momentum)) for old in (mean, variance)]
        mean = op.emit(relax.op.mean(x, axes))
        variance = op.emit(relax.op.variance(x, axes))
        new = [op.emit(relax.op.multiply(found, rest)) for found in (mean, variance)]
        results = [op.emit(relax.op.add(old, part)) for old, part in zip(running, new, strict=True)]
        results += [mean, variance]  # before op-set 14 the batch's own are results, too
    channels = [-1, *[1] * (rank - 2)]
    scale, shift, mean, variance = (
        op.emit(relax.op.reshape(part, channels)) for part in (scale, shift, mean, variance)
    )
    deviation = op.emit(relax.op.sqrt(op.emit(relax.op.add(variance, relax.const(op.attribute("epsilon"), wide)))))
    normal = op.emit(relax.op.divide(op.emit(relax.op.subtract(x, mean)), deviation))
    y = op.emit(relax.op.add(op.emit(relax.op.multiply(normal, scale)), shift))
    made = zip([y, *results], [0, 3, 4, 3, 4], strict=False)
    return [cast(op, result, op.dtype(like)) for result, like in made]


def _lp_normalization(op: Operator) -> relax.Expr:
    """A row of zeros stays as it is."""
    power, dtype = op.attribute("p", 2), op.dtype(0)
    if power not in (1, 2):
        op.refuse(f"a norm of order {power}: ONNX has 1 and 2")
    wide = _wide(dtype)
    x = cast(op, op.input(0), wide)
    powers = op.emit(relax.op.abs(x) if power == 1 else relax.op.multiply(x, x))
    norm = op.emit(relax.op.sum(powers, op.attribute("axis", -1), keepdims=True))
    if power == 2:
        norm = op.emit(relax.op.sqrt(norm))
    none = op.emit(relax.op.equal(norm, relax.const(0, wide)))
    divisor = op.emit(relax.op.where(none, relax.const(1, wide), norm))
    quotient = op.emit(relax.op.divide(x, divisor))
    # Squares of the smallest numbers are 0, too: then the row is 0.
    return cast(op, op.emit(relax.op.where(none, relax.const(0, wide), quotient)), dtype)


def _softmax(op: Operator) -> relax.Expr | None:
    """Of float16 as ONNX defines it, step by step in float16: powers and their sum are rounded, like the quotients.

    No power is above 1: only sums of more of them than float16 can count are left as they are, to TVM.
    """
    shape = op.shape(0)
    if op.dtype(0) != "float16" or op.version < 13 or not shape or shape[op.attribute("axis", -1)] > _GREATEST_HALF:
        return None
    axis = op.attribute("axis", -1) % len(shape)

    def softmax(tensor: te.Tensor) -> te.Tensor:
        outer = [size for number, size in enumerate(tensor.shape) if number != axis]

        def row(index: tuple[tirx.Var, ...]) -> tuple[tirx.Var, ...]:
            return index[:axis] + index[axis + 1 :]

        def along(make: Callable[..., tirx.Expr], values: te.Tensor) -> te.Tensor:
            step = te.reduce_axis((0, tensor.shape[axis]))

            def element(*index: tirx.Var) -> tirx.Expr:
                return make(values(*index[:axis], step.var, *index[axis:]).astype("float32"), axis=step)

            return te.compute(outer, element, name=f"softmax_{make.__name__}")

        top = along(te.max, tensor)
        powers = te.compute(
            tensor.shape,
            lambda *index: te.exp(tensor(*index).astype("float32") - top(*row(index))).astype("float16"),
            name="softmax_exp",
        )
        total = along(te.sum, powers)
        return te.compute(
            tensor.shape,
            lambda *index: (
                powers(*index).astype("float32") / total(*row(index)).astype("float16").astype("float32")
            ).astype("float16"),
            name="softmax_norm",
        )

    return op.compute(softmax, op.input(0))


CONVERTERS: dict[str, Converter] = {
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "LRN": _local_response_norm,
    "LayerNormalization": _layer_norm,
    "LpNormalization": _lp_normalization,
    "MeanVarianceNormalization": _mean_variance_norm,
    "Softmax": _softmax,
}
