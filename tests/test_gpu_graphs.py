"""CUDA graphs on an emulated CUDA device: captured when a session is made, launched by each call, and never stale."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from cuda_emulation import run_emulated

# Kernels with a workspace (split products), a gather, outputs that are a view, an input and what others read too. The
# whole model has workspaces of sizes that the run decides, too (CumSum), many of them (TopK), and a loop.
BUILD = """
import sys
from pathlib import Path
import numpy as np
from onnx import TensorProto as T, helper as h, numpy_helper
import tvmbridge
from tvmbridge.bundle import ModelFacts, write_bundle
from tvmbridge.codegen import build_variant
from tvmbridge.lowering import lower

def f(name, *shape):
    return h.make_tensor_value_info(name, T.FLOAT, shape)

def step(line, **attributes):
    operator, takes, gives = line.split(":")
    nodes.append(h.make_node(operator, takes.split(","), gives.split(","), **attributes))

nodes, rng, whole = [], np.random.default_rng(0), sys.argv[2] == "whole"
shapes = {"e": (5, 24), "w": (24, 512), "v": (512, 12), "u": (12, 8), "square": (8, 8)}
weights = [numpy_helper.from_array(rng.normal(size=s).astype("float32") * 0.2, name) for name, s in shapes.items()]
constants = {"axis": np.int64(1), "k": np.array([5]), "flat": np.array([24]), "go": np.bool_(1), "most": np.float32(9)}
weights += [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
inputs = [f("x", 3, 24), h.make_tensor_value_info("i", T.INT64, [3])]
outputs = [f("view", 24), f("z", 3, 24), f("y", 3, 8)]
for line in ("Gather:e,i:g", "Add:g,x:s", "MatMul:s,w:p", "Relu:p:r", "MatMul:r,v:q", "Softmax:q:a", "Identity:x:z"):
    step(line)
if whole:
    step("CumSum:a,axis:c")
step(f"MatMul:{'c' if whole else 'a'},u:t")
step("Reshape:t,flat:view")
if whole:
    body = [h.make_node("MatMul", ["h0", "square"], ["m"]), h.make_node("Tanh", ["m"], ["h1"])]
    body += [h.make_node("ReduceSum", ["h1"], ["sum"], keepdims=0), h.make_node("Less", ["sum", "most"], ["on"])]
    kinds = {"n": T.INT64, "go_on": T.BOOL, "on": T.BOOL}
    state = [h.make_tensor_value_info(name, kind, []) for name, kind in kinds.items()]
    loop = h.make_graph(body, "body", [*state[:2], f("h0", 3, 8)], [state[2], f("h1", 3, 8)])
    for line in ("Tanh:t:th", "Exp:th:ex", "TopK:ex,k:top,at", "Exp:top:best"):
        step(line)
    step("Loop:steps,go,th:end", body=loop)
    for line in ("ReduceMax:end:most_of_it", "Add:r,most_of_it:r2", "MatMul:r2,v:q2", "MatMul:q2,u:y"):
        step(line)  # what was computed before the loop is read behind it
    inputs.append(h.make_tensor_value_info("steps", T.INT64, []))
    outputs += [f("best", 3, 5), h.make_tensor_value_info("at", T.INT64, [3, 5])]
else:
    step("Exp:t:y")
graph = h.make_graph(nodes, "graph", inputs, outputs, weights)
model = tvmbridge.import_onnx(h.make_model(graph, opset_imports=[h.make_opsetid("", 20)], ir_version=9))
folder = Path(sys.argv[1])
variants = []
for preset in ("cuda:sm_80,graphs", sys.argv[3]):
    target = tvmbridge.parse_preset(preset)
    variants.append(build_variant(lower(model, target), target, None, folder)[0])
facts = ModelFacts(model.name, model.sha256, model.opset)
write_bundle(folder / "model.tvmb", model=facts, signature=model.signature, variants=variants)
"""

START = """
import ctypes, sys, threading
import numpy as np, tvm_ffi, tvmbridge
from tvmbridge.errors import ArtifactError
path, rng = sys.argv[1], np.random.default_rng(1)

def draw():
    return {"x": rng.normal(size=(3, 24)).astype("float32"), "i": rng.integers(-5, 5, 3)}

def load():
    return tvmbridge.load(path, variant="cuda-sm_80-graphs")

def close(got, wanted):
    assert got.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_allclose(got[name], array, rtol=1e-4, atol=1e-6, err_msg=name)

def to_host(tensor):
    array = np.empty(tuple(tensor.shape), str(tensor.dtype))
    copy = tvm_ffi.get_global_func("runtime.TVMTensorCopyToBytes")
    copy(tensor, ctypes.c_void_p(array.ctypes.data), array.nbytes)
    return array

def say(what):
    print(what, file=sys.stderr, flush=True)

def on_threads(works):
    wrong = []
    def run(work):
        try:
            work()
        except BaseException as exc:
            wrong.append(exc)
    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    [thread.start() for thread in threads]
    return lambda: ([thread.join() for thread in threads], wrong)[1]
"""


def build(folder: Path, model: str, other: str) -> Path:
    """A bundle of a variant with graphs, and of another."""
    run_emulated([sys.executable, "-c", BUILD, str(folder), model, other])
    return folder / "model.tvmb"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the small model, for the CPU too."""
    return build(tmp_path_factory.mktemp("graphs"), "small", "x86-64-v2")


def emulated(bundle: Path, code: str, **settings: str) -> str:
    """What a program that begins with START writes to standard error, run beside the emulated device."""
    command = [sys.executable, "-c", START + code, str(bundle)]
    return run_emulated(command, TVMBRIDGE_CACHE=str(bundle.parent), **settings).stderr


def traced(bundle: Path, code: str) -> tuple[list[int], list[int]]:
    """How many kernels the graphs hold that are captured between a program's words load and run, and launched between
    run and end; none is captured later."""
    said = emulated(bundle, code, CUDA_EMULATION_TRACE="1")
    lines = [line.removeprefix("CUDA emulation:").strip() for line in said.splitlines()]
    load, run, end = (lines.index(word) for word in ("load", "run", "end"))

    def sizes(part: list[str], start: str) -> list[int]:
        return [int(line.split()[-1]) for line in part if line.startswith(start)]

    assert not sizes(lines[run:], "captured")
    return sizes(lines[load:run], "captured"), sizes(lines[run:end], "a graph of")


@pytest.mark.compiler
@pytest.mark.slow
def test_load_captures_graphs_which_calls_launch_also_when_the_thread_that_loaded_is_gone(bundle: Path):
    code = """
cpu = tvmbridge.load(path, device="cpu")
feeds = [draw() for _ in range(4)]
wanted = [cpu.run(each) for each in feeds]
made = []
say("load")
assert not on_threads([lambda: made.append(load())])()
say("run")
for each, results in zip(feeds, wanted):
    close(made[0].run(each), results)
say("end")
kept = [made[0].run_on_device(each) for each in feeds]
close(made[0].run({**feeds[0], "x": kept[1]["z"]}), cpu.run({**feeds[0], "x": feeds[1]["x"]}))
for each, results in zip(kept, wanted):
    close({name: to_host(tensor) for name, tensor in each.items()}, results)
times_us = made[0].time_kernels(feeds[0], seconds=0)
assert len(times_us) == 8 and min(times_us.values()) > 0
"""
    captured, launched = traced(bundle, code)
    # Behind the indices the gather; behind what adds the other input a product, one in two steps, and the softmax.
    assert captured == [1, 4]
    assert launched == captured * 4


@pytest.mark.compiler
@pytest.mark.slow
def test_sessions_are_loaded_while_threads_share_another_one_and_time_it(bundle: Path):
    code = """
first, cpu, over = load(), tvmbridge.load(path, device="cpu"), threading.Event()

def work(feeds, wanted):
    while not over.is_set():
        kept = first.run_on_device(feeds)
        close(first.run({**feeds, "x": kept["z"]}), wanted)
        first.time_kernels(feeds, seconds=0)

given = [draw() for _ in range(3)]
wait = on_threads([lambda feeds=feeds: work(feeds, cpu.run(feeds)) for feeds in given])
sessions = []
for _ in range(2):
    with load() as closed:
        close(closed.run(given[0]), cpu.run(given[0]))
    sessions.append(load())
over.set()
assert not (wrong := wait()), wrong
for session in sessions:
    close(session.run(given[1]), cpu.run(given[1]))
"""
    emulated(bundle, code)


@pytest.mark.compiler
@pytest.mark.slow
def test_a_capture_that_another_thread_disturbs_is_an_error_that_says_what_to_do(bundle: Path):
    code = """
for _ in range(2):
    try:
        load()
    except ArtifactError as exc:
        say(exc)
    else:
        raise AssertionError("no error")
"""
    said = emulated(bundle, code, CUDA_EMULATION_DISTURB="1")
    assert len(re.findall("variant cuda-sm_80-graphs does not start: .*CUDA graphs cannot be captured: .*", said)) == 2
    assert "hint: load it before other threads of this process use a GPU, or build it without cuda_graphs" in said


@pytest.mark.cuda
def test_kernels_with_workspaces_of_unknown_size_and_those_of_loops_stay_outside_of_graphs(tmp_path: Path):
    code = """
plain = tvmbridge.load(path, variant="cuda-sm_80")
say("load")
session = load()
say("run")
for steps in (0, 1, 5, 40):
    feeds = {**draw(), "steps": np.int64(steps)}
    got, wanted = session.run(feeds), plain.run(feeds)
    for name, array in wanted.items():
        np.testing.assert_array_equal(got[name], array, name)
say("end")
"""
    captured, launched = traced(build(tmp_path, "whole", "cuda:sm_80"), code)
    assert len(captured) >= 2  # before and behind the cumulative sum
    assert launched == captured * 4
