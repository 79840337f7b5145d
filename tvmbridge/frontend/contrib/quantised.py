"""Operators on quantised tensors that ONNX Runtime has beside the standard ones; a scale or zero point may be [1]."""

from __future__ import annotations

from onnx import TensorProto, helper

from tvmbridge.frontend.contrib.body import Writer, body, integers, number, transposed
from tvmbridge.frontend.operator import Operator, numpy_type


def _scalar(op: Operator, name: str, source: str, position: int) -> list[str]:
    """A scale or zero point with rank 0, where it is given."""
    return [f"{name} = Squeeze ({source})"] if op.has(position) else []


def _dequantised(op: Operator, name: str, position: int) -> list[str]:
    """The real numbers that the operands at `position` (values `name`, scale `name_s`, zero point `name_z`) mean."""
    lines = [
        *_scalar(op, f"{name}_scale", f"{name}_s", position + 1),
        *_scalar(op, f"{name}_zero", f"{name}_z", position + 2),
    ]
    zero = f", {name}_zero" if op.has(position + 2) else ""
    return [*lines, f"{name}_real = DequantizeLinear ({name}, {name}_scale{zero})"]


def _quantised(op: Operator, name: str, source: str, position: int, dtype: str) -> list[str]:
    """A result from real numbers; `position` of its scale `name_s`, which the zero point `name_z` follows."""
    lines = [
        *_scalar(op, f"{name}_scale", f"{name}_s", position),
        *_scalar(op, f"{name}_zero", f"{name}_z", position + 1),
    ]
    if op.has(position + 1):
        return [*lines, f"{name} = QuantizeLinear ({source}, {name}_scale, {name}_zero)"]
    number = helper.np_dtype_to_tensor_dtype(numpy_type(dtype))
    return [*lines, f"{name} = QuantizeLinear <output_dtype = {number}> ({source}, {name}_scale)"]


def _binary(operator: str) -> Writer:
    def write(op: Operator) -> str:
        lines = [*_dequantised(op, "a", 0), *_dequantised(op, "b", 3), f"made = {operator} (a_real, b_real)"]
        return body("a, a_s, a_z, b, b_s, b_z, y_s, y_z", "y", *lines, *_quantised(op, "y", "made", 6, op.type(0)))

    return write


def _unary(op: Operator, *lines: str) -> str:
    """An operator from `x_real` to `made`."""
    quantised = _quantised(op, "y", "made", 3, op.type(0))
    return body("x, x_s, x_z, y_s, y_z", "y", *_dequantised(op, "x", 0), *lines, *quantised)


def _sigmoid(op: Operator) -> str:
    return _unary(op, "made = Sigmoid (x_real)")


def _leaky_relu(op: Operator) -> str:
    return _unary(op, f"made = LeakyRelu <alpha: float = {float(op.attribute('alpha', 0.01))!r}> (x_real)")


def _channels_last(op: Operator, line: str) -> list[str]:
    """A pooling node from `given` to `pooled`, between the transposes that the attribute channels_last asks for."""
    rank = len(op.shape(0))
    if not op.attribute("channels_last", 0):
        return ["given = Identity (x_real)", line, "made = Identity (pooled)"]
    first, last = [0, rank - 1, *range(1, rank - 1)], [0, *range(2, rank), 1]
    return [transposed("given", "x_real", first), line, transposed("made", "pooled", last)]


def _global_average(op: Operator) -> str:
    return _unary(op, *_channels_last(op, "pooled = GlobalAveragePool (given)"))


def _average(op: Operator) -> str:
    settings = [
        f"{name} = {list(op.attribute(name))}" for name in ("kernel_shape", "pads", "strides") if op.attribute(name)
    ]
    settings += [f"{name} = {op.attribute(name, 0)}" for name in ("ceil_mode", "count_include_pad")]
    settings.append(f'auto_pad = "{op.attribute("auto_pad", "NOTSET")}"')
    return _unary(op, *_channels_last(op, f"pooled = AveragePool <{', '.join(settings)}> (given)"))


def _softmax(op: Operator) -> str:
    """Before op-set 13 over all axes from `axis` on, as one."""
    axis = op.attribute("axis", -1)
    if op.attribute("opset", 13) >= 13:
        return _unary(op, f"made = Softmax <axis = {axis}> (x_real)")
    shape = op.shape(0)
    rows = f"rows = Flatten <axis = {axis % len(shape)}> (x_real)"
    return _unary(
        op, rows, "shares = Softmax <axis = -1> (rows)", integers("shape", shape), "made = Reshape (shares, shape)"
    )


