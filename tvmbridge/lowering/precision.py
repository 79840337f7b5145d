"""Products of float16 with sums in float32, and float16 between kernels, for targets of `precision: float16`.

Within a kernel everything is computed as before, in float32: norms, softmax, reductions and exponentials among it. What
changes is what kernels hand to each other, and what products multiply. What is stored as float16 keeps to its range:
beyond ±65504 it stays there, infinities too, instead of becoming infinite; a NaN stays a NaN.
Before: fused groups of kernels. After: each float32 tensor that only kernels and reshapes pass on is float16, and so is
each float32 operand of a product (matmul, convolution) that a kernel does not compute itself, but for the filters of
depthwise convolutions; inputs and outputs of the model, and what any other code reads, keep their types.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import tvm
import tvm_ffi
from tvm import relax, te, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator
from tvm.s_tir import SBlock

HALF, WHOLE = "float16", "float32"
LARGEST = 65504.0  # of float16

_ELEMENTWISE = 0  # of tvm::relax::OpPatternKind
_PATTERN = "op_pattern"


@dataclasses.dataclass(frozen=True)
class _Group:
    """A call of one kernel, or of several that become one: its operands, and the calls that give its result."""

    name: str
    operands: tuple[relax.Expr, ...]
    parameters: tuple[relax.Expr, ...]
    parts: tuple[tuple[relax.Var, relax.Call], ...]
    result: relax.Var


@tvm.transform.module_pass(opt_level=0, name="Float16Products")
def float16_products(module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
    """Store what kernels hand to each other, and what products multiply, as float16."""
    narrower = _Narrower(module)
    for var, function in module.functions_items():
        if isinstance(function, relax.Function) and not _is_group(function):
            narrower.builder_.update_func(var, narrower.visit_expr(function))
    return relax.transform.DeadCodeElimination()(narrower.builder_.get())


def _is_group(function: relax.Function) -> bool:
    return bool(function.attrs and function.attrs.get("Primitive"))


def _name(value: relax.Expr) -> str:
    return getattr(value.op, "name", "") if isinstance(value, relax.Call) else ""


def _is_whole(expr: relax.Expr) -> bool:
    """Whether it is a float32 tensor of known shape."""
    if not isinstance(expr.ty, relax.TensorType) or str(expr.ty.dtype) != WHOLE:
        return False
    shape = expr.ty.shape
    return isinstance(shape, relax.ShapeExpr) and all(isinstance(axis, tirx.IntImm) for axis in shape.values)


@mutator
class _Narrower(PyExprMutator):
    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self._module = module
        self._stored: set[relax.Var] = set()  # what of the block is float16 wherever it is read
        self._half: dict[relax.Expr, relax.Expr] = {}  # the float16 of a tensor
        self._casts: dict[tuple[bool, tuple[int, ...]], tvm.ir.GlobalVar] = {}

    def visit_dataflow_block_(self, block: relax.DataflowBlock) -> relax.DataflowBlock:
        self._stored = self._to_be_stored(block)
        self._half = {}
        visited = super().visit_dataflow_block_(block)
        self._stored, self._half = set(), {}  # they are not seen outside of it
        return visited

    def _to_be_stored(self, block: relax.DataflowBlock) -> set[relax.Var]:
        """What kernels and reshapes alone make and read."""
        reshapes = [binding for binding in block.bindings if _name(binding.value) == "relax.reshape"]
        made = {binding.var for binding in block.bindings if self._group(binding.value) is not None}
        made |= {binding.var for binding in reshapes}
        stored = {var for var in made if isinstance(var, relax.DataflowVar) and _is_whole(var)}
        for binding in block.bindings:
            if self._group(binding.value) is None and binding not in reshapes:
                stored -= set(relax.analysis.free_vars(binding.value))
        changed = True
        while changed:
            changed = False
            for binding in reshapes:  # its result and what it reshapes are of one type
                both = {binding.var, binding.value.args[0]}
                if both & stored and not both <= stored:
                    stored -= both
                    changed = True
        return stored

    def _group(self, value: relax.Expr) -> _Group | None:
        """The call as a group; None where it is none, or has several results."""
        if not isinstance(value, relax.Call) or not isinstance(value.ty, relax.TensorType):
            return None
        if _name(value) == "relax.call_tir" and len(value.args) == 2 and isinstance(value.args[1], relax.Tuple):
            operands = tuple(value.args[1].fields)
            result = relax.Var("result", value.ty)
            return _Group(value.args[0].name_hint, operands, operands, ((result, value),), result)
        function = self._module[value.op] if isinstance(value.op, tvm.ir.GlobalVar) else None
        if not isinstance(function, relax.Function) or not _is_group(function):
            return None
        parts = tuple((part.var, part.value) for block in function.body.blocks for part in block.bindings)
        if not all(_name(part) == "relax.call_tir" and len(part.args) == 2 for _, part in parts):
            return None
        return _Group(value.op.name_hint, tuple(value.args), tuple(function.params), parts, function.body.body)

    def _factors(self, group: _Group) -> set[relax.Expr]:
        """The parameters of a group that a product in it multiplies, but for filters."""
        factors: set[relax.Expr] = set()
        for _, part in group.parts:
            function = self._module[part.args[0]]
            products = _products(function)
            kept = {source for product in products for source in _filters(product)}
            operands = zip(part.args[1].fields, function.params, strict=False)  # the last parameter is the result
            factors |= {operand for operand, given in operands if products and given not in kept and _is_whole(operand)}
        return factors

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        group, narrow = self._group(binding.value), binding.var in self._stored
        if group is None:
            if narrow:  # a reshape
                reshaped = relax.op.reshape(self._half[binding.value.args[0]], binding.value.args[1])
                self._half[binding.var] = self.builder_.emit(reshaped)
            else:
                super().visit_var_binding_(binding)
            return
        factors = self._factors(group)
        pairs = list(zip(group.operands, group.parameters, strict=True))
        halves = [operand in self._half or parameter in factors for operand, parameter in pairs]
        if not narrow and not any(halves):
            super().visit_var_binding_(binding)
            return
        operands = [
            self._half_of(operand) if half else self.visit_expr(operand)
            for half, operand in zip(halves, group.operands, strict=True)
        ]
        call = relax.Call(self._regrouped(group, operands, narrow), operands)
        if narrow:
            self._half[binding.var] = self.builder_.emit(call)
        elif isinstance(binding.var, relax.DataflowVar) or not self.builder_.current_block_is_dataflow():
            self.set_var_remap(binding.var, self.builder_.emit(call))
        else:
            self.set_var_remap(binding.var, self.builder_.emit_output(call))

    def _half_of(self, operand: relax.Expr) -> relax.Expr:
        """The operand in float16: as it is stored, a converted constant, or by a kernel of its own."""
        if operand in self._half:
            return self._half[operand]
        if isinstance(operand, tvm.ir.GenericConst):
            data = np.clip(operand.value.numpy(), -LARGEST, LARGEST)
            return relax.const(data.astype(HALF), HALF)
        kernel, shape = self._cast(operand, narrow=True), operand.ty.shape
        half = self.builder_.emit(
            relax.call_tir(kernel, [self.visit_expr(operand)], out_ty=relax.TensorType(shape, HALF))
        )
        if self.builder_.current_block_is_dataflow():
            self._half[operand] = half
        return half

    def _cast(self, like: relax.Expr, *, narrow: bool) -> tvm.ir.GlobalVar:
        """The kernel that casts tensors of a shape."""
        shape = tuple(int(axis) for axis in like.ty.shape.values)
        if (narrow, shape) not in self._casts:
            axes = [tirx.IntImm("int64", axis) for axis in shape]
            source = te.placeholder(axes, WHOLE if narrow else HALF, "x")
            function = te.create_prim_func([source, _to_half(source) if narrow else _to_whole(source)])
            function = function.with_attrs({_PATTERN: _ELEMENTWISE, "tirx.noalias": True})
            function = function.without_attr("global_symbol")
            self._casts[narrow, shape] = self.builder_.add_func(function, "narrow" if narrow else "widen")
        return self._casts[narrow, shape]

    def _regrouped(self, group: _Group, operands: list[relax.Expr], narrow: bool) -> tvm.ir.GlobalVar:
        """The group between casts: of operands that are float16 now, and, if that is `narrow`, of the result."""
        given = [relax.Var(f"x{place}", operand.ty) for place, operand in enumerate(operands)]
        builder = relax.BlockBuilder()
        with builder.function("group", given, attrs={"Primitive": True}):
            with builder.dataflow():
                values: dict[relax.Expr, relax.Expr] = {}
                for parameter, var in zip(group.parameters, given, strict=True):
                    if str(var.ty.dtype) == str(parameter.ty.dtype):
                        values[parameter] = var
                    else:
                        widen = self._cast(parameter, narrow=False)
                        values[parameter] = builder.emit(relax.call_tir(widen, [var], out_ty=parameter.ty))
                for var, part in group.parts:
                    inputs = [values.get(operand, operand) for operand in part.args[1].fields]
                    values[var] = builder.emit(relax.call_tir(part.args[0], inputs, out_ty=part.ty))
                result = values[group.result]
                if narrow:
                    half = relax.TensorType(result.ty.shape, HALF)
                    result = builder.emit(relax.call_tir(self._cast(result, narrow=True), [result], out_ty=half))
                output = builder.emit_output(result)
            builder.emit_func_output(output)
        return self.builder_.add_func(builder.get()["group"].without_attr("global_symbol"), f"{group.name}_half")


def _products(function: tirx.PrimFunc) -> list[tirx.Mul]:
    """The products of two tensors that it adds up; a variance multiplies one by itself."""
    found: list[tirx.Mul] = []

    def visit(block: SBlock) -> None:
        stored = block.body.value if block.init is not None and isinstance(block.body, tirx.BufferStore) else None
        if isinstance(stored, tirx.Add) and isinstance(stored.b, tirx.Mul):
            left, right = ({load.source for load in _loads(side)} for side in (stored.b.a, stored.b.b))
            if left and right and left != right:
                found.append(stored.b)

    tvm_ffi.structural_walk(function.body, (SBlock, visit))
    return found


def _filters(product: tirx.Mul) -> set[tvm.ir.Var]:
    """What it reads for a factor all of whose axes are the other factor's too, as in a depthwise convolution.

    Such a factor is small beside the other one, and no matrix for tensor cores: as float16 it would lose digits, and
    save next to no bytes.
    """
    sides = ((product.a, product.b), (product.b, product.a))
    filters = [side for side, other in sides if _axes(side) <= _axes(other, undivided=True)]
    return {load.source for side in filters for load in _loads(side)}


def _axes(factor: tvm.ir.Expr, *, undivided: bool = False) -> set[tvm.ir.Var]:
    """The axes in its indices; undivided: but for the channel of channel // n, by which grouped convolutions read."""
    found: set[tvm.ir.Var] = set()

    def divide(_: tirx.FloorDiv) -> tvm_ffi.WalkResult | None:
        return tvm_ffi.WalkResult.SKIP if undivided else None

    for index in (index for load in _loads(factor) for index in load.indices):
        tvm_ffi.structural_walk(index, [(tirx.FloorDiv, divide), (tvm.ir.Var, found.add)], order="pre")
    return found


def _loads(expr: tvm.ir.Expr) -> list[tvm.ir.TensorLoad]:
    found: list[tvm.ir.TensorLoad] = []
    tvm_ffi.structural_walk(expr, (tvm.ir.TensorLoad, found.append))
    return found


def _to_half(x: te.Tensor) -> te.Tensor:
    """float16, kept in its range; a NaN stays one."""

    def value(*i: tirx.PrimExpr) -> tirx.PrimExpr:
        low, high = (tirx.const(bound, WHOLE) for bound in (-LARGEST, LARGEST))
        return tirx.Select(x(*i) > high, high, tirx.Select(x(*i) < low, low, x(*i))).astype(HALF)

    return te.compute(x.shape, value, name="half")


def _to_whole(x: te.Tensor) -> te.Tensor:
    return te.compute(x.shape, lambda *i: x(*i).astype(WHOLE), name="whole")
