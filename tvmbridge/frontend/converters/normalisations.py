"""Normalisations."""

from __future__ import annotations

from tvm import relax

from tvmbridge.frontend.operator import Converter, Operator


def _instance_norm(op: Operator) -> relax.Expr:
    """A group norm of as many groups as there are channels."""
    x, scale, shift = op.inputs
    axes = list(range(2, len(op.shape(0))))
    return relax.op.nn.group_norm(x, scale, shift, op.shape(0)[1], 1, axes, op.attribute("epsilon", 1e-5))


CONVERTERS: dict[str, Converter] = {
    "InstanceNormalization": _instance_norm,
}
