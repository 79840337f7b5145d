"""Schedule templates compute what NumPy computes, for every config they list and every target that runs here."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import tvm
from kernels import (
    Build,
    Input,
    assert_close,
    compile_function,
    guess,
    lower_expression,
    lower_function,
    plan,
    random_array,
    run_function,
    run_lowered,
    runnable_targets,
)
from tvm import relax, te

from tvmbridge.codegen.plan import plan_kernel
from tvmbridge.errors import CompileError
from tvmbridge.lowering import Kernel
from tvmbridge.schedules import Config, Template, fitting_templates
from tvmbridge.targets import Target, parse_preset

pytestmark = pytest.mark.compiler

op = relax.op
F32 = "float32"
RUNNABLE = runnable_targets()
ARM = parse_preset("arm:cortex-a72")


def constant(*shape: int, dtype: str = F32, seed: int = 0) -> relax.Expr:
    return relax.const(random_array(np.random.default_rng(seed), shape, dtype), dtype)


def value(expr: relax.Expr) -> np.ndarray:
    return expr.value.numpy().astype("float64")


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


def pool(x: np.ndarray, combine: Callable) -> np.ndarray:
    """3×3, stride 2, padding 1, left out of the mean as ONNX does."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::2, ::2]
    return combine(windows, axis=(4, 5))


def scattered(x: np.ndarray, i: np.ndarray, u: np.ndarray) -> np.ndarray:
    result = x.copy()
    np.put_along_axis(result, i, u, 0)
    return result


INDICES = np.array([3, 0, 6, 3, 1])
ROW_INDICES = np.stack([np.random.default_rng(7).permutation(20)[:5] for _ in range(16)], axis=1)
LAYER = (constant(64, seed=1), constant(64, seed=2))
SQUARE = constant(24, 24, seed=3)

