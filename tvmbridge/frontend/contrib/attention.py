"""ONNX Runtime's attention operators: projections, masks, earlier keys and values, rotary positions."""

from __future__ import annotations

import numpy as np

from tvmbridge.frontend.contrib.body import Writer, body, integers, number, transposed
from tvmbridge.frontend.operator import Operator

_HEADS_FIRST = (0, 2, 1, 3)


def _heads(name: str, source: str, shape: list[int]) -> list[str]:
    """(batch, tokens, heads × width) → (batch, heads, tokens, width)."""
    split = f"{name}_apart = Reshape ({source}, {name}_shape)"
    return [integers(f"{name}_shape", shape), split, transposed(name, f"{name}_apart", _HEADS_FIRST)]


def _attend(scale: float, biases: list[str]) -> list[str]:
    """From `query`, `key`, `value` of four axes, and masks to add, to `y` with the heads side by side."""
    lines = [number("scale_32", scale), "scale = CastLike (scale_32, query)", transposed("turned", "key", (0, 1, 3, 2))]
    lines += ["product = MatMul (query, turned)", "scores0 = Mul (product, scale)"]
    for k, bias in enumerate(biases):
        lines.append(f"scores{k + 1} = Add (scores{k}, {bias})")
    lines += [f"shares = Softmax <axis = -1> (scores{len(biases)})", "mixed = MatMul (shares, value)"]
    lines += [transposed("back", "mixed", _HEADS_FIRST), integers("joined", [0, 0, -1]), "y = Reshape (back, joined)"]
    return lines


def _hidden(op: Operator, name: str, visible: str, axes: list[int]) -> list[str]:
    """A mask to add: what hides a score where a number is not above 0."""
    lines = [f"{name}_zero_32 = Constant <value_int = 0> ()", f"{name}_zero = CastLike ({name}_zero_32, {visible})"]
    lines += [f"{name}_seen = Greater ({visible}, {name}_zero)", number(f"{name}_none_32", 0)]
    lines += [number(f"{name}_low_32", op.attribute("mask_filter_value", -10000.0))]
    lines += [f"{name}_none = CastLike ({name}_none_32, query)", f"{name}_low = CastLike ({name}_low_32, query)"]
    lines += [f"{name}_flat = Where ({name}_seen, {name}_none, {name}_low)"]
    return [*lines, integers(f"{name}_axes", axes), f"{name} = Unsqueeze ({name}_flat, {name}_axes)"]


def _lengths(name: str, source: str, batch: int, total: int) -> list[str]:
    """How many keys each sample has → (batch, keys) of 1 and 0."""
    lines = [integers(f"{name}_all", range(total)), f"{name}_wide = Cast <to = 7> ({source})"]
    lines += [integers(f"{name}_column", [batch, 1]), f"{name}_ends = Reshape ({name}_wide, {name}_column)"]
    return [*lines, f"{name}_inside = Less ({name}_all, {name}_ends)", f"{name} = Cast <to = 6> ({name}_inside)"]


def _starts(name: str, source: str, batch: int, total: int) -> list[str]:
    """The ends of all samples' keys, then their starts → (batch, keys) of 1 and 0."""
    lines = [integers(f"{name}_all", range(total)), f"{name}_wide = Cast <to = 7> ({source})"]
    lines += [integers(f"{name}_pairs", [2, batch, 1]), f"{name}_both = Reshape ({name}_wide, {name}_pairs)"]
    lines.append(f"{name}_ends, {name}_firsts = Split <axis = 0, num_outputs = 2> ({name}_both)")
    lines += [f"{name}_before = Less ({name}_all, {name}_ends)"]
    lines += [
        f"{name}_from = GreaterOrEqual ({name}_all, {name}_firsts)",
        f"{name}_in = And ({name}_before, {name}_from)",
    ]
    lines += [integers(f"{name}_rows", [batch, total]), f"{name}_inside = Reshape ({name}_in, {name}_rows)"]
    return [*lines, f"{name} = Cast <to = 6> ({name}_inside)"]


def _mask(op: Operator, position: int, source: str, batch: int, total: int) -> list[str]:
    """A padding mask of any of the forms that ONNX Runtime takes → `padding`, to add to (batch, heads, rows, keys)."""
    shape = op.shape(position)
    if shape == (batch,):
        return [*_lengths("visible", source, batch, total), *_hidden(op, "padding", "visible", [1, 2])]
    if shape == (2 * batch,):
        return [*_starts("visible", source, batch, total), *_hidden(op, "padding", "visible", [1, 2])]
    if len(shape) == 2:
        return _hidden(op, "padding", source, [1, 2])
    if len(shape) == 3:
        return _hidden(op, "padding", source, [1])
    op.refuse(f"a mask of shape {list(shape)}")


def _causal(rows: int, total: int) -> list[str]:
    """What hides later keys from each of the last `rows` positions → `causal`."""
    lines = [integers("key_places", range(total)), integers("row_places", range(total - rows, total))]
    lines += [integers("row_axis", [1]), "row_column = Unsqueeze (row_places, row_axis)"]
    lines += ["later = Greater (key_places, row_column)", number("lowest_32", float(np.finfo(np.float32).min))]
    lines += [number("nothing_32", 0), "causal_32 = Where (later, lowest_32, nothing_32)"]
    return [
        *lines,
        "causal_cast = CastLike (causal_32, query)",
        "causal_most = Clip (causal_cast)",
        "causal = Identity (causal_most)",
    ]


