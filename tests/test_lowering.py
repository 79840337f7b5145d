"""Lowering: kernel keys that mean the same everywhere, weights told apart, the model left as it was."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tvm
import tvm_ffi
from kernels import imported, lower_expression, random_array, relax_module, run_lowered, run_python, runnable_targets
from tvm import relax

from tvmbridge.errors import CompileError
from tvmbridge.lowering import Kernel, lower
from tvmbridge.lowering.fold_constants import fold_constants
from tvmbridge.lowering.tvm_target import tvm_target
from tvmbridge.targets import parse_preset

pytestmark = pytest.mark.compiler

op = relax.op
F32 = "float32"
NATIVE = runnable_targets()[0]


def constant(*shape: int, seed: int = 0, dtype: str = F32) -> relax.Expr:
    return relax.const(random_array(np.random.default_rng(seed), shape, dtype), dtype)


def network(x: relax.Expr) -> relax.Expr:
    """Two equal convolutions, one other, and a classifier."""
    for seed in (1, 2):
        x = op.nn.relu(op.add(op.nn.conv2d(x, constant(8, 8, 3, 3, seed=seed), padding=1), constant(1, 8, 1, 1)))
    x = op.nn.max_pool2d(op.nn.conv2d(x, constant(16, 8, 1, 1, seed=3)), (2, 2), 2)
    return op.nn.softmax(op.matmul(op.reshape(x, (1, 256)), constant(256, 10, seed=4)))


IMAGE = [((1, 8, 8, 8), F32)]


def keys(kernels: tuple[Kernel, ...]) -> list[str]:
    return [kernel.key for kernel in kernels]


def test_equal_kernels_are_one_that_is_called_twice() -> None:
    kernels = lower_expression(network, IMAGE, NATIVE).kernels
    assert len(set(keys(kernels))) == len(kernels)
    (twice,) = (k for k in kernels if k.key.startswith("fused_conv2d_add_relu"))
    assert twice.calls == 2
    assert twice.key.startswith("fused_conv2d_add_relu(float32[1,8,8,8] float32[3,3,8,8] float32[1,1,1,8] ")


def test_a_kernel_has_the_same_key_wherever_it_stands_in_a_network() -> None:
    def product(x: relax.Expr) -> relax.Expr:
        return op.nn.relu(op.matmul(x, constant(24, 24)))

    def late(x: relax.Expr) -> relax.Expr:
        y = op.matmul(op.nn.gelu(op.matmul(x, constant(24, 48))), constant(48, 24))
        return product(op.nn.softmax(y))

    (alone,) = lower_expression(product, [((5, 24), F32)], NATIVE).kernels
    assert alone.key in keys(lower_expression(late, [((5, 24), F32)], NATIVE).kernels)


@pytest.mark.parametrize(
    ("shape", "dtype", "width"),
    [((6, 24), F32, 24), ((5, 24), F32, 16), ((5, 24), "float64", 24), ((1, 5, 24), F32, 24)],
)
def test_other_shapes_and_dtypes_give_other_keys(shape: tuple[int, ...], dtype: str, width: int) -> None:
    def build(x: relax.Expr, dtype: str = dtype, width: int = width) -> relax.Expr:
        return op.matmul(x, constant(24, width, dtype=dtype))

    (reference,) = lower_expression(lambda x: build(x, F32, 24), [((5, 24), F32)], NATIVE).kernels
    (other,) = lower_expression(build, [(shape, dtype)], NATIVE).kernels
    assert other.key != reference.key


def test_attributes_that_shapes_do_not_show_give_other_keys() -> None:
    found = {
        lower_expression(lambda x, f=factor: x * relax.const(f), [((5, 5), F32)], NATIVE).kernels[0].key
        for factor in (0.5, 0.25)
    }
    assert len(found) == 2


def test_keys_are_the_same_in_another_process() -> None:
    program = (
        "import json, test_lowering as t\n"
        "print(json.dumps(t.keys(t.lower_expression(t.network, t.IMAGE, t.NATIVE).kernels)))"
    )
    assert json.loads(run_python(program).splitlines()[-1]) == keys(lower_expression(network, IMAGE, NATIVE).kernels)


def test_lowering_runs_no_kernel_so_that_no_thread_starts() -> None:
    program = (
        "import os, test_lowering as t\n"
        "module = t.imported(t.relax_module(t.network, t.IMAGE))\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "t.lower(module, t.NATIVE)\n"
        "print(before, len(os.listdir('/proc/self/task')))"
    )
    before, after = run_python(program).split()[-2:]
    assert before == after


def test_only_weights_at_every_call_are_constants() -> None:
    weights = constant(24, 24)

    def build(x: relax.Expr) -> relax.Expr:
        return op.matmul(op.matmul(x, weights), x)  # the same kernel, once with weights and once without

    (kernel,) = lower_expression(build, [((24, 24), F32)], NATIVE).kernels
    assert (kernel.calls, kernel.constants) == (2, frozenset())
    (kernel,) = lower_expression(lambda x: op.matmul(x, weights), [((24, 24), F32)], NATIVE).kernels
    assert kernel.constants == {1}


def test_lowering_leaves_the_model_as_it_was_and_can_be_repeated() -> None:
    model = imported(relax_module(network, IMAGE))
    before = tvm.ir.save_json(model.module)
    targets = [NATIVE, parse_preset("arm:cortex-a72"), parse_preset("cuda:sm_90"), NATIVE]
    lowered = [lower(model, target) for target in targets]
    assert tvm.ir.save_json(model.module) == before
    assert keys(lowered[0].kernels) == keys(lowered[-1].kernels)
    assert tvm_ffi.structural_equal(lowered[0].module, lowered[-1].module)


def test_a_lowered_network_computes_what_relax_computes() -> None:
    module = relax_module(network, IMAGE)
    image = random_array(np.random.default_rng(5), *IMAGE[0])
    machine = relax.VirtualMachine(tvm.compile(module, target=tvm_target(NATIVE)), tvm.cpu())
    expected = machine["main"](tvm.runtime.tensor(image)).numpy()
    for target in runnable_targets():
        (output,) = run_lowered(lower(imported(module), target), target, [image])
        np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-6)
    assert np.ptp(expected) > 1e-3


def test_movement_of_constants_is_done_at_once() -> None:
    weights = constant(3, 5, 7)

    def build(x: relax.Expr) -> relax.Expr:
        moved = op.permute_dims(weights, [2, 0, 1])
        moved = op.squeeze(op.expand_dims(op.reshape(moved, (21, 5)), 0), [0])
        moved = op.astype(op.astype(op.broadcast_to(moved, (2, 21, 5)), "float16"), F32)
        return op.add(x, op.reshape(op.flatten(moved), (210,)))

    folded = fold_constants(relax_module(build, [((210,), F32)]))
    calls: list[str] = []
    relax.analysis.post_order_visit(
        folded["main"], lambda e: calls.append(e.op.name) if isinstance(e, relax.Call) else None
    )
    assert calls == ["relax.add"]
    x = random_array(np.random.default_rng(1), (210,), F32)
    (output,) = run_lowered(lower(imported(folded), NATIVE), NATIVE, [x])
    moved = weights.value.numpy().transpose(2, 0, 1).reshape(21, 5).astype("float16").astype(F32)
    np.testing.assert_array_equal(output, x + np.tile(moved.reshape(-1), 2))


def test_a_quantised_weight_is_dequantised_at_build_time() -> None:
    codes = relax.const(np.random.default_rng(2).integers(-128, 128, (300, 400), np.int8), "int8")
    scale = constant(300, 1, seed=3)

    def build(x: relax.Expr) -> relax.Expr:
        return op.matmul(x, op.multiply(op.astype(codes, F32), scale))

    folded = fold_constants(relax_module(build, [((3, 300), F32)]))
    calls: list[str] = []
    relax.analysis.post_order_visit(
        folded["main"], lambda e: calls.append(e.op.name) if isinstance(e, relax.Call) else None
    )
    assert calls == ["relax.matmul"]


def test_what_is_added_to_a_product_fuses_with_it_however_it_was_moved() -> None:
    def build(x: relax.Expr) -> relax.Expr:
        first = op.matmul(x, constant(24, 24))
        moved = op.reshape(op.permute_dims(op.reshape(first, (5, 4, 6)), [0, 2, 1]), (5, 24))
        return op.add(op.matmul(op.nn.relu(first), constant(24, 24, seed=1)), moved)

    names = [kernel.name for kernel in lower_expression(build, [((5, 24), F32)], NATIVE).kernels]
    assert [name for name in names if "add" in name and name.startswith("fused_matmul")]


def test_only_the_rows_that_are_read_are_computed() -> None:
    scale, shift = constant(24, seed=8), constant(24, seed=9)

    def layer(x: relax.Expr, seed: int) -> relax.Expr:
        normed = op.nn.layer_norm(x, scale, shift, -1)
        hidden = op.nn.gelu(op.add(op.matmul(normed, constant(24, 48, seed=seed)), constant(48, seed=seed)))
        return op.add(op.matmul(hidden, constant(48, 24, seed=seed + 1)), x)

    def network(x: relax.Expr, choose: bool) -> relax.Expr:
        mixed = op.matmul(op.nn.softmax(op.matmul(x, op.permute_dims(x, [0, 2, 1]))), x)
        tokens = op.nn.layer_norm(layer(layer(mixed, 1), 3), scale, shift, -1)
        chosen = op.take(tokens, relax.const(3, "int64"), axis=1) if choose else tokens
        return op.nn.softmax(chosen, -1)

    x = random_array(np.random.default_rng(1), (2, 7, 24), F32)
    (whole,) = run_lowered(lower_expression(lambda x: network(x, False), [((2, 7, 24), F32)], NATIVE), NATIVE, [x])
    lowered = lower_expression(lambda x: network(x, True), [((2, 7, 24), F32)], NATIVE)
    (output,) = run_lowered(lowered, NATIVE, [x])
    np.testing.assert_allclose(output, whole[:, 3], rtol=1e-5, atol=1e-6)
    rows = [int(kernel.function.params[-1].shape[1]) for kernel in lowered.kernels if "layer_norm" in kernel.name]
    assert rows and set(rows) == {1}


def test_what_is_read_in_two_parts_is_computed_once() -> None:
    def build(x: relax.Expr) -> relax.Expr:
        y = op.nn.relu(op.matmul(x, constant(24, 24)))
        parts = [op.strided_slice(y, [0], [start], [start + 2]) for start in (0, 3)]
        return op.add(parts[0], parts[1])

    lowered = lower_expression(build, [((5, 24), F32)], NATIVE)
    assert [kernel.calls for kernel in lowered.kernels if "matmul" in kernel.name] == [1]
    x = random_array(np.random.default_rng(1), (5, 24), F32)
    (output,) = run_lowered(lowered, NATIVE, [x])
    y = np.maximum(x @ constant(24, 24).value.numpy(), 0)
    np.testing.assert_allclose(output, y[:2] + y[3:], rtol=1e-5, atol=1e-6)


def test_a_chain_that_would_explode_when_fused_is_cut() -> None:
    def build(x: relax.Expr) -> relax.Expr:
        for _ in range(40):
            x = op.multiply(x, op.sigmoid(x))
        return x

    lowered = lower_expression(build, [((3, 5), F32)], NATIVE)
    assert 3 < sum(kernel.calls for kernel in lowered.kernels) < 20
    x = random_array(np.random.default_rng(1), (3, 5), F32)
    (output,) = run_lowered(lowered, NATIVE, [x])
    expected = x.astype("float64")
    for _ in range(40):
        expected = expected / (1 + np.exp(-expected))
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-12)


def test_choices_within_conditions_of_choices_are_cut() -> None:
    def build(x: relax.Expr, y: relax.Expr) -> relax.Expr:
        for _ in range(5):
            x = op.where(op.greater(x, y), op.subtract(x, y), x)
        return x

    arrays = [random_array(np.random.default_rng(seed), (37,), F32) for seed in (0, 1)]
    lowered = lower_expression(build, [((37,), F32)] * 2, NATIVE)
    expected, y = arrays
    for _ in range(5):
        expected = np.where(expected > y, expected - y, expected)
    np.testing.assert_allclose(run_lowered(lowered, NATIVE, arrays)[0], expected, rtol=1e-5, atol=1e-5)
    assert 2 <= len(lowered.kernels) <= 14
    assert len(lower_expression(lambda x, y: op.where(op.greater(x, y), x, y), [((37,), F32)] * 2, NATIVE).kernels) == 1


def test_arithmetic_on_constants_is_done_at_once_unless_it_makes_them_larger() -> None:
    column, row = constant(300, 1), constant(1, 400, seed=1)

    def build(x: relax.Expr) -> relax.Expr:
        scale = op.divide(column, op.sqrt(op.add(op.multiply(column, column), relax.const(1, F32))))
        return op.add(op.multiply(x, scale), op.add(column, row))

    lowered = lower_expression(build, [((300, 400), F32)], NATIVE)
    x = random_array(np.random.default_rng(1), (300, 400), F32)
    (output,) = run_lowered(lowered, NATIVE, [x])
    c, r = column.value.numpy(), row.value.numpy()
    np.testing.assert_allclose(output, x * (c / np.sqrt(c * c + 1)) + (c + r), rtol=1e-5, atol=1e-5)
    (kernel,) = lowered.kernels
    assert sorted(tuple(int(axis) for axis in kernel.function.params[i].shape) for i in kernel.constants) == [
        (1, 400),
        (300, 1),
        (300, 1),
    ]


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("name", ["sinh", "cosh", "asin", "acos", "atan", "asinh", "acosh", "atanh"])
def test_functions_of_libm_take_every_float(name: str, dtype: str) -> None:
    shift = 1 if name == "acosh" else 0
    x = np.random.default_rng(0).uniform(0, 0.9, (3, 7)).astype(dtype) + np.array(shift, dtype)
    lowered = lower_expression(getattr(op, name), [(x.shape, dtype)], NATIVE)
    exact = getattr(np, name.replace("a", "arc", 1) if name.startswith("a") else name)(x.astype("float64"))
    tolerance = {"float64": 1e-13, "float32": 1e-5, "float16": 1e-3}[dtype]
    np.testing.assert_allclose(run_lowered(lowered, NATIVE, [x])[0], exact, rtol=tolerance)


def test_a_kernel_whose_extents_only_the_run_decides_has_a_key() -> None:
    rows = tvm.tirx.Var("rows", "int64")
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((rows, 24), F32))
    with builder.function("main", [x]):
        with builder.dataflow():
            output = builder.emit_output(builder.emit(op.matmul(x, constant(24, 16))))
        builder.emit_func_output(output)
    lowered = lower(imported(builder.get()), NATIVE)
    assert lowered.kernels[0].key.startswith("matmul(float32[?,24] float32[24,16] float32[?,16])#")
    array = random_array(np.random.default_rng(0), (7, 24), F32)
    (result,) = run_lowered(lowered, NATIVE, [array])
    np.testing.assert_allclose(result, array @ constant(24, 16).value.numpy(), rtol=1e-4, atol=1e-5)


def test_a_module_that_tvm_refuses_is_an_error_that_names_model_and_target() -> None:
    x = relax.Var("x", relax.TensorType((2, 2), F32))
    product = relax.Call(tvm.ir.Op.get("relax.matmul"), [x])  # of one operand
    broken = tvm.IRModule({"main": relax.Function([x], product, relax.TensorType((2, 2), F32))})
    with pytest.raises(CompileError, match=f"test: lowering for {NATIVE.name} failed"):
        lower(imported(broken), NATIVE)
