"""Layer norms and RMS norms that an exporter wrote out as means, powers and roots → one operator each.

Before: any Relax functions. After: layer_norm and rms_norm where the written-out form divides by the deviation along
the last axis and then scales by weights of that axis; a form that differs in any part stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping

import tvm
from tvm import relax
from tvm.relax.dpl import DFPattern, is_const, is_op, rewrite_call, wildcard

_Matched = Mapping[DFPattern, relax.Expr]


def _number(expr: relax.Expr) -> float | None:
    """The value of a constant of one element."""
    if not isinstance(expr, tvm.ir.GenericConst):
        return None
    value = expr.value.numpy()
    return float(value.item()) if value.size == 1 else None


def _is_last_axis(mean: relax.Call, x: relax.Expr) -> bool:
    axes = mean.attrs.axis
    rank = x.ty.ndim
    return axes is not None and [int(axis) % rank for axis in axes] == [rank - 1] and bool(mean.attrs.keepdims)


def _weights(expr: relax.Expr, x: relax.Expr) -> relax.Expr | None:
    """Weights of the last axis alone, as a vector."""
    if not isinstance(expr, tvm.ir.GenericConst) or expr.ty.dtype != x.ty.dtype:
        return None
    array, extent = expr.value.numpy(), x.ty.shape[-1]
    if not isinstance(extent, tvm.tirx.IntImm) or array.size != int(extent) or array.shape[-1:] != (int(extent),):
        return None
    return relax.const(array.reshape(-1), str(expr.ty.dtype))


class _Written:
    """The written-out form: a pattern whose parts are kept, to ask what they matched."""

    def __init__(self, centred: bool, squared_by_power: bool, divided: bool, shifted: bool) -> None:
        self.x, self.two, self.epsilon = wildcard(), is_const(), is_const()
        self.scale, self.shift, self.one = is_const(), is_const(), is_const()
        self.centre = is_op("relax.mean")(self.x) if centred else None
        value = is_op("relax.subtract")(self.x, self.centre) if centred else self.x
        self.squared_by_power = squared_by_power
        square = is_op("relax.power")(value, self.two) if squared_by_power else is_op("relax.multiply")(value, value)
        self.mean = is_op("relax.mean")(square)
        root = is_op("relax.sqrt")(_either("relax.add", self.mean, self.epsilon))
        self.divided = divided
        if divided:
            normal = is_op("relax.divide")(value, root)
        else:
            normal = _either("relax.multiply", value, is_op("relax.divide")(self.one, root))
        scaled = _either("relax.multiply", normal, self.scale)
        self.shifted = shifted
        self.whole = _either("relax.add", scaled, self.shift) if shifted else scaled

    def rewrite(self, call: relax.Call, matched: _Matched) -> relax.Expr:
        """One operator for what matched, if the constants and axes are those of a norm."""
        x = matched[self.x]
        means = [matched[part] for part in (self.centre, self.mean) if part is not None]
        if not all(_is_last_axis(mean, x) for mean in means):
            return call
        if self.squared_by_power and _number(matched[self.two]) != 2:
            return call
        if not self.divided and _number(matched[self.one]) != 1:
            return call
        epsilon, scale = _number(matched[self.epsilon]), _weights(matched[self.scale], x)
        if epsilon is None or scale is None:
            return call
        if self.centre is None:
            return relax.op.nn.rms_norm(x, scale, -1, epsilon)
        shift = _weights(matched[self.shift], x)
        return call if shift is None else relax.op.nn.layer_norm(x, scale, shift, -1, epsilon)


def _either(operator: str, left: DFPattern, right: DFPattern) -> DFPattern:
    return is_op(operator)(left, right) | is_op(operator)(right, left)


@tvm.transform.module_pass(opt_level=0, name="Normalisations")
def normalisations(module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
    """Put one operator in the place of each norm that is written out."""
    forms = [
        _Written(centred, squared_by_power, divided, shifted=centred)
        for centred in (True, False)
        for squared_by_power in (True, False)
        for divided in (True, False)
    ]
    rewritten = tvm.IRModule(dict(module.functions_items()), attrs=module.attrs)
    for var, function in module.functions_items():
        if isinstance(function, relax.Function) and _takes_roots(function):
            for form in forms:
                function = rewrite_call(form.whole, form.rewrite, function)
            rewritten.update_func(var, function)
    return rewritten


def _takes_roots(function: relax.Function) -> bool:
    found = []

    def visit(expr: relax.Expr) -> None:
        if isinstance(expr, relax.Call) and getattr(expr.op, "name", "") == "relax.sqrt":
            found.append(expr)

    relax.analysis.post_order_visit(function, visit)
    return bool(found)
