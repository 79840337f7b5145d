"""Loops that stay loops: as often as the run says, or too often to unroll; they compute what ONNX Runtime does."""

from __future__ import annotations

import resource
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnxruntime
import pytest
from kernels import run_lowered
from onnx import helper
from onnx_models import BOOL, FLOAT, INT64, model, random_weight, value

import tvmbridge
from tvmbridge.errors import ModelError, UnboundValueError
from tvmbridge.frontend import import_onnx
from tvmbridge.lowering import lower
from tvmbridge.targets import parse_preset

pytestmark = pytest.mark.compiler
NATIVE = parse_preset("native")
DOUBLE, INT8 = onnx.TensorProto.DOUBLE, onnx.TensorProto.INT8


def node(op_type: str, takes: str, gives: str, **attributes) -> onnx.NodeProto:
    """A node; names separated by blanks, "-" for an absent one."""
    names = ["" if name == "-" else name for name in takes.split()]
    return helper.make_node(op_type, names, gives.split(), **attributes)


def body(nodes, states, gives, *, goes_on: str = "", level: str = "") -> onnx.GraphProto:
    """A Loop's body: it reads i, c and the states; `gives` are its results; goes_on: its condition, else always."""
    first = [] if goes_on else [node("Identity", f"c{level}", f"co{level}")]
    takes = [value(f"i{level}", (), INT64), value(f"c{level}", (), BOOL), *states]
    return helper.make_graph([*first, *nodes], f"b{level}", takes, [value(goes_on or f"co{level}", (), BOOL), *gives])