# name → (Relax, inputs, NumPy in float64)
KERNELS: dict[str, tuple[Build, list[Input], Callable]] = {
    "chain": (lambda x: op.exp(x) * x + op.tanh(x), [((127, 131), F32)], lambda x: np.exp(x) * x + np.tanh(x)),
    "long prime vector": (lambda x: op.sigmoid(x), [((20011,), F32)], lambda x: 1 / (1 + np.exp(-x))),
    "rank 0": (lambda x: op.exp(x) + x, [((), F32)], lambda x: np.exp(x) + x),
    "one element": (lambda x: op.exp(x) + x, [((1, 1), F32)], lambda x: np.exp(x) + x),
    "no element": (lambda x: op.exp(x) + x, [((0, 5), F32)], lambda x: np.exp(x) + x),
    "broadcast": (lambda x, y: op.subtract(x, y), [((7, 1, 33), F32), ((5, 1), F32)], lambda x, y: x - y),
    "float64": (lambda x: op.exp(x), [((13, 33), "float64")], np.exp),
    "float16": (lambda x: x * x, [((13, 33), "float16")], lambda x: x * x),
    "int8": (lambda x: x + x, [((13, 33), "int8")], lambda x: x + x),
    "bool from comparisons": (
        lambda x: op.logical_and(op.greater(x, relax.const(0.0)), op.less(x, relax.const(1.0))),
        [((200, 131), F32)],
        lambda x: (x > 0) & (x < 1),
    ),
    "bool to bool": (lambda x: op.logical_not(x), [((200, 131), "bool")], np.logical_not),
    "where": (
        lambda x: op.where(op.greater(x, relax.const(0.0)), x, op.exp(x)),
        [((13, 17), F32)],
        lambda x: np.where(x > 0, x, np.exp(x)),
    ),
    "softmax": (lambda x: op.nn.softmax(x, -1), [((37, 101), F32)], lambda x: softmax(x, -1)),
    "softmax over the leading axis": (lambda x: op.nn.softmax(x, 0), [((37, 101), F32)], lambda x: softmax(x, 0)),
    "softmax over a middle axis": (lambda x: op.nn.softmax(x, 1), [((3, 197, 64), F32)], lambda x: softmax(x, 1)),
    "log softmax": (lambda x: op.nn.log_softmax(x, 1), [((37, 64), F32)], lambda x: np.log(softmax(x, 1))),
    "layer norm": (
        lambda x: op.nn.layer_norm(x, *LAYER, axes=[-1]),
        [((197, 64), F32)],
        lambda x: (
            (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * value(LAYER[0])
            + value(LAYER[1])
        ),
    ),
    "max pool": (
        lambda x: op.nn.max_pool2d(x, (3, 3), 2, 1),
        [((2, 5, 15, 13), F32)],
        lambda x: pool(x, np.nanmax),
    ),
    "average pool": (
        lambda x: op.nn.avg_pool2d(x, (3, 3), 2, 1),
        [((2, 5, 15, 13), F32)],
        lambda x: pool(x, np.nanmean),
    ),
    "global average pool": (
        lambda x: op.nn.adaptive_avg_pool2d(x, (1, 1)),
        [((2, 19, 7, 5), F32)],
        lambda x: x.mean((2, 3), keepdims=True),
    ),
    "sum over the leading axis": (lambda x: op.sum(x, [0]), [((211, 131), F32)], lambda x: x.sum(0)),
    "sum over two leading axes": (lambda x: op.sum(x, [0, 1]), [((20, 31, 50), F32)], lambda x: x.sum((0, 1))),
    "sum over the outer axes": (lambda x: op.sum(x, [0, 2]), [((20, 31, 50), F32)], lambda x: x.sum((0, 2))),
    "sum over the last axis": (
        lambda x: op.sum(x, [-1], True),
        [((211, 131), F32)],
        lambda x: x.sum(-1, keepdims=True),
    ),
    "sum of everything": (lambda x: op.sum(x), [((211, 131), F32)], np.sum),
    "mean of squares": (lambda x: op.mean(x * x, [1]), [((20, 33, 13), F32)], lambda x: (x * x).mean(1)),
    "max": (lambda x: op.max(x, [1]), [((200, 131), F32)], lambda x: x.max(1)),
    "product": (lambda x: op.prod(x, [0]), [((7, 11), F32)], lambda x: x.prod(0)),
    "variance": (lambda x: op.variance(x, [0]), [((71, 11), F32)], lambda x: x.var(0)),
    "argmax": (lambda x: op.argmax(x, 1), [((20, 131), F32)], lambda x: x.argmax(1)),
    "argmax over the leading axis": (lambda x: op.argmax(x, 0), [((223, 131), F32)], lambda x: x.argmax(0)),
    "cumulative sum": (lambda x: op.cumsum(x, 0), [((131, 20), F32)], lambda x: x.cumsum(0)),
    "sort": (lambda x: op.sort(x, -1), [((13, 200), F32)], lambda x: np.sort(x, -1)),
    "top k": (lambda x: op.topk(x, 5, -1, "values"), [((13, 200), F32)], lambda x: -np.sort(-x, -1)[:, :5]),
    "transpose": (lambda x: op.permute_dims(x, [0, 2, 1]), [((3, 127, 65), F32)], lambda x: x.transpose(0, 2, 1)),
    "channels last": (
        lambda x: op.permute_dims(x, [0, 2, 3, 1]),
        [((2, 3, 17, 16), F32)],
        lambda x: x.transpose(0, 2, 3, 1),
    ),
    "concatenation": (
        lambda x, y: op.concat([x, y], 1) * relax.const(2.0),
        [((3, 5), F32), ((3, 7), F32)],
        lambda x, y: np.concatenate([x, y], 1) * 2,
    ),
    "strided slice": (lambda x: op.strided_slice(x, [1], [1], [9], [2]), [((3, 15), F32)], lambda x: x[:, 1:9:2]),
    "padding": (lambda x: op.nn.pad(x, [0, 1, 2, 3]), [((3, 15), F32)], lambda x: np.pad(x, ((0, 1), (2, 3)))),
    "tile": (lambda x: op.tile(x, (2, 3)), [((3, 5), F32)], lambda x: np.tile(x, (2, 3))),
    "flip": (lambda x: op.flip(x, 1), [((3, 5), F32)], lambda x: x[:, ::-1]),
    "gather": (lambda x: op.take(x, relax.const(INDICES), 0), [((7, 33), F32)], lambda x: x[INDICES]),
    "gather of elements": (
        lambda x: op.gather_elements(x, relax.const(ROW_INDICES), 0),
        [((20, 16), F32)],
        lambda x: np.take_along_axis(x, ROW_INDICES, 0),
    ),
    "scatter of elements": (
        lambda x, u: op.scatter_elements(x, relax.const(ROW_INDICES), u, 0),
        [((20, 16), F32), ((5, 16), F32)],
        lambda x, u: scattered(x, ROW_INDICES, u),
    ),
    "matmul of vectors": (op.matmul, [((33,), F32), ((33,), F32)], np.matmul),
    "vector times matrix": (op.matmul, [((33,), F32), ((33, 16), F32)], np.matmul),
    "matrix times vector": (op.matmul, [((16, 33), F32), ((33,), F32)], np.matmul),
    "matmul of int8": (
        lambda x, y: op.matmul(x, y, "int32"),
        [((5, 33), "int8"), ((33, 16), "int8")],
        lambda x, y: x.astype("int32") @ y.astype("int32"),
    ),
    "matmul of int64": (op.matmul, [((5, 33), "int64"), ((33, 16), "int64")], np.matmul),
    "matmul of float16 summed in float32": (
        lambda x, y: op.matmul(x, y, F32),
        [((5, 33), "float16"), ((33, 32), "float16")],
        np.matmul,
    ),
    "matmul of bfloat16": (
        lambda x, y: op.astype(op.matmul(op.astype(x, "bfloat16"), op.astype(y, "bfloat16")), F32),
        [((5, 33), F32), ((33, 32), F32)],
        np.matmul,
    ),
    "matmul of a tensor with itself": (lambda x: op.matmul(x, x), [((24, 24), F32)], lambda x: x @ x),
    "matmul of a tensor with itself, and added": (
        lambda x: op.matmul(x, x) + x,
        [((24, 24), F32)],
        lambda x: x @ x + x,
    ),
    "weights that are also added": (
        lambda x: op.matmul(x, SQUARE) + SQUARE,
        [((24, 24), F32)],
        lambda x: x @ value(SQUARE) + value(SQUARE),
    ),
    "weights on the left": (
        lambda x: op.matmul(SQUARE, x) + x,
        [((24, 32), F32)],
        lambda x: value(SQUARE) @ x + x,
    ),
    "weights on both sides": (
        lambda x: op.matmul(SQUARE, SQUARE) + x,
        [((24, 24), F32)],
        lambda x: value(SQUARE) @ value(SQUARE) + x,
    ),
    "matmul broadcast by what follows": (
        lambda x, y: op.matmul(x, y) + y,
        [((1, 24), F32), ((24, 24), F32)],
        lambda x, y: x @ y + y,
    ),
    "matmul that gains an axis": (
        lambda x, y: op.matmul(x, SQUARE) + y,
        [((5, 24), F32), ((3, 5, 24), F32)],
        lambda x, y: x @ value(SQUARE) + y,
    ),
    "matmul that gains an axis of one": (
        lambda x, y: op.matmul(x, SQUARE) + y,
        [((5, 24), F32), ((1, 5, 24), F32)],
        lambda x, y: x @ value(SQUARE) + y,
    ),
    "matmul beside work of its own": (
        lambda x, y: op.matmul(x, SQUARE) + op.exp(y),
        [((5, 24), F32), ((24,), F32)],
        lambda x, y: x @ value(SQUARE) + np.exp(y),
    ),
    "matmul without rows": (lambda x: op.matmul(x, SQUARE), [((0, 24), F32)], lambda x: x @ value(SQUARE)),
    "matmul without depth": (op.matmul, [((3, 0), F32), ((0, 16), F32)], np.matmul),
    "function of a tile, twice": (
        lambda x: op.concat([op.tile(op.log(op.exp(x) + relax.const(1.0)), [3])] * 2, 0),
        [((16,), F32)],
        lambda x: np.tile(np.log(np.exp(x) + 1), 6),
    ),
    "function of a reversed tile": (
        lambda x: op.flip(op.tile(op.log(op.exp(x) + relax.const(1.0)), [3]), 0),
        [((16,), F32)],
        lambda x: np.tile(np.log(np.exp(x) + 1), 3)[::-1],
    ),
    "two results": (
        lambda x: relax.Tuple([op.nn.relu(op.matmul(x, SQUARE)), op.exp(op.matmul(x, SQUARE))]),
        [((5, 24), F32)],
        lambda x: [np.maximum(x @ value(SQUARE), 0), np.exp(x @ value(SQUARE))],
    ),
}


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_agrees_with_numpy_in_the_configs_of_every_template(name: str) -> None:
    build, inputs, reference = KERNELS[name]
    generator = np.random.default_rng(len(name))
    arrays = [random_array(generator, *spec) for spec in inputs]
    wide = [a.astype("float64") if a.dtype.kind == "f" else a for a in arrays]
    expected = reference(*wide)
    expected = expected if isinstance(expected, list) else [np.asarray(expected)]
    tolerance = 3e-2 if "float16" in name else 1e-4
    for target in RUNNABLE:
        lowered = lower_expression(build, inputs, target)
        count = max([len(fitting_templates(k, target)) for k in lowered.kernels], default=1)
        for index in range(-1, 2 * count):

            def choose(kernel: Kernel, target: Target = target, index: int = index) -> tuple[Template, Config]:
                if index < 0:
                    return guess(kernel, target)
                templates = fitting_templates(kernel, target)
                template = templates[index % len(templates)]
                configs = template.configs(kernel, target)
                return template, configs[int(generator.integers(len(configs)))]

            outputs = run_lowered(lowered, target, arrays, choose)
            assert len(outputs) == len(expected)
            for output, wanted in zip(outputs, expected, strict=True):
                assert (output.dtype.kind == "f") == (wanted.dtype.kind == "f")
                assert_close(output, wanted, tolerance)


@pytest.mark.parametrize("target", [*RUNNABLE, ARM], ids=lambda target: target.name)
def test_every_fitting_template_can_schedule_its_own_guess(target: Target) -> None:
    guesses = 0
    for build, inputs, _ in KERNELS.values():
        for kernel in lower_expression(build, inputs, target).kernels:
            for template in fitting_templates(kernel, target):
                config = template.guess(kernel, target)
                assert config in template.configs(kernel, target)
                assert template.schedule(kernel, target, config).function.attrs["tirx.is_scheduled"]
                guesses += 1
            assert plan_kernel(kernel, target, None).skipped == ()
    assert guesses > len(KERNELS)


def statements(node: object) -> Iterator[object]:
    """Every statement of a function body, outermost first."""
    if node is None:
        return
    yield node
    children = [getattr(node, name, None) for name in ("block", "init", "body", "then_case", "else_case")]
    for child in [*children, *getattr(node, "seq", [])]:
        yield from statements(child)


def reductions_of_concurrent_loops(function: tvm.tirx.PrimFunc) -> tuple[int, list[str]]:
    """How many blocks accumulate, and those that do so over a parallel or vectorised loop: threads that race."""
    concurrent, reductions, wrong = [], 0, []
    for node in statements(function.body):
        if isinstance(node, tvm.tirx.For) and int(node.kind) in (
            tvm.tirx.ForKind.PARALLEL,
            tvm.tirx.ForKind.VECTORIZED,
        ):
            concurrent.append(node.loop_var)
        if isinstance(node, tvm.s_tir.SBlockRealize):
            for axis, bound in zip(node.block.iter_vars, node.iter_values, strict=True):
                if int(axis.iter_type) == tvm.tirx.IterVar.CommReduce:
                    reductions += 1
                    used = tvm.tirx.analysis.undefined_vars(bound)
                    wrong += [node.block.name_hint for v in used if any(v.same_as(loop) for loop in concurrent)]
    return reductions, wrong


def test_no_parallel_or_vectorised_loop_carries_a_reduction() -> None:
    target, total = RUNNABLE[0], 0
    for build, inputs, _ in KERNELS.values():
        for kernel in lower_expression(build, inputs, target).kernels:
            for template in fitting_templates(kernel, target):
                scheduled = template.schedule(kernel, target, template.guess(kernel, target))
                reductions, wrong = reductions_of_concurrent_loops(scheduled.function)
                assert wrong == [], kernel.key
                total += reductions
    assert total > 40


def test_a_large_kernel_is_parallel_and_a_small_one_is_not() -> None:
    def is_parallel(rows: int) -> bool:
        (kernel,) = lower_expression(lambda x: op.exp(x), [((rows, 64), F32)], RUNNABLE[0]).kernels
        return "T.parallel" in plan(kernel, RUNNABLE[0], *guess(kernel, RUNNABLE[0])).scheduled.function.script()

    assert is_parallel(4096)
    assert not is_parallel(4)


def test_a_contraction_with_two_results_is_left_to_the_default() -> None:
    a, b = te.placeholder((8, 24), F32, "a"), te.placeholder((24, 16), F32, "b")
    k = te.reduce_axis((0, 24), "k")
    product = te.compute((8, 16), lambda i, j: te.sum(a[i, k] * b[k, j], axis=k), "matmul")
    exponent = te.compute((8, 16), lambda i, j: tvm.tirx.exp(product[i, j]), "exponent")
    negative = te.compute((8, 16), lambda i, j: -product[i, j], "negative")
    kernel = lower_function(te.create_prim_func([a, b, exponent, negative]))
    target = RUNNABLE[0]
    assert [template.name for template in fitting_templates(kernel, target)] == ["default"]
    generator = np.random.default_rng(0)
    arrays = [random_array(generator, (8, 24), F32), random_array(generator, (24, 16), F32)]
    function = plan(kernel, target, *guess(kernel, target)).scheduled.function
    exponents, negatives = run_function(function, target, arrays)
    expected = arrays[0].astype("float64") @ arrays[1].astype("float64")
    assert_close(exponents, np.exp(expected), 1e-4)
    assert_close(negatives, -expected, 1e-4)


def test_extents_that_only_the_run_decides_are_scheduled_and_right() -> None:
    rows = tvm.tirx.Var("rows", "int64")
    a = te.placeholder((rows, 37), F32, "a")
    doubled = te.compute((rows, 37), lambda i, j: a[i, j] * 2, "doubled")
    k = te.reduce_axis((0, 37), "k")
    total = te.compute((rows,), lambda i: te.sum(doubled[i, k], axis=k), "total")
    kernel = lower_function(te.create_prim_func([a, total]))
    target = RUNNABLE[0]
    function = plan(kernel, target, *guess(kernel, target)).scheduled.function
    array = random_array(np.random.default_rng(0), (11, 37), F32)
    result = tvm.runtime.tensor(np.zeros(11, F32))
    compile_function(function, target)["main"](tvm.runtime.tensor(array), result)
    assert_close(result.numpy(), array.sum(1, dtype="float64") * 2, 1e-4)


def test_a_kernel_that_no_template_takes_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    (kernel,) = lower_expression(lambda x: op.exp(x), [((3, 3), F32)], RUNNABLE[0]).kernels
    monkeypatch.setattr("tvmbridge.schedules._templates", lambda _folder: ())
    with pytest.raises(CompileError, match=r"exp\(float32\[3,3\]"):
        fitting_templates(kernel, RUNNABLE[0])