def _masked(op: Operator, position: int, batch: int, rows: int, total: int, scale: float) -> list[str]:
    """Attention under the masks that there are: of padding (the operand at `position`), the causal one, `extra`."""
    lines, biases = [], []
    if op.has(position):
        lines += _mask(op, position, "mask", batch, total)
        biases.append("padding")
    if op.attribute("unidirectional", 0):
        lines += _causal(rows, total)
        biases.append("causal")
    if op.has(5):
        biases.append("extra")
    return [*lines, *_attend(scale, biases)]


def _attention(op: Operator) -> str:
    """Self-attention of one input, whose product with one weight holds queries, keys and values side by side."""
    if op.attribute("do_rotary", 0) or op.attribute("past_present_share_buffer", 0):
        op.refuse("rotary positions, or one buffer for earlier and later keys")
    (batch, rows, _), heads = op.shape(0), op.attribute("num_heads")
    third = op.shape(1)[1] // 3
    widths = [int(width) for width in op.attribute("qkv_hidden_sizes") or (third, third, third)]
    lines = ["product_in = MatMul (x, weights)"]
    lines.append("biased = Add (product_in, bias)" if op.has(2) else "biased = Identity (product_in)")
    lines += [integers("widths", widths), "q_flat, k_flat, v_flat = Split <axis = -1> (biased, widths)"]
    for name, source, width in zip(
        ("query", "new_key", "new_value"), ("q_flat", "k_flat", "v_flat"), widths, strict=True
    ):
        lines += _heads(name, source, [batch, rows, heads, width // heads])
    total = rows
    if op.has(4):
        total += op.shape(4)[3]
        lines += ["past_keys, past_values = Split <axis = 0, num_outputs = 2> (past)", integers("front", [0])]
        for name in ("key", "value"):
            lines += [
                f"past_{name} = Squeeze (past_{name}s, front)",
                f"{name} = Concat <axis = 2> (past_{name}, new_{name})",
            ]
    else:
        lines += ["key = Identity (new_key)", "value = Identity (new_value)", integers("front", [0])]
    lines += (
        [f"front_{name} = Unsqueeze ({name}, front)" for name in ("key", "value")] if op.used[1:2] == (True,) else []
    )
    lines += ["present = Concat <axis = 0> (front_key, front_value)"] if op.used[1:2] == (True,) else []
    scale = op.attribute("scale") or (widths[0] // heads) ** -0.5
    lines += _masked(op, 3, batch, rows, total, scale)
    return body("x, weights, bias, mask, past, extra", "y, present", *lines)


def _multi_head(op: Operator) -> str:
    """Attention of queries to keys and values that were projected before."""
    heads = op.attribute("num_heads")
    if len(op.shape(0)) != 3 or not op.has(1) or not op.has(2):
        op.refuse("queries, keys and values in one tensor")
    if op.has(8) or op.has(9) or any(op.used[3:]):
        op.refuse("one buffer for earlier and later keys, or its scores as a result")
    batch, rows, hidden = op.shape(0)
    flat = len(op.shape(1)) == 3
    keys = op.shape(1)[1 if flat else 2]
    lines = []
    width = hidden // heads
    value_width = op.shape(2)[2] // heads if flat else op.shape(2)[3]
    names = {"query": ("q", rows, width), "new_key": ("k", keys, width), "new_value": ("v", keys, value_width)}
    if op.has(3):
        lines += [
            integers("parts", [hidden, hidden, value_width * heads]),
            "q_bias, k_bias, v_bias = Split <axis = 0> (bias, parts)",
        ]
    for name, (source, count, size) in names.items():
        if not flat and name != "query":
            lines.append(f"{name} = Identity ({source})")
            continue
        added = f"{source}_sum = Add ({source}, {source}_bias)" if op.has(3) else f"{source}_sum = Identity ({source})"
        lines += [added, *_heads(name, f"{source}_sum", [batch, count, heads, size])]
    total = keys
    for name, position in (("key", 6), ("value", 7)):
        joined = f"{name} = Concat <axis = 2> (past_{name}, new_{name})"
        lines.append(joined if op.has(position) else f"{name} = Identity (new_{name})")
    if op.has(6):
        total += op.shape(6)[2]
    lines += _masked(op, 4, batch, rows, total, op.attribute("scale") or width**-0.5)
    lines += ["present_key = Identity (key)", "present_value = Identity (value)"]
    inputs = "q, k, v, bias, mask, extra, past_key, past_value"
    return body(inputs, "y, present_key, present_value", *lines)


def _rotary(op: Operator) -> str:
    """Rotated pairs of features. Positions: of each token, or of the first one."""
    shape, given = op.shape(0), op.shape(1)
    batch, length = (shape[0], shape[1]) if len(shape) == 3 else (shape[0], shape[2])
    if op.attribute("scale", 1.0) != 1.0 or op.attribute("is_packed_batching", 0):
        op.refuse("a scale, or samples packed into one")
    heads = op.attribute("num_heads", 0)
    rotated = op.attribute("rotary_embedding_dim", 0)
    if not heads and len(shape) == 3:
        heads = shape[2] // (2 * op.shape(2)[1])
    lines = []
    if len(given) == 1:
        lines += [integers("steps", range(length)), "line = Add (steps, positions)", integers("full", [batch, length])]
        lines.append("places = Expand (line, full)")
    else:
        lines.append("places = Identity (positions)")
    settings = f"interleaved = {op.attribute('interleaved', 0)}, rotary_embedding_dim = {rotated}"
    settings += f", num_heads = {heads}" if heads and len(shape) == 3 else ""
    lines.append(f"y = RotaryEmbedding <{settings}> (x, cosines, sines, places)")
    return body("x, positions, cosines, sines", "y", *lines)


BODIES: dict[str, Writer] = {
    "Attention": _attention,
    "MultiHeadAttention": _multi_head,
    "RotaryEmbedding": _rotary,
}
