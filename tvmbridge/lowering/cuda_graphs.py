"""Puts the kernels of main into CUDA graphs, as far as they read and write memory that stays where it is.

That is planned memory and weights; what reads an input or writes an output of the model is launched as before. TVM's
RewriteCUDAGraph does the work. Two things it gets wrong are kept from it: it gives functions that call each other the
same memory, and it captures kernels that take a workspace from a pool (see `graph_workspaces`).
"""

from __future__ import annotations

import tvm
from tvm import relax, tirx

from tvmbridge.bundle.manifest import WITHOUT_GRAPHS
from tvmbridge.lowering.graph_workspaces import find_workspaces


@tvm.transform.module_pass(opt_level=0, name="cuda_graphs")
def cuda_graphs(module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
    """Before: planned memory. After: main launches graphs, and `main_without_graphs` is main as it was.

    The run captures each graph when it first comes by. Kernels in the loops of a model stay outside.
    """
    main = module["main"]
    hidden = {
        variable: function
        for variable, function in module.functions_items()
        if variable.name_hint != "main" and _stays_outside(function)
    }
    module = tvm.IRModule(dict(module.functions_items()), attrs=module.attrs)
    # What is no function of TIR is called outside of graphs, and what is none of Relax is left as it is.
    for variable in hidden:
        module.update_func(variable, relax.ExternFunc(variable.name_hint))
    with tvm.transform.PassContext(config={"relax.backend.use_cuda_graph": True}):
        module = relax.transform.RewriteCUDAGraph()(module)
    for variable, function in hidden.items():
        module.update_func(variable, function)
    module.update_func(tvm.ir.GlobalVar(WITHOUT_GRAPHS), main.with_attr("global_symbol", WITHOUT_GRAPHS))
    return module


def _stays_outside(function: tvm.ir.BaseFunc) -> bool:
    return isinstance(function, relax.Function) or (
        isinstance(function, tirx.PrimFunc) and bool(find_workspaces(function))
    )
