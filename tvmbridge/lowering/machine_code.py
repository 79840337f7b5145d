"""Scheduled functions → machine code: passes of our own, then TVM's code generation."""

from __future__ import annotations

from collections.abc import Sequence

import tvm
from tvm.ir.instrument import PassInstrument
from tvm.relax.backend.cpu_generic import pipeline as cpu_generic
from tvm.relax.backend.cuda import pipeline as cuda

from tvmbridge.lowering.branch_storage import branch_storage
from tvmbridge.lowering.cuda_graphs import cuda_graphs
from tvmbridge.lowering.early_vectors import early_vectors
from tvmbridge.lowering.graph_workspaces import graph_workspaces
from tvmbridge.lowering.vector_math import vector_math

_DONE = frozenset({"AnnotateTIROpPattern", "FoldConstant", "FuseOps", "FuseTIR"})


def machine_code(
    module: tvm.IRModule,
    target: tvm.target.Target,
    instruments: Sequence[PassInstrument] = (),
    *,
    with_graphs: bool = False,
) -> tvm.runtime.Executable:
    """Compile a module, with TVM's passes under these instruments; raises what TVM raises.

    with_graphs: for CUDA: launch kernels in CUDA graphs where that can be.
    """
    # LLVM finds common subexpressions too; TVM's own search for them takes a tenth of a trial's compilation.
    config = {"tirx.disable_cse_tir": True}
    with tvm.transform.PassContext(opt_level=3, config=config, instruments=list(instruments)):
        pipeline = relax_pipeline(target, with_graphs=with_graphs)
        return tvm.compile(early_vectors(vector_math(module, target)), target=target, relax_pipeline=pipeline)


def relax_pipeline(target: tvm.target.Target, *, with_graphs: bool) -> tvm.transform.Pass:
    """TVM's own, with what its memory planner needs after it, and without fusing once more what `lower` has fused.

    Left to legalize are sorting and its kin, and reshapes: these become copies, which would be fused into kernels
    that are scheduled already, and are views again where nothing holds them.
    """
    backend = cuda if target.kind.name == "cuda" else cpu_generic
    passes = [
        *backend.library_dispatch_passes(target),
        *(each for each in backend.legalize_passes(target) if each.info.name not in _DONE),
        *backend.dataflow_lower_passes(target),
        *([graph_workspaces] if with_graphs else []),
    ]
    for each in backend.finalize_passes(target):
        passes.append(each)
        if each.info.name == "StaticPlanBlockMemory":
            passes += [branch_storage, *([cuda_graphs] if with_graphs else [])]

    @tvm.transform.module_pass(opt_level=0, name="with_target")
    def run(module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        with target:
            return tvm.transform.Sequential(passes)(module)

    return run