class Compiled:
    """A model imported and lowered; its results beside those of ONNX Runtime."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self._reference = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        self.imported = import_onnx(proto)
        self._lowered = lower(self.imported, NATIVE)

    def check(self, **feeds) -> list[np.ndarray]:
        """Run both and compare."""
        found = run_lowered(self._lowered, NATIVE, [feeds[spec.name] for spec in self.imported.signature.inputs])
        for ours, theirs in zip(found, self._reference.run(None, feeds), strict=True):
            assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
        return found


def functions(imported) -> set[str]:
    return {variable.name_hint for variable in imported.module.get_global_vars()}


def counter() -> onnx.ModelProto:
    """x + n * 0.5, the slow way."""
    steps = body([node("Add", "v half", "w")], [value("v", (3,))], [value("w", (3,))])
    return model(
        [node("Loop", "n - x", "y", body=steps)],
        [value("n", (), INT64), value("x", (3,))],
        [value("y", (3,))],
        {"half": np.array(0.5, np.float32)},
    )


@pytest.fixture(scope="module")
def counting() -> Compiled:
    return Compiled(counter())


@pytest.mark.parametrize("trips", [-3, 0, 1, 7, 8, 64, 65, 10_000])
def test_a_loop_runs_as_often_as_the_run_says(counting, trips):
    (y,) = counting.check(n=np.array(trips), x=np.array([1, 2, -3], np.float32))
    assert y[0] == 1 + max(trips, 0) / 2


def test_the_body_is_written_once(counting):
    names = functions(counting.imported)
    assert len([name for name in names if name.startswith("loop_step")]) == 1
    assert len([name for name in names if name.startswith("loop_level")]) == 21


def newton(limit: bool) -> onnx.ModelProto:
    """The square root of x to single precision, and after how many steps."""
    nodes = [
        node("Div", "x r", "q"),
        node("Add", "r q", "sum"),
        node("Mul", "sum half", "s"),
        node("Add", "k one", "l"),
        node("Sub", "s r", "d"),
        node("Abs", "d", "a"),
        node("ReduceMax", "a", "m", keepdims=0),
        node("Greater", "m small", "go"),
    ]
    steps = body(
        nodes, [value("r", (4,)), value("k", (), INT8)], [value("s", (4,)), value("l", (), INT8)], goes_on="go"
    )
    weights = {"half": np.array(0.5, np.float32), "one": np.array(1, np.int8), "small": np.array(1e-5, np.float32)}
    weights |= {"most": np.array(3), "zero": np.array(0, np.int8), "yes": np.array(True)}
    loop = node("Loop", f"{'most' if limit else '-'} yes x zero", "root steps", body=steps)
    return model([loop], [value("x", (4,))], [value("root", (4,)), value("steps", (), INT8)], weights)


@pytest.mark.parametrize("limit", [True, False])
def test_a_loop_goes_on_until_its_condition_fails(limit):
    compiled = Compiled(newton(limit))
    _, short = compiled.check(x=np.array([1, 1, 1, 1], np.float32))
    _, long = compiled.check(x=np.array([1e6, 2, 3, 0.1], np.float32))
    assert short < long and (long == 3 if limit else long > 10)


def test_a_loop_whose_first_condition_fails_gives_its_states():
    nodes = [node("Neg", "v", "w"), node("Not", "c", "go")]
    steps = body(nodes, [value("v", (2,))], [value("w", (2,))], goes_on="go")
    proto = model(
        [node("Loop", "- flag x", "y", body=steps), node("Sin", "x", "z")],
        [value("flag", (), BOOL), value("x", (2,))],
        [value("y", (2,)), value("z", (2,))],
    )
    compiled = Compiled(proto)
    for flag in (False, True):
        (y, _) = compiled.check(flag=np.array(flag), x=np.array([3, 4], np.float32))
        assert y[0] == (-3 if flag else 3)


def test_states_of_several_types_weights_and_inputs_of_outside():
    nodes = [
        node("MatMul", "h w", "p"),
        node("Add", "p bias", "q"),
        node("Tanh", "q", "g"),
        node("Add", "h x", "unused"),
        node("Cast", "i", "f", to=DOUBLE),
        node("Add", "d f", "e"),
        node("Not", "t", "u"),
    ]
    states = [value("h", (5, 17)), value("d", (2,), DOUBLE), value("t", (3,), BOOL)]
    gives = [value("g", (5, 17)), value("e", (2,), DOUBLE), value("u", (3,), BOOL)]
    nodes_after = [node("MatMul", "h1 w", "y")]
    proto = model(
        [
            node("Exp", "x", "h0"),
            node("Loop", "n - h0 d0 t0", "h1 d1 t1", body=body(nodes, states, gives)),
            *nodes_after,
        ],
        [
            value("n", (), INT64),
            value("x", (5, 17)),
            value("bias", (17,)),
            value("d0", (2,), DOUBLE),
            value("t0", (3,), BOOL),
        ],
        [value("y", (5, 17)), value("d1", (2,), DOUBLE), value("t1", (3,), BOOL)],
        {"w": random_weight((17, 17))},
    )
    compiled = Compiled(proto)
    draw = np.random.default_rng(0)
    for trips in (0, 5):
        compiled.check(
            n=np.array(trips),
            x=draw.standard_normal((5, 17), np.float32),
            bias=draw.standard_normal(17, np.float32),
            d0=draw.standard_normal(2),
            t0=np.array([True, False, True]),
        )


def test_a_branch_inside_and_a_loop_in_a_branch():
    inner = body([node("Add", "a one", "b")], [value("a", (2,))], [value("b", (2,))], level="1")
    endless = body([node("Identity", "a2", "b2")], [value("a2", (2,))], [value("b2", (2,))], level="2")
    branches = {
        "then_branch": helper.make_graph([node("Loop", "n - v", "t", body=inner)], "t", [], [value("t", (2,))]),
        "else_branch": helper.make_graph([node("Neg", "v", "e")], "e", [], [value("e", (2,))]),
    }
    never = {
        "then_branch": helper.make_graph([node("Loop", "- yes x", "q", body=endless)], "q", [], [value("q", (2,))]),
        "else_branch": helper.make_graph([node("Neg", "x", "r")], "r", [], [value("r", (2,))]),
    }
    nodes = [node("Mod", "i two", "odd"), node("Cast", "odd", "is", to=BOOL), node("If", "is", "w", **branches)]
    steps = body(nodes, [value("v", (2,))], [value("w", (2,))])
    proto = model(
        [node("Loop", "n - x", "y", body=steps), node("If", "yes", "z", **never)],
        [value("n", (), INT64), value("x", (2,)), value("yes", (), BOOL)],
        [value("y", (2,)), value("z", (2,))],
        {"one": np.ones(2, np.float32), "two": np.array(2)},
    )
    Compiled(proto).check(n=np.array(9), x=np.array([1.5, -2], np.float32), yes=np.array(False))


def test_loops_in_loops_and_one_after_another():
    add = node("Add", "a one", "b")
    inner = body([add, node("Identity", "a", "seen")], [value("a", (2,))], [value("b", (2,))], level="1")
    steps = body([node("Loop", "i - v", "w", body=inner)], [value("v", (2,))], [value("w", (2,))])
    second = body([node("Mul", "p y", "q")], [value("p", (2,))], [value("q", (2,))], level="3")
    proto = model(
        [node("Loop", "n - x", "y", body=steps), node("Loop", "n - x", "z", body=second)],
        [value("n", (), INT64), value("x", (2,))],
        [value("y", (2,)), value("z", (2,))],
        {"one": np.ones(2, np.float32)},
    )
    compiled = Compiled(proto)
    for trips in (0, 1, 6):
        compiled.check(n=np.array(trips), x=np.array([0.5, -0.25], np.float32))


@pytest.mark.parametrize("trips", [1, 8, 75])
def test_a_known_loop_too_long_to_unroll_collects(trips, monkeypatch):
    monkeypatch.setattr("tvmbridge.frontend.trace.control_flow._MOST_NODES", 2)
    nodes = [node("MatMul", "v w", "u"), node("Cast", "i", "f", to=FLOAT), node("Add", "u f", "sum")]
    gives = [value("u", (3, 5)), value("sum", (3, 5)), value("f", ())]
    proto = model(
        [node("Loop", "n - x", "y all numbers", body=body(nodes, [value("v", (3, 5))], gives))],
        [value("x", (3, 5))],
        [value("y", (3, 5)), value("all", (trips, 3, 5)), value("numbers", (trips,))],
        {"w": random_weight((5, 5)), "n": np.array(trips)},
    )
    compiled = Compiled(proto)
    compiled.check(x=np.random.default_rng(0).standard_normal((3, 5), np.float32))
    assert "loop_step" in functions(compiled.imported)


def test_a_known_loop_of_thousands_is_no_graph_of_thousands():
    nodes = [node("Mul", "v w", "u"), node("Add", "u x", "s")]
    proto = model(
        [node("Loop", "n - x", "y all", body=body(nodes, [value("v", (3,))], [value("s", (3,)), value("u", (3,))]))],
        [value("x", (3,))],
        [value("y", (3,)), value("all", (20_011, 3))],
        {"w": np.array([0.5, -0.5, 0.99], np.float32), "n": np.array(20_011)},
    )
    compiled = Compiled(proto)
    compiled.check(x=np.array([1, 2, 3], np.float32))
    assert "loop_step" in functions(compiled.imported)


@pytest.mark.parametrize(("backward", "axes"), [(0, (0, 0)), (1, (1, 1)), (1, (0, -1))])
def test_a_scan_too_long_to_unroll(backward, axes, monkeypatch):
    monkeypatch.setattr("tvmbridge.frontend.trace.control_flow._MOST_NODES", 2)
    takes, gives = axes
    shape = (19, 4) if takes == 0 else (4, 19)
    nodes = [node("Add", "s part", "t"), node("Mul", "t k", "row"), node("Neg", "part", "other")]
    inner = helper.make_graph(
        nodes,
        "b",
        [value("s", (4,)), value("part", (4,))],
        [value("t", (4,)), value("row", (4,)), value("other", (4,))],
    )
    directions = {"scan_input_directions": [backward], "scan_output_directions": [1, 0]}
    scan = node(
        "Scan",
        "s0 x",
        "last rows others",
        body=inner,
        num_scan_inputs=1,
        scan_input_axes=[takes],
        scan_output_axes=[gives, 0],
        **directions,
    )
    proto = model(
        [scan],
        [value("s0", (4,)), value("x", shape), value("k", (4,))],
        [value("last", (4,)), value("rows", None), value("others", (19, 4))],
    )
    draw = np.random.default_rng(1)
    compiled = Compiled(proto)
    compiled.check(**{name: draw.standard_normal(s, np.float32) for name, s in (("s0", 4), ("x", shape), ("k", 4))})
    assert "loop_step" in functions(compiled.imported)


def test_what_a_loop_hands_on_as_it_came_is_not_written_over():
    steps = body(
        [node("MatMul", "v w", "u"), node("Add", "u one", "o")], [value("v", (16, 16))], [value("o", (16, 16))]
    )
    nodes = [node("MatMul", "x w", "h0"), node("Loop", "n - h0", "h1", body=steps), node("MatMul", "x x", "a")]
    nodes += [node("MatMul", "a w", "b"), node("MatMul", "b x", "c"), node("MatMul", "c h1", "y")]
    weights = {"w": random_weight((16, 16)), "one": np.ones((16, 16), np.float32)}
    compiled = Compiled(model(nodes, [value("n", (), INT64), value("x", (16, 16))], [value("y", (16, 16))], weights))
    x = np.random.default_rng(0).standard_normal((16, 16), np.float32) / 3
    for trips in (0, 2):
        compiled.check(n=np.array(trips), x=x)


def test_states_that_change_places_or_become_what_is_outside():
    names = {"a": "b2", "b": "a2", "x": "e2", "k": "f2"}
    steps = body(
        [node("Identity", given, made) for given, made in names.items()],
        [value(name, (3,)) for name in "abef"],
        [value(name, (3,)) for name in ("b2", "a2", "e2", "f2")],
    )
    proto = model(
        [node("Neg", "x", "nx"), node("Loop", "n go x nx x nx", "p q r s", body=steps)],
        [value("n", (1,), INT64), value("go", (), BOOL), value("x", (3,))],
        [value(name, (3,)) for name in "pqrs"],
        {"k": np.arange(3, dtype=np.float32)},
    )
    compiled = Compiled(proto)
    for trips, go in ((0, True), (1, True), (2, False), (9, True)):
        compiled.check(n=np.array([trips]), go=np.array(go), x=np.array([1, 2, 3], np.float32))


def test_a_loop_that_the_run_counts_in_one_that_collects(monkeypatch):
    monkeypatch.setattr("tvmbridge.frontend.trace.control_flow._MOST_NODES", 2)
    nodes = [node("MatMul", "v2 w", "u2"), node("Add", "u2 v", "z2"), node("Mul", "z2 x", "o2")]
    inner = body(nodes, [value("v2", (2, 4))], [value("o2", (2, 4))], level="1")
    steps = body(
        [node("Loop", "m - v", "o", body=inner), node("Tanh", "o", "t")],
        [value("v", (2, 4))],
        [value("t", (2, 4)), value("o", (2, 4))],
    )
    proto = model(
        [node("Loop", "n - x", "y ys", body=steps)],
        [value("m", (), INT64), value("x", (2, 4))],
        [value("y", (2, 4)), value("ys", (30, 2, 4))],
        {"w": random_weight((4, 4)), "n": np.array(30)},
    )
    compiled = Compiled(proto)
    for trips in (0, 3):
        compiled.check(m=np.array(trips), x=np.random.default_rng(0).standard_normal((2, 4), np.float32) / 2)


def test_what_the_number_of_iterations_shapes_has_to_be_known():
    steps = body([node("Neg", "v", "w")], [value("v", (2,))], [value("w", (2,)), value("w", (2,))])
    proto = model(
        [node("Loop", "n - x", "y all", body=steps)],
        [value("n", (), INT64), value("x", (2,))],
        [value("y", (2,)), value("all", ("k", 2))],
    )
    with pytest.raises(UnboundValueError) as caught:
        import_onnx(proto)
    assert caught.value.inputs == ("n",)


def test_a_loop_whose_state_grows_asks_for_its_trip_count_and_is_unrolled():
    steps = body([node("Concat", "v v", "w", axis=0)], [value("v", None)], [value("w", None)])
    proto = model(
        [node("Loop", "n - x", "y", body=steps)], [value("n", (), INT64), value("x", (2,))], [value("y", None)]
    )
    with pytest.raises(UnboundValueError, match=r"its state 0 is float32\[2\] before and float32\[4\] after"):
        import_onnx(proto)
    assert import_onnx(proto, values={"n": 3}).signature.outputs[0].shape == (16,)


def test_what_changes_by_iteration_decides_no_shape():
    nodes = [node("Unsqueeze", "i zero", "stop"), node("Slice", "x zero stop", "part")]
    nodes += [node("ReduceSum", "part", "s", keepdims=0), node("Add", "v s", "w")]
    proto = model(
        [node("Loop", "n - x", "y", body=body(nodes, [value("v", (2,))], [value("w", (2,))]))],
        [value("n", (), INT64), value("x", (2,))],
        [value("y", (2,))],
        {"zero": np.array([0])},
    )
    with pytest.raises(ModelError):
        import_onnx(proto)


def test_loops_deep_in_each_other_ask_for_their_trip_count():
    nodes = [node("Neg", "v0", "w0")]
    for level in range(6):
        inner = body(nodes, [value(f"v{level}", (2,))], [value(f"w{level}", (2,))], level=str(level))
        outer = f"v{level + 1}" if level < 5 else "x"
        nodes = [node("Loop", f"n - {outer}", f"w{level + 1}", body=inner)]
    proto = model(nodes, [value("n", (), INT64), value("x", (2,))], [value("w6", (2,))])
    with pytest.raises(UnboundValueError, match="more than 4 loops in each other"):
        import_onnx(proto)


@pytest.mark.slow
def test_two_sessions_loop_at_a_time_and_their_memory_does_not_grow(tmp_path):
    big = (1 << 13,)
    steps = body([node("Mul", "v k", "w")], [value("v", big)], [value("w", big)])
    proto = model(
        [node("Loop", "n - x", "y", body=steps)],
        [value("n", (), INT64), value("x", big)],
        [value("y", big)],
        {"k": np.full(big, 0.999, np.float32)},
    )
    report = tvmbridge.build(import_onnx(proto), ["native"], tmp_path / "loop.tvmb", tune=False, seconds=0.01)
    assert not report.failed
    sessions = [tvmbridge.load(tmp_path / "loop.tvmb") for _ in range(2)]
    x = np.random.default_rng(0).standard_normal(big, np.float32)

    def run(trips: int) -> np.ndarray:
        return next(iter(sessions[trips % 2].run({"n": np.array(trips), "x": x}).values()))

    run(1000)  # the pools of both are filled behind this, by far less than what a leak would take
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(run, (100, 100_000, 101)))
    for y, trips in zip(found, (100, 100_000, 101), strict=True):
        np.testing.assert_allclose(y, x * np.float32(0.999) ** np.float32(trips), rtol=1e-2, atol=1e-6)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 100_000
