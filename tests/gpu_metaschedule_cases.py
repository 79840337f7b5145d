"""What MetaSchedule proposes for tensor cores, run on an emulated GPU and held against NumPy in float64.

`python -m gpu_metaschedule_cases` in the emulated environment; it prints how many traces of each case were right.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import tvm_ffi
from gpu_cases import run_on_device
from kernels import assert_close, lower_expression, plan, random_array
from test_contraction import conv2d_reference
from tvm import relax

from tests.cuda_emulation import compile_for_tvm
from tvmbridge.codegen.assemble import assemble
from tvmbridge.codegen.plan import plan_kernel
from tvmbridge.lowering import Kernel, LoweredModel
from tvmbridge.schedules.metaschedule import TEMPLATE
from tvmbridge.schedules.tensor_spaces import has_tensor_space
from tvmbridge.targets import parse_preset
from tvmbridge.tuning import engines
from tvmbridge.tuning.engines.metaschedule import MetaScheduleEngine, metaschedule_tasks
from tvmbridge.tuning.lookup import LogRecords
from tvmbridge.tuning.record import TrialRecord
from tvmbridge.tuning.tasks import Candidate

GPU = parse_preset("cuda:sm_80,float16")
F16, F32, F64 = "float16", "float32", "float64"
op = relax.op
Build = Callable[..., relax.Expr]


@dataclasses.dataclass(frozen=True)
class Case:
    """A network of one product, of which the inputs and weights are float16 in all but type."""

    shapes: tuple[tuple[int, ...], ...]
    build: Build
    reference: Callable[..., np.ndarray]

    def inputs(self) -> list[np.ndarray]:
        """The same at each call."""
        return [_half_values(place, shape) for place, shape in enumerate(self.shapes)]

    def lower(self) -> LoweredModel:
        """The network for a GPU, in half precision."""
        return lower_expression(lambda *x: relax.Tuple([self.build(*x)]), [(shape, F32) for shape in self.shapes], GPU)


def _half_values(seed: int, shape: Sequence[int]) -> np.ndarray:
    return random_array(np.random.default_rng(seed), shape, F16).astype(F32)


def _dense(rows: int, depth: int, columns: int) -> Case:
    weight = _half_values(7, (depth, columns))
    return Case(
        ((rows, depth),),
        lambda x: op.nn.relu(op.matmul(x, relax.const(weight, F32))),
        lambda x: np.maximum(x.astype(F64) @ weight, 0),
    )


def _convolution(size: int, strides: int) -> Case:
    weight = _half_values(7, (24, 16, 3, 3))

    def build(x: relax.Expr) -> relax.Expr:
        return op.nn.relu(op.nn.conv2d(x, relax.const(weight, F32), strides, 1))

    def reference(x: np.ndarray) -> np.ndarray:
        return np.maximum(conv2d_reference(x, weight, [strides] * 2, [1] * 4, [1] * 2, 1), 0)

    return Case(((1, 16, size, size),), build, reference)


CASES = {
    "even": _dense(32, 64, 48),
    "ragged": _dense(33, 67, 51),
    "batched": Case(
        ((3, 24, 20), (3, 19, 20)),
        lambda x, y: op.matmul(x, op.permute_dims(y, [0, 2, 1])),
        lambda x, y: np.einsum("bik,bjk->bij", x.astype(F64), y.astype(F64)),
    ),
    "convolution": _convolution(8, 1),
    "strided": _convolution(9, 2),
    "edges": _convolution(10, 1),
}


def proposed(kernel: Kernel, count: int) -> list[Candidate]:
    """Traces for tensor cores, as the engine proposes them."""
    engines.metaschedule._POPULATION, engines.metaschedule._RANDOM_POPULATION = 16, 8
    (task,) = metaschedule_tasks(LoweredModel(None, (kernel,)), GPU, LogRecords())
    untuned = TrialRecord(
        kernel=kernel.key,
        target=GPU.key,
        template=task.untuned.template.name,
        template_version=task.untuned.template.version,
        config=task.untuned.config,
        times_us=(1.0,),
        error=None,
        tvm="0",
        seed=0,
        when="2026-01-01T00:00:00Z",
    )
    engine = MetaScheduleEngine([task], GPU, seed=5)
    engine.learn([task.untuned], [untuned])
    found = [each for each in engine.next_batch(16) if "Tensorize" in str(each.config["trace"])]
    assert len(found) >= count
    return found[:count]


def run(case: Case, count: int) -> int:
    """Compare; how many traces were right."""
    lowered, inputs = case.lower(), case.inputs()
    (kernel,) = (each for each in lowered.kernels if has_tensor_space(each, GPU))
    expected = case.reference(*inputs)
    for candidate in proposed(kernel, count):
        plans = [
            plan(each, GPU, TEMPLATE, candidate.config) if each is kernel else plan_kernel(each, GPU, None)
            for each in lowered.kernels
        ]
        module, weights = assemble(lowered, plans)
        (output,) = run_on_device(module, weights, inputs)
        assert_close(output, expected, 1e-3)
    return count


if __name__ == "__main__":
    tvm_ffi.register_global_func("tvm_callback_cuda_compile", compile_for_tvm, override=True)
    for name, case in CASES.items():
        print(name, run(case, 2), flush=True)
