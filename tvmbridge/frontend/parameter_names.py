"""Gives main's parameters names that are identifiers in C: they end up in CUDA code, and ONNX's may hold anything.

Before: a Relax module of the importer. After: the same, its main called with parameters input0, input1, …
"""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator


def name_parameters(module: tvm.IRModule) -> tvm.IRModule:
    """Rename the parameters of main; their order and types stay."""
    main = module["main"]
    renamed = [relax.Var(f"input{index}", old.ty) for index, old in enumerate(main.params)]
    replacer = _Replacer(module)
    for old, new in zip(main.params, renamed, strict=True):
        replacer.set_var_remap(old, new)
    body = replacer.visit_with_new_scope(main.body)
    named = tvm.IRModule(dict(module.functions_items()), attrs=module.attrs)
    named.update_func(
        named.get_global_var("main"), relax.Function(renamed, body, main.ret_ty, main.is_pure, main.attrs)
    )
    return named


@mutator
class _Replacer(PyExprMutator):
    """Only what set_var_remap says."""
