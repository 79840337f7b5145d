"""What of a network is put into CUDA graphs: all kernels but those that read its inputs or write its outputs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import tvm
from onnx import TensorProto, helper, numpy_helper
from tvm import relax
from tvm.ir.instrument import pass_instrument

import networks
import tvmbridge
from tvmbridge.bundle.manifest import WITHOUT_GRAPHS
from tvmbridge.codegen.assemble import assemble
from tvmbridge.codegen.plan import plan_kernels
from tvmbridge.lowering import lower
from tvmbridge.lowering.graph_workspaces import find_workspaces
from tvmbridge.lowering.machine_code import relax_pipeline
from tvmbridge.lowering.tvm_target import tvm_target

TARGET = tvmbridge.parse_preset("cuda:sm_80,graphs")


def rewrite(model: onnx.ModelProto) -> tvm.IRModule:
    """The model's module when its kernels have been put into graphs."""
    lowered = lower(tvmbridge.import_onnx(model), TARGET)
    module, _ = assemble(lowered, plan_kernels(lowered, TARGET, None))
    seen = {}

    @pass_instrument
    class Watch:
        """Keeps the module."""

        def run_after_pass(self, module: tvm.IRModule, info: tvm.transform.PassInfo) -> None:
            """Called by TVM."""
            seen[str(info.name)] = module

    with tvm.transform.PassContext(opt_level=3, instruments=[Watch()]):
        relax_pipeline(tvm_target(TARGET), with_graphs=True)(module)
    return seen["cuda_graphs"]


def kernels_called(module: tvm.IRModule, name: str) -> list[str]:
    found = []
    for block in module[name].body.blocks:
        for binding in block.bindings:
            if isinstance(binding.value, relax.Call) and isinstance(binding.value.op, tvm.ir.GlobalVar):
                found.append(binding.value.op.name_hint)
    return found


def graphs_of(module: tvm.IRModule) -> list[str]:
    return [v.name_hint for v in module.get_global_vars() if v.name_hint.startswith("main_cuda_graph_capture")]


@pytest.mark.compiler
def test_workspaces_are_operands_and_kernels_between_inputs_and_outputs_are_in_a_graph() -> None:
    rng = np.random.default_rng(0)
    shapes = {"w": (24, 512), "v": (512, 12), "u": (12, 8)}
    weights = [numpy_helper.from_array(rng.normal(size=s).astype(np.float32), name) for name, s in shapes.items()]
    steps = [("MatMul", "x w", "p"), ("MatMul", "p v", "q"), ("Softmax", "q", "a"), ("MatMul", "a u", "y")]
    nodes = [helper.make_node(operator, takes.split(), [gives]) for operator, takes, gives in steps]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [3, 24]), ("y", [3, 8]))]
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:], weights)
    module = rewrite(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9))
    (captured,) = graphs_of(module)
    all_of_them = kernels_called(module, WITHOUT_GRAPHS)
    assert len(all_of_them) == 4
    assert kernels_called(module, captured) == all_of_them[1:3]
    assert kernels_called(module, "main") == [all_of_them[0], all_of_them[3]]
    operands = {name: len(module[name].params) for name in all_of_them}
    assert operands == dict(zip(all_of_them, (3, 4, 2, 3), strict=True))  # of the split product: its partial sums
    assert not any(find_workspaces(module[name]) for name in all_of_them)


@pytest.mark.cuda
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", networks.NETWORKS)
def test_all_kernels_of_a_benchmark_network_but_the_first_and_the_last_are_in_one_graph(name: str) -> None:
    module = rewrite(networks.make_network(name, 1))
    (captured,) = graphs_of(module)
    first, *others, last = kernels_called(module, WITHOUT_GRAPHS)
    assert kernels_called(module, captured) == others
    assert kernels_called(module, "main") == [first, last]
