"""precision: float16: what is stored and multiplied as float16, what stays, and that ranges and NaNs are kept."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from kernels import Build, Input, imported, random_array, relax_module, run_lowered
from tvm import relax

from tvmbridge.lowering import LoweredModel, lower
from tvmbridge.targets import parse_preset

pytestmark = pytest.mark.compiler

op = relax.op
F16, F32 = "float16", "float32"
GPU = parse_preset("cuda:sm_80,float16")
# Lowering goes by the precision alone, so that what it makes is computed here.
CPU = parse_preset("native")
HALF = msgspec.structs.replace(CPU, precision=F16)


def constant(*shape: int, scale: float = 1.0) -> relax.Expr:
    return relax.const(random_array(np.random.default_rng(len(shape)), shape, F32) * np.float32(scale), F32)


def lowered(build: Build, *inputs: Input) -> LoweredModel:
    return lower(imported(relax_module(build, inputs)), GPU)


def dtypes(model: LoweredModel) -> list[list[str]]:
    return [[str(parameter.dtype) for parameter in kernel.function.params] for kernel in model.kernels]


def computed(build: Build, *arrays: np.ndarray) -> np.ndarray:
    model = imported(relax_module(build, [(array.shape, str(array.dtype)) for array in arrays]))
    (output,) = run_lowered(lower(model, HALF), HALF, arrays)
    return output


def mlp(x: relax.Expr) -> relax.Expr:
    hidden = op.nn.relu(op.add(op.matmul(x, constant(32, 64)), constant(64)))
    return op.add(op.matmul(hidden, constant(64, 16)), constant(16))


def residual(x: relax.Expr) -> relax.Expr:
    """Two convolutions around a sum, a norm and a softmax."""
    y = op.nn.relu(op.nn.conv2d(x, constant(8, 3, 3, 3), padding=1))
    z = op.add(op.nn.conv2d(y, constant(8, 8, 3, 3, scale=0.1), padding=1), y)
    row = op.reshape(op.permute_dims(z, [0, 2, 3, 1]), [1, 25, 8])
    normal = op.nn.layer_norm(row, constant(8), constant(8), -1)
    return op.matmul(op.nn.softmax(normal, -1), constant(8, 5))


def test_products_multiply_float16_and_the_model_keeps_its_types():
    assert dtypes(lowered(mlp, ((4, 32), F32))) == [
        [F32, F16],  # the input, which is cast by itself
        [F16, F16, F32, F16],  # rows, weights, biases; the result goes to a kernel
        [F16, F16, F32, F32],
    ]


def test_whatever_lies_between_kernels_is_float16_and_there_are_no_more_kernels_than_before():
    model = lowered(residual, ((1, 3, 5, 5), F32))
    plain = lower(imported(relax_module(residual, [((1, 3, 5, 5), F32)])), parse_preset("cuda:sm_80"))
    assert len(model.kernels) == len(plain.kernels)
    first, *between, last = dtypes(model)
    assert first[-1] == F16 and last[-1] == F32
    assert all(parameters[-1] == F16 and parameters[0] == F16 for parameters in between)


def test_norms_keep_their_weights():
    model = lowered(residual, ((1, 3, 5, 5), F32))
    (norm,) = (kernel for kernel in model.kernels if kernel.name.startswith("layer_norm"))
    assert [str(parameter.dtype) for parameter in norm.function.params] == [F16, F32, F32, F16]


def test_filters_of_depthwise_convolutions_stay_float32_and_those_of_other_groups_do_not():
    for groups, depth, weights in ((8, 1, F32), (4, 2, F16), (1, 8, F16)):

        def build(x: relax.Expr, groups: int = groups, depth: int = depth) -> relax.Expr:
            y = op.nn.relu(op.nn.conv2d(x, constant(8, 3, 3, 3), padding=1))
            return op.nn.conv2d(y, constant(8, depth, 3, 3), padding=1, groups=groups)

        assert [F16, weights, F16] in dtypes(lowered(build, ((1, 3, 6, 6), F32)))


def test_a_vector_that_a_matrix_is_multiplied_by_stays_float32():
    (parameters,) = dtypes(lowered(lambda x: op.matmul(x, constant(32, 16)), ((32,), F32)))
    assert parameters == [F32, F16, F32]


@pytest.mark.parametrize(("build", "shape"), [(mlp, (4, 32)), (residual, (1, 3, 5, 5))])
def test_results_are_those_of_float32_to_a_few_steps_of_float16(build: Build, shape: tuple[int, ...]):
    x = random_array(np.random.default_rng(3), shape, F32)
    (exact,) = run_lowered(lower(imported(relax_module(build, [(shape, F32)])), CPU), CPU, [x])
    assert np.abs(computed(build, x) - exact).max() <= 3e-3 * np.abs(exact).max()


def test_what_is_beyond_the_range_of_float16_stays_in_it_and_a_nan_is_one():
    def build(x: relax.Expr) -> relax.Expr:
        return op.matmul(op.nn.softmax(op.permute_dims(op.matmul(x, constant(4, 4)), [1, 0]), -1), constant(3, 2))

    x = np.full((3, 4), 1e5, F32)
    x[0] = [1.0, 2.0, 3.0, 4.0]
    assert np.isfinite(computed(build, x)).all()
    x[0, 0] = np.nan
    assert np.isnan(computed(build, x)).all()


def test_integers_and_other_floats_keep_their_types():
    def build(x: relax.Expr, y: relax.Expr) -> relax.Expr:
        return op.add(op.matmul(x, x), op.astype(op.max(y), "float64"))

    assert dtypes(lowered(build, ((4, 4), "float64"), ((3,), "int32"))) == dtypes(
        lower(imported(relax_module(build, [((4, 4), "float64"), ((3,), "int32")])), parse_preset("cuda:sm_80"))
    )


def test_a_value_that_the_model_gives_out_and_goes_on_with_is_given_out_as_it_was_computed():
    def build(x: relax.Expr) -> relax.Expr:
        y = op.nn.relu(op.matmul(x, constant(32, 64)))
        return relax.Tuple([y, op.matmul(y, constant(64, 16))])

    model = lowered(build, ((4, 32), F32))
    assert [parameters[-1] for parameters in dtypes(model)] == [F16, F32, F16, F32]