def _reduce_mean(op: Operator) -> str:
    axes = op.attribute("axes") or range(len(op.shape(0)))
    mean = f"made = ReduceMean <keepdims = {op.attribute('keepdims', 1)}> (x_real, axes)"
    return _unary(op, integers("axes", axes), mean)


def _concat(op: Operator) -> str:
    """Scale and zero point of the result come first, then three inputs for each tensor."""
    names = [f"x{k}" for k in range((len(op.operands) - 2) // 3)]
    lines = [line for k, name in enumerate(names) for line in _dequantised(op, name, 2 + 3 * k)]
    lines.append(f"made = Concat <axis = {op.attribute('axis')}> ({', '.join(f'{name}_real' for name in names)})")
    inputs = ", ".join(f"{name}, {name}_s, {name}_z" for name in names)
    return body(f"y_s, y_z, {inputs}", "y", *lines, *_quantised(op, "y", "made", 0, op.type(2)))


def _where(op: Operator) -> str:
    lines = [*_dequantised(op, "a", 1), *_dequantised(op, "b", 4), "made = Where (condition, a_real, b_real)"]
    inputs = "condition, a, a_s, a_z, b, b_s, b_z, y_s, y_z"
    return body(inputs, "y", *lines, *_quantised(op, "y", "made", 7, op.type(1)))


def _gemm(op: Operator) -> str:
    """α a_s b_s ((A - a_z)(B - b_z) + C), quantised where a scale of the result is given."""
    sides = [
        transposed(f"{name}_t", name, [1, 0])
        if op.attribute(f"trans{name.upper()}", 0)
        else f"{name}_t = Identity ({name})"
        for name in ("a", "b")
    ]
    lines = [*sides, *_scalar(op, "a_zero", "a_z", 2)]
    zeros = f"{'a_zero' if op.has(2) else ''}, {'b_z' if op.has(5) else ''}".rstrip(", ")
    lines.append(f"product = MatMulInteger (a_t, b_t{', ' + zeros if zeros else ''})")
    lines.append("sum = Add (product, c)" if op.has(6) else "sum = Identity (product)")
    lines += ["real = Cast <to = 1> (sum)", number("alpha", op.attribute("alpha", 1.0))]
    lines += ["a_factor = Squeeze (a_s)", "scales = Mul (a_factor, b_s)", "factor = Mul (scales, alpha)"]
    lines.append("made = Mul (real, factor)")
    last = _quantised(op, "y", "made", 7, op.type(0)) if op.has(7) else ["y = Identity (made)"]
    return body("a, a_s, a_z, b, b_s, b_z, c, y_s, y_z", "y", *lines, *last)


def _to_float(op: Operator) -> str:
    zeros = f"{'a_z' if op.has(4) else ''}, {'b_z' if op.has(5) else ''}".rstrip(", ")
    lines = [f"product = MatMulInteger (a, b{', ' + zeros if zeros else ''})", "real = Cast <to = 1> (product)"]
    lines += ["factor = Mul (a_s, b_s)", "scaled = Mul (real, factor)"]
    lines.append("y = Add (scaled, bias)" if op.has(6) else "y = Identity (scaled)")
    return body("a, b, a_s, b_s, a_z, b_z, bias", "y", *lines)


def _dynamic(op: Operator) -> str:
    """The left operand is quantised by its own range, in the run."""
    zero = ", b_z" if op.has(3) else ""
    lines = ["a_q, a_s, a_z = DynamicQuantizeLinear (a)", f"product = MatMulInteger (a_q, b, a_z{zero})"]
    lines += ["real = Cast <to = 1> (product)", "factor = Mul (a_s, b_s)", "scaled = Mul (real, factor)"]
    lines.append("y = Add (scaled, bias)" if op.has(4) else "y = Identity (scaled)")
    return body("a, b, b_s, b_z, bias", "y", *lines)


def _unpacked(name: str, source: str, bits: int) -> list[str]:
    """Numbers of `bits` each out of bytes, the lowest bits first: the last axis grows by 8 / bits."""
    if bits == 8:
        return [f"{name} = Identity ({source})"]
    lines, parts = [integers(f"{name}_last", [-1])], []
    byte = f"Constant <value = uint8 {{{2**bits - 1}}}> ()"
    lines.append(f"{name}_ones = {byte}")
    for k in range(8 // bits):
        lines.append(f"{name}_shift{k} = Constant <value = uint8 {{{k * bits}}}> ()")
        lines.append(f'{name}_down{k} = BitShift <direction = "RIGHT"> ({source}, {name}_shift{k})')
        lines.append(f"{name}_part{k} = BitwiseAnd ({name}_down{k}, {name}_ones)")
        lines.append(f"{name}_column{k} = Unsqueeze ({name}_part{k}, {name}_last)")
        parts.append(f"{name}_column{k}")
    lines.append(f"{name}_apart = Concat <axis = -1> ({', '.join(parts)})")
    lines += [integers(f"{name}_shape", [0, -1, 8 // bits]), integers(f"{name}_rows", [0, -1])]
    return lines


def _n_bits(op: Operator) -> str:
    """X Wᵀ + bias, of a weight in blocks of a row, each with its scale and zero point."""
    bits, block = op.attribute("bits", 4), op.attribute("block_size")
    depth, outputs = op.attribute("K"), op.attribute("N")
    blocks = -(-depth // block)
    if bits not in (2, 4, 8):
        op.refuse(f"weights of {bits} bits")
    if op.has(4):
        op.refuse("groups by index (g_idx)")
    lines = [integers("bytes", [outputs, -1]), "flat = Reshape (b, bytes)", *_unpacked("q", "flat", bits)]
    lines += [
        integers("blocked", [outputs, blocks, block]),
        f"numbers = Reshape ({'q' if bits == 8 else 'q_apart'}, blocked)",
    ]
    lines += ["real = CastLike (numbers, a)", integers("each", [outputs, blocks, 1]), "scale = Reshape (scales, each)"]
    if not op.has(3):
        lines += [number("middle", 2 ** (bits - 1)), "zero = CastLike (middle, a)"]
    elif op.type(3) == "uint8":
        lines += ["zero_bytes = Reshape (zeros, bytes)", *_unpacked("z", "zero_bytes", bits)]
        lines += [f"zero_rows = Reshape ({'z' if bits == 8 else 'z_apart'}, bytes)", integers("none", [0])]
        lines += [
            integers("count", [blocks]),
            integers("columns", [1]),
            "used = Slice (zero_rows, none, count, columns)",
        ]
        lines += ["zero_each = Reshape (used, each)", "zero = CastLike (zero_each, a)"]
    else:
        lines.append("zero = Reshape (zeros, each)")
    lines += ["centred = Sub (real, zero)", "scaled = Mul (centred, scale)", "padded = Reshape (scaled, bytes)"]
    lines += [integers("start", [0]), integers("end", [depth]), integers("axis", [1])]
    lines += ["weight = Slice (padded, start, end, axis)", transposed("turned", "weight", [1, 0])]
    lines += ["product = MatMul (a, turned)", "y = Add (product, bias)" if op.has(5) else "y = Identity (product)"]
    return body("a, b, scales, zeros, g_idx, bias", "y", *lines)


def _linear(operator: str) -> Writer:
    """ONNX Runtime's QuantizeLinear and DequantizeLinear, older than the types that the standard ones take by now."""

    def write(op: Operator) -> str:
        zero = ", zero" if op.has(2) else ""
        if len(op.shape(1)) == 0 or op.shape(1) == (1,):
            squeezed = ["factor = Squeeze (scale)", *(["point = Squeeze (zero)"] if op.has(2) else [])]
            return body("x, scale, zero", "y", *squeezed, f"y = {operator} (x, factor{', point' if zero else ''})")
        return body("x, scale, zero", "y", f"y = {operator} <axis = {op.attribute('axis', 1)}> (x, scale{zero})")

    return write


def _matmul_16(op: Operator) -> str:
    wide = [f"{name}_wide = Cast <to = {TensorProto.INT32}> ({name})" for name in ("a", "b")]
    return body("a, b", "y", *wide, "y = MatMul (a_wide, b_wide)")


BODIES: dict[str, Writer] = {
    "DequantizeLinear": _linear("DequantizeLinear"),
    "DynamicQuantizeMatMul": _dynamic,
    "MatMulInteger16": _matmul_16,
    "MatMulIntegerToFloat": _to_float,
    "MatMulNBits": _n_bits,
    "QGemm": _gemm,
    "QLinearAdd": _binary("Add"),
    "QLinearAveragePool": _average,
    "QLinearConcat": _concat,
    "QLinearGlobalAveragePool": _global_average,
    "QLinearLeakyRelu": _leaky_relu,
    "QLinearMul": _binary("Mul"),
    "QLinearReduceMean": _reduce_mean,
    "QLinearSigmoid": _sigmoid,
    "QLinearSoftmax": _softmax,
    "QLinearWhere": _where,
    "QuantizeLinear": _linear("QuantizeLinear"),
}
