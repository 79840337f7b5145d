"""Gives kernels their workspaces as operands, planned with all other memory, so that a CUDA graph can hold them.

TVM's host code takes what the GPU functions of one kernel hand to each other (the partial sums of a split reduction)
from a pool of the calling thread. That pool frees a block when a larger one is wanted, and all of them when the thread
ends; a CUDA graph would go on reading and writing there.
"""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import relax, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator
from tvm.s_tir import SBlock
from tvm.s_tir.transform import PlanAndUpdateBufferAllocationLocation
from tvm_ffi.structural import WalkResult


@tvm.transform.module_pass(opt_level=0, name="graph_workspaces")
def graph_workspaces(module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
    """Before: kernels are called on tensors that were allocated for them. After: their workspaces of known sizes too.

    A workspace whose size the run decides stays the kernel's own.
    """
    elsewhere = _named_in_operands(module)
    workspaces: dict[tvm.ir.GlobalVar, list[tvm.ir.Var]] = {}
    for variable, function in module.functions_items():
        found = find_workspaces(function) if isinstance(function, tirx.PrimFunc) else []
        if found and variable not in elsewhere and all(_is_fixed(buffer) for buffer in found):
            workspaces[variable] = found
    if not workspaces:
        return module
    others = {variable: function for variable, function in module.functions_items() if variable not in workspaces}
    caller = _Caller(tvm.IRModule(others, attrs=module.attrs))
    for variable, buffers in workspaces.items():
        caller.replace(variable, _with_operands(module[variable], buffers), buffers)
    for variable, function in others.items():
        if isinstance(function, relax.Function):
            caller.builder_.update_func(variable, caller.visit_expr(function))
    return caller.builder_.get()


def find_workspaces(function: tirx.PrimFunc) -> list[tvm.ir.Var]:
    """The buffers in the GPU's memory that the function's host code allocates."""
    # Where TVM puts what blocks allocate: a buffer that one GPU function alone uses is no workspace.
    planned = PlanAndUpdateBufferAllocationLocation()(tvm.IRModule({"main": function}))["main"]
    found: list[tvm.ir.Var] = []

    def stop_at_threads(statement: tirx.Stmt) -> WalkResult | None:
        on_gpu = (
            statement.kind == tirx.ForKind.THREAD_BINDING
            if isinstance(statement, tirx.For)
            else statement.attr_key == "thread_extent"
        )
        return WalkResult.SKIP if on_gpu else None

    def note(buffers: list[tvm.ir.Var]) -> None:
        found.extend(buffer for buffer in buffers if buffer.scope() in ("", "global") and buffer not in found)

    tvm_ffi.structural_walk(
        planned.body,
        [
            (tirx.For, stop_at_threads),
            (tirx.AttrStmt, stop_at_threads),
            (SBlock, lambda block: note(list(block.alloc_buffers))),
            (tirx.AllocBuffer, lambda allocation: note([allocation.buffer])),
        ],
        order="pre",
    )
    return found


def _is_fixed(buffer: tvm.ir.Var) -> bool:
    return all(isinstance(extent, tirx.IntImm) for extent in buffer.shape)


def _named_in_operands(module: tvm.IRModule) -> set[tvm.ir.GlobalVar]:
    """The functions that something else calls than a plain call, which gives them its operands in its own way."""
    found: set[tvm.ir.GlobalVar] = set()

    def visit(expr: relax.Expr) -> None:
        if isinstance(expr, relax.Call):
            found.update(operand for operand in expr.args if isinstance(operand, tvm.ir.GlobalVar))

    for _, function in module.functions_items():
        if isinstance(function, relax.Function):
            relax.analysis.post_order_visit(function, visit)
    return found


def _with_operands(function: tirx.PrimFunc, buffers: list[tvm.ir.Var]) -> tirx.PrimFunc:
    """The function with these of its own buffers as its last parameters."""

    def without(statement: tirx.SeqStmt) -> tirx.Stmt:
        kept = [each for each in statement.seq if not (isinstance(each, tirx.AllocBuffer) and each.buffer in buffers)]
        return kept[0] if len(kept) == 1 else tirx.SeqStmt(kept)

    def shorten(block: SBlock) -> SBlock:
        kept = [buffer for buffer in block.alloc_buffers if buffer not in buffers]
        if len(kept) == len(block.alloc_buffers):
            return block
        return SBlock(
            block.iter_vars,
            block.reads,
            block.writes,
            block.name_hint,
            block.body,
            block.init,
            kept,
            block.match_buffers,
            block.annotations,
        )

    body = tvm_ffi.structural_map(function.body, [(tirx.SeqStmt, without), (SBlock, shorten)])
    return tirx.PrimFunc([*function.params, *buffers], body, function.ret_type, function.attrs)


@mutator
class _Caller(PyExprMutator):
    """Allocates the workspaces of the kernels that are called."""

    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self._replaced: dict[tvm.ir.GlobalVar, tuple[tvm.ir.GlobalVar, list[tvm.ir.Var]]] = {}

    def replace(self, variable: tvm.ir.GlobalVar, function: tirx.PrimFunc, buffers: list[tvm.ir.Var]) -> None:
        """Call this function, by the same name, with these buffers as its last operands."""
        self._replaced[variable] = self.builder_.add_func(function, variable.name_hint), buffers

    def visit_call_(self, op: relax.Call) -> relax.Expr:
        if op.op not in self._replaced:
            return super().visit_call_(op)
        function, buffers = self._replaced[op.op]
        tensors = [self.builder_.emit(_allocate(buffer), buffer.name) for buffer in buffers]
        return relax.Call(function, [*map(self.visit_expr, op.args), *tensors], op.attrs, op.ty_args)


def _allocate(buffer: tvm.ir.Var) -> relax.Call:
    shape = relax.ShapeExpr(list(buffer.shape))
    return relax.op.builtin.alloc_tensor(shape, str(buffer.dtype), 0)
