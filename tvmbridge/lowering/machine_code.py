"""Scheduled functions → machine code of a CPU: passes of our own, then TVM's code generation."""

from __future__ import annotations

import tvm

from tvmbridge.lowering.early_vectors import early_vectors
from tvmbridge.lowering.vector_math import vector_math


def machine_code(module: tvm.IRModule, target: tvm.target.Target) -> tvm.runtime.Executable:
    """Compile a module; raises what TVM raises."""
    # LLVM finds common subexpressions too; TVM's own search for them takes a tenth of a trial's compilation.
    with tvm.transform.PassContext(opt_level=3, config={"tirx.disable_cse_tir": True}):
        return tvm.compile(early_vectors(vector_math(module, target)), target=target)
