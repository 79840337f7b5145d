"""Relax → fused kernels in channels-last layout, with constant weights: what the schedule templates are given.

`lower()` is the list of passes; each pass of our own is one file beside this one.
"""

from __future__ import annotations

import dataclasses
import re

import tvm
import tvm_ffi
from tvm import relax

from tvmbridge.errors import CompileError, is_interrupt, reason
from tvmbridge.frontend import ImportedModel
from tvmbridge.lowering.batch_norms import batch_norms
from tvmbridge.lowering.bounded_fusion import bounded_fusion
from tvmbridge.lowering.channels_last import channels_last
from tvmbridge.lowering.fold_constants import fold_constants
from tvmbridge.lowering.kept_differences import kept_differences
from tvmbridge.lowering.legalize import legalize
from tvmbridge.lowering.narrow import narrow
from tvmbridge.lowering.normalisations import normalisations
from tvmbridge.lowering.precision import float16_products
from tvmbridge.lowering.safe_divisions import safe_divisions
from tvmbridge.lowering.safe_indices import safe_indices
from tvmbridge.lowering.tvm_target import tvm_target
from tvmbridge.lowering.wide_sums import wide_sums
from tvmbridge.targets import Target


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One fused, unscheduled TIR function of a lowered model.

    name: its global symbol in the module.
    key: what a tuning record is found by: operators, shapes, dtypes and TVM's structural hash of the function.
    constants: indices of the parameters that are weights at every call, and so may be reordered at build time.
    calls: how often the network calls it.
    """

    name: str
    function: tvm.tirx.PrimFunc
    key: str
    constants: frozenset[int]
    calls: int


@dataclasses.dataclass(frozen=True)
class LoweredModel:
    """A model as kernels: `module["main"]` calls them through `R.call_tir`, its weights are constants."""

    module: tvm.IRModule
    kernels: tuple[Kernel, ...]


def lower(model: ImportedModel, target: Target) -> LoweredModel:
    """Lay the model out, fuse it into kernels and name them. Leaves `model` as it is; CompileError names the target."""
    passes = relax.transform
    pipeline = tvm.transform.Sequential(
        [
            safe_indices,
            normalisations,
            wide_sums,
            batch_norms,
            passes.DecomposeOpsForInference(),
            passes.CanonicalizeBindings(),
            narrow,
            channels_last,
            passes.CanonicalizeBindings(),
            fold_constants,
            legalize,
            passes.AnnotateTIROpPattern(),
            bounded_fusion,
            passes.FuseOps(),
            *([float16_products] if target.precision == "float16" else []),
            passes.FuseTIR(),
            safe_divisions,
            kept_differences,
            passes.RewriteDataflowReshape(),
            passes.DeadCodeElimination(),
        ]
    )
    try:
        with tvm_target(target):
            module = pipeline(model.module)
    except Exception as exc:  # TVM's passes raise many kinds, from C++ and from Python
        if is_interrupt(exc):
            raise KeyboardInterrupt from exc
        raise CompileError(f"{model.name}: lowering for {target.name} failed in TVM: {reason(exc)}") from exc
    return LoweredModel(module, _kernels(module))


def _kernels(module: tvm.IRModule) -> tuple[Kernel, ...]:
    """The kernels in the order in which main first calls them."""
    calls: dict[str, int] = {}
    constants: dict[str, set[int]] = {}

    def visit(expr: relax.Expr) -> None:
        if not isinstance(expr, relax.Call) or getattr(expr.op, "name", "") != "relax.call_tir":
            return
        name, operands = expr.args[0].name_hint, expr.args[1].fields
        weights = {i for i, operand in enumerate(operands) if isinstance(operand, tvm.ir.GenericConst)}
        calls[name] = calls.get(name, 0) + 1
        constants[name] = constants.get(name, weights) & weights

    for _, function in module.functions_items():
        if isinstance(function, relax.Function):
            relax.analysis.post_order_visit(function, visit)
    return tuple(
        Kernel(name, module[name], _key(name, module[name]), frozenset(constants[name]), calls[name]) for name in calls
    )


def _key(name: str, function: tvm.tirx.PrimFunc) -> str:
    operators = re.sub(r"(?<=[a-z])\d+(?=_|$)", "", name)
    tensors = (f"{buffer.dtype}[{','.join(_axis(axis) for axis in buffer.shape)}]" for buffer in function.params)
    return f"{operators}({' '.join(tensors)})#{tvm_ffi.structural_hash(function) & (2**64 - 1):016x}"


def _axis(axis: tvm.tirx.PrimExpr) -> str:
    return str(int(axis)) if isinstance(axis, tvm.tirx.IntImm) else "?"
