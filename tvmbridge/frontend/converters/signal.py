"""Fourier transforms and mel filter banks.

A transform is a product with a matrix of cosines and sines; a long one of a composite length n = p * q is q transforms
of length p and p of length q, with factors between them, so that the matrices stay small. All is computed in float64:
the terms of a sum cancel, and float32 would leave its rounding where the result is zero.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from tvm import relax

from tvmbridge.frontend.operator import Converter, Operator

_WIDE = "float64"
_DIRECT = 128  # up to this length one matrix is as fast as two


@dataclasses.dataclass(frozen=True)
class _Complex:
    """Real and imaginary parts, of one shape; no imaginary part means zero."""

    real: relax.Expr
    imaginary: relax.Expr | None


def _turns(numerator: np.ndarray, count: int, sign: int) -> tuple[relax.Expr, relax.Expr]:
    """Cosine and sine of sign * numerator / count turns, those of whole quarters exact."""
    quarters, rest = np.divmod(4 * (numerator % count), count)
    angle = rest * (math.pi / 2 / count)
    cosine, sine = np.cos(angle), np.sin(angle)
    cosine, sine = (
        np.choose(quarters, [cosine, -sine, -cosine, sine]),
        np.choose(quarters, [sine, cosine, -sine, -cosine]),
    )
    return relax.const(cosine, _WIDE), relax.const(sign * sine, _WIDE)


def _product(op: Operator, x: _Complex, cosine: relax.Expr, sine: relax.Expr, *, matrix: bool) -> _Complex:
    """x times cosine + i sine: as matrices, or element by element."""
    multiply = relax.op.matmul if matrix else relax.op.multiply
    real, imaginary = op.emit(multiply(x.real, cosine)), op.emit(multiply(x.real, sine))
    if x.imaginary is None:
        return _Complex(real, imaginary)
    crossed, turned = op.emit(multiply(x.imaginary, sine)), op.emit(multiply(x.imaginary, cosine))
    return _Complex(op.emit(relax.op.subtract(real, crossed)), op.emit(relax.op.add(imaginary, turned)))


def _each(op: Operator, x: _Complex, change: Callable[[relax.Expr], relax.Expr]) -> _Complex:
    imaginary = None if x.imaginary is None else op.emit(change(x.imaginary))
    return _Complex(op.emit(change(x.real)), imaginary)


def _divisor(count: int) -> int:
    """The divisor closest to the square root from below."""
    return next(found for found in range(math.isqrt(count), 0, -1) if count % found == 0)


def _transform(op: Operator, x: _Complex, count: int, sign: int, rows: int) -> _Complex:
    """The transform of each of `rows` rows of [rows, count]; sign: -1 forward, 1 back."""
    first = _divisor(count)
    if count <= _DIRECT or first == 1:
        grid = np.outer(np.arange(count), np.arange(count))
        return _product(op, x, *_turns(grid, count, sign), matrix=True)
    second = count // first  # element second * a + b, frequency c + first * d
    split = _each(op, x, lambda part: relax.op.reshape(part, (rows, first, second)))
    split = _each(op, split, lambda part: relax.op.permute_dims(part, [0, 2, 1]))
    split = _each(op, split, lambda part: relax.op.reshape(part, (rows * second, first)))
    inner = _transform(op, split, first, sign, rows * second)
    inner = _each(op, inner, lambda part: relax.op.reshape(part, (rows, second, first)))
    between = np.outer(np.arange(second), np.arange(first))
    inner = _product(op, inner, *_turns(between, count, sign), matrix=False)
    inner = _each(op, inner, lambda part: relax.op.permute_dims(part, [0, 2, 1]))
    inner = _each(op, inner, lambda part: relax.op.reshape(part, (rows * first, second)))
    outer = _transform(op, inner, second, sign, rows * first)
    outer = _each(op, outer, lambda part: relax.op.reshape(part, (rows, first, second)))
    outer = _each(op, outer, lambda part: relax.op.permute_dims(part, [0, 2, 1]))
    return _each(op, outer, lambda part: relax.op.reshape(part, (rows, count)))


def _resized(op: Operator, x: relax.Expr, count: int) -> relax.Expr:
    """The last axis cut, or padded with zeros, to `count` elements."""
    given, rank = int(x.ty.shape[-1]), x.ty.ndim
    if given > count:
        return op.emit(relax.op.strided_slice(x, [rank - 1], [0], [count]))
    if given < count:
        return op.emit(relax.op.nn.pad(x, [0, 0] * (rank - 1) + [0, count - given]))
    return x


def _parts(op: Operator, x: relax.Expr, axis: int) -> _Complex:
    """The parts of [..., 1 or 2], the axis moved to the end."""
    rank, kinds = x.ty.ndim, int(x.ty.shape[-1])
    parts, x = [], x if str(x.ty.dtype) == _WIDE else op.emit(relax.op.astype(x, _WIDE))
    for kind in range(kinds):
        part = x if kinds == 1 else op.emit(relax.op.strided_slice(x, [rank - 1], [kind], [kind + 1]))
        part = op.emit(relax.op.squeeze(part, [rank - 1]))
        order = [*(i for i in range(rank - 1) if i != axis), axis]
        parts.append(part if order == sorted(order) else op.emit(relax.op.permute_dims(part, order)))
    return _Complex(parts[0], parts[1] if kinds == 2 else None)


def _joined(op: Operator, parts: list[relax.Expr], axis: int) -> relax.Expr:
    """What _parts took apart, together again."""
    rank = parts[0].ty.ndim
    order = [*range(axis), rank - 1, *range(axis, rank - 1)]
    if order != sorted(order):
        parts = [op.emit(relax.op.permute_dims(part, order)) for part in parts]
    columns = [op.emit(relax.op.expand_dims(part, rank)) for part in parts]
    made = columns[0] if len(columns) == 1 else op.emit(relax.op.concat(columns, rank))
    return made if op.dtype(0) == _WIDE else op.emit(relax.op.astype(made, op.dtype(0)))


def _transformed(op: Operator, x: _Complex, count: int, sign: int) -> _Complex:
    """The transform along the last axis, of whatever axes are before it."""
    leading = [int(axis) for axis in x.real.ty.shape.values[:-1]]
    flat = _each(op, x, lambda part: relax.op.reshape(part, (math.prod(leading), count)))
    made = _transform(op, flat, count, sign, math.prod(leading))
    return _each(op, made, lambda part: relax.op.reshape(part, (*leading, count)))


def _number(op: Operator, position: int, what: str) -> int | None:
    found = op.known(position, what)
    return None if found is None else int(found.item())


def _dft(op: Operator) -> relax.Expr:
    rank, inverse, onesided = len(op.shape(0)), bool(op.attribute("inverse", 0)), bool(op.attribute("onesided", 0))
    if op.version >= 20:
        given = _number(op, 2, "its axis")
        axis = -2 if given is None else given
    else:
        axis = op.attribute("axis", 1)
    axis %= rank
    count = _number(op, 1, "its length")
    if count is None:
        count = 2 * (op.shape(0)[axis] - 1) if inverse and onesided else op.shape(0)[axis]
    x = _parts(op, op.input(0), axis)
    if inverse and onesided:
        return _joined(op, [_real_signal(op, x, count)], axis)
    made = _transformed(op, _each(op, x, lambda part: _resized(op, part, count)), count, 1 if inverse else -1)
    assert made.imaginary is not None
    parts = [made.real, made.imaginary]
    if inverse:
        parts = [op.emit(relax.op.divide(part, relax.const(count, _WIDE))) for part in parts]
    if onesided:
        parts = [_resized(op, part, count // 2 + 1) for part in parts]
    return _joined(op, parts, axis)


def _real_signal(op: Operator, x: _Complex, count: int) -> relax.Expr:
    """The signal of which x is one half of the spectrum: the other half mirrors it, and adds the conjugate."""
    half = count // 2 + 1
    x = _each(op, x, lambda part: _resized(op, part, half))
    weight = np.full(half, 2.0)
    weight[0] = 1
    if count % 2 == 0:
        weight[-1] = 1
    x = _each(op, x, lambda part: relax.op.multiply(part, relax.const(weight / count, _WIDE)))
    return _transformed(op, _each(op, x, lambda part: _resized(op, part, count)), count, 1).real


def _stft(op: Operator) -> relax.Expr:
    step, length = _number(op, 1, "its frame_step"), _number(op, 3, "its frame_length")
    signal = op.shape(0)[1]
    if length is None:
        length = op.shape(2)[0] if op.has(2) else signal
    if step is None or (op.has(2) and op.shape(2)[0] != length):
        op.refuse("its window is not as long as its frames")
    starts = np.arange((signal - length) // step + 1) * step
    places = relax.const((starts[:, None] + np.arange(length)).astype(np.int64))
    x = _each(op, _parts(op, op.input(0), 1), lambda part: relax.op.take(part, places, 1))
    if op.has(2):
        window = op.emit(relax.op.astype(op.input(2), _WIDE))
        x = _each(op, x, lambda part: relax.op.multiply(part, window))
    made = _transformed(op, x, length, -1)
    assert made.imaginary is not None
    parts = [made.real, made.imaginary]
    if op.attribute("onesided", 1):
        parts = [_resized(op, part, length // 2 + 1) for part in parts]
    return _joined(op, parts, 2)


def _mel_weight_matrix(op: Operator) -> None:
    """Evaluated where its operands are known, and refused where they are not."""
    for position in range(5):
        op.known(position, "its operands")
    op.refuse("ONNX's reference cannot evaluate it")


CONVERTERS: dict[str, Converter] = {
    "DFT": _dft,
    "MelWeightMatrix": _mel_weight_matrix,
    "STFT": _stft,
}
