"""Normalisations: by the statistics of batches, of instances, and by norms."""

from __future__ import annotations

from tvm import relax

from tvmbridge.frontend.converters.reductions import cast
from tvmbridge.frontend.operator import Converter, Operator


def _instance_norm(op: Operator) -> relax.Expr:
    """A group norm of as many groups as there are channels."""
    x, scale, shift = op.inputs
    axes = list(range(2, len(op.shape(0))))
    return relax.op.nn.group_norm(x, scale, shift, op.shape(0)[1], 1, axes, op.attribute("epsilon", 1e-5))


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
    wide = "float32" if dtype == "float16" else dtype
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


CONVERTERS: dict[str, Converter] = {
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "LpNormalization": _lp_normalization,
}
