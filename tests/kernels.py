"""Small Relax modules and how to lower, schedule and run them: what compiler tests are made of."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
import tvm
from hypothesis import strategies as st
from tvm import relax

from tvmbridge.codegen.assemble import assemble
from tvmbridge.codegen.plan import KernelPlan, plan_kernel
from tvmbridge.frontend import ImportedModel
from tvmbridge.host import detect_host
from tvmbridge.lowering import Kernel, LoweredModel, lower
from tvmbridge.lowering.machine_code import machine_code
from tvmbridge.lowering.tvm_target import tvm_target
from tvmbridge.schedules import Config, Template, fitting_templates
from tvmbridge.schedules.loops import costs
from tvmbridge.signature import ModelSignature
from tvmbridge.targets import Target, parse_preset, why_not_local

Build = Callable[..., relax.Expr]
Input = tuple[tuple[int, ...], str]
Choose = Callable[[Kernel], "tuple[Template, Config]"]


def runnable_targets() -> list[Target]:
    """Targets of different vector widths whose code runs on this machine; `native` is the first."""
    wanted = ["native", "x86:x86-64-v3", "x86:x86-64-v4", "arm:cortex-a72"]
    found = [target for target in map(parse_preset, wanted) if why_not_local(target, detect_host()) is None]
    return [target for i, target in enumerate(found) if target.cpu not in {other.cpu for other in found[:i]}]


def relax_module(build: Build, inputs: Sequence[Input]) -> tvm.IRModule:
    """A module whose main returns `build(*inputs)`."""
    builder = relax.BlockBuilder()
    parameters = [relax.Var(f"x{i}", relax.TensorType(shape, dtype)) for i, (shape, dtype) in enumerate(inputs)]
    with builder.function("main", parameters):
        with builder.dataflow():
            output = builder.emit_output(builder.emit(build(*parameters)))
        builder.emit_func_output(output)
    return builder.get()


def imported(module: tvm.IRModule) -> ImportedModel:
    """A Relax module as the frontend would hand it over."""
    return ImportedModel("test", module, ModelSignature((), ()), 17, "0" * 64, Path("test.onnx"))


def lower_expression(build: Build, inputs: Sequence[Input], target: Target) -> LoweredModel:
    """Lower a module made of one expression."""
    return lower(imported(relax_module(build, inputs)), target)


def lower_function(function: tvm.tirx.PrimFunc, name: str = "handmade") -> Kernel:
    """A handmade kernel without weights; its key is its name."""
    return Kernel(name, function.with_attr("global_symbol", name), name, frozenset(), 1)


def random_array(generator: np.random.Generator, shape: Sequence[int], dtype: str) -> np.ndarray:
    """Values of real variety: floats around zero, small integers of both signs, coin tosses."""
    if dtype == "bool":
        return generator.integers(0, 2, size=shape).astype(bool)
    if dtype.startswith(("int", "uint")):
        return generator.integers(0 if dtype[0] == "u" else -7, 8, size=shape).astype(dtype)
    return np.asarray(generator.normal(size=shape)).astype(dtype)


def guess(kernel: Kernel, target: Target) -> tuple[Template, Config]:
    """What an untuned build takes."""
    template = fitting_templates(kernel, target)[0]
    return template, template.guess(kernel, target)


def plan(kernel: Kernel, target: Target, template: Template, config: Config) -> KernelPlan:
    """One kernel scheduled with this config; raises where the template cannot."""
    return KernelPlan(kernel, template, config, template.schedule(kernel, target, config), None)


def run_lowered(
    lowered: LoweredModel, target: Target, arrays: Sequence[np.ndarray], choose: Choose | None = None
) -> list[np.ndarray]:
    """Assemble, compile and run a lowered model; its outputs. choose: the config of each kernel, else the guess."""
    plans = [plan(k, target, *choose(k)) if choose else plan_kernel(k, target, None) for k in lowered.kernels]
    module, weights = assemble(lowered, plans)
    described = tvm_target(target)
    machine = relax.VirtualMachine(machine_code(module, described), tvm.cpu())
    fed = [tvm.runtime.tensor(array) for array in arrays]
    outputs = machine["main"](*fed, *([[tvm.runtime.tensor(weight) for weight in weights]] if weights else []))
    return [output.numpy() for output in ([outputs] if hasattr(outputs, "numpy") else outputs)]


def compile_function(function: tvm.tirx.PrimFunc, target: Target) -> tvm.runtime.Module:
    """Machine code of one scheduled function; its entry is called main."""
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    described = tvm_target(target)
    return machine_code(module, described).mod


def run_function(function: tvm.tirx.PrimFunc, target: Target, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Run one scheduled function on arrays for its inputs; its outputs."""
    outputs = [
        np.zeros([int(axis) for axis in buffer.shape], str(buffer.dtype))
        for buffer in list(function.params)[len(arrays) :]
    ]
    tensors = [tvm.runtime.tensor(array) for array in [*arrays, *outputs]]
    compile_function(function, target)["main"](*tensors)
    return [tensor.numpy() for tensor in tensors[len(arrays) :]]


def assert_close(ours: np.ndarray, reference: np.ndarray, tolerance: float) -> None:
    """Compare in float64; the tolerance is of the largest reference, or of 1."""
    assert ours.shape == reference.shape
    scale = max(1.0, float(np.abs(reference).max(initial=0.0)))
    np.testing.assert_allclose(ours.astype("float64"), reference.astype("float64"), rtol=0, atol=tolerance * scale)


class DrawnChoice:
    """For each kernel a drawn config of a drawn template that fits, or of `template` where that fits, else the guess.

    taken, left: the names of the kernels that got a drawn one, and of those that got the guess.
    """

    def __init__(self, data: st.DataObject, target: Target, template: Template | None = None) -> None:
        self._data, self._target, self._template = data, target, template
        self.taken: list[str] = []
        self.left: list[str] = []

    def __call__(self, kernel: Kernel) -> tuple[Template, Config]:
        templates = fitting_templates(kernel, self._target)
        if self._template is not None:
            templates = tuple(template for template in templates if template is self._template)
        if not templates:
            self.left.append(kernel.name)
            return guess(kernel, self._target)
        self.taken.append(kernel.name)
        template = self._data.draw(st.sampled_from(templates))
        return template, self._data.draw(st.sampled_from(template.configs(kernel, self._target)))


def run_drawn(
    data: st.DataObject,
    lowered: LoweredModel,
    target: Target,
    arrays: Sequence[np.ndarray],
    template: Template | None = None,
) -> tuple[np.ndarray, DrawnChoice]:
    """The output of drawn configs, in one thread or dealt out to some, however small the kernels are."""
    target = msgspec.structs.replace(target, cores=data.draw(st.sampled_from([1, 2, 3])))
    choice = DrawnChoice(data, target, template)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs, "THREADS_NS", 0)
        (output,) = run_lowered(lowered, target, arrays, choice)
    return output, choice


def start_python(program: str, **options: object) -> subprocess.Popen[str]:
    """Another Python process that finds what this one finds, the tests' own modules included."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])}
    return subprocess.Popen([sys.executable, "-c", program], env=environment, text=True, **options)  # type: ignore[call-overload]


def run_python(program: str) -> str:
    """What a program prints in another Python process."""
    with start_python(program, stdout=subprocess.PIPE) as process:
        printed, _ = process.communicate()
    assert process.returncode == 0
    return printed
