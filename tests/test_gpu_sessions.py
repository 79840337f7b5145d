"""Sessions on a CUDA device, an emulated one: which GPU, what goes there and stays there, and what happens without."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from cuda_emulation import run_emulated

pytestmark = [pytest.mark.compiler, pytest.mark.slow]

BUILD = """
import sys
from pathlib import Path
import numpy as np
from onnx import TensorProto as T, helper as h, numpy_helper
import tvmbridge
from tvmbridge.bundle import ModelFacts, write_bundle
from tvmbridge.codegen import build_variant
from tvmbridge.lowering import lower

rng = np.random.default_rng(0)
shapes = {"w": (24, 7), "e": (5, 24)}
weights = [numpy_helper.from_array(rng.normal(size=shape).astype("float32"), name) for name, shape in shapes.items()]
steps = [("Gather", "e i", "g"), ("Add", "g x", "s"), ("MatMul", "s w", "p"), ("Softmax", "p", "y")]
steps += [("Identity", "x", "z")]
nodes = [h.make_node(operator, takes.split(), [gives]) for operator, takes, gives in steps]
inputs = [h.make_tensor_value_info("x", T.FLOAT, [3, 24]), h.make_tensor_value_info("i", T.INT64, [3])]
outputs = [h.make_tensor_value_info("y", T.FLOAT, [3, 7]), h.make_tensor_value_info("z", T.FLOAT, [3, 24])]
graph = h.make_graph(nodes, "graph", inputs, outputs, weights)
model = tvmbridge.import_onnx(h.make_model(graph, opset_imports=[h.make_opsetid("", 20)], ir_version=9))
folder = Path(sys.argv[1])
variants = []
for preset in ("cuda:sm_80", "x86-64-v2"):
    target = tvmbridge.parse_preset(preset)
    variants.append(build_variant(lower(model, target), target, None, folder)[0])
facts = ModelFacts(model.name, model.sha256, model.opset)
write_bundle(folder / "model.tvmb", model=facts, signature=model.signature, variants=variants)
"""

START = """
import logging, sys, threading
import numpy as np, tvm_ffi, tvmbridge
from tvmbridge.errors import ArtifactError, InputError, NoVariantError
logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
path = sys.argv[1]
rng = np.random.default_rng(1)

def draw():
    return {"x": rng.normal(size=(3, 24)).astype("float32"), "i": rng.integers(-5, 5, 3)}

def refused(error, call):
    try:
        call()
    except error as exc:
        return str(exc)
    raise AssertionError(f"no {error.__name__}")

def close(got, wanted):
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6)

cpu = tvmbridge.load(path, device="cpu")
assert (cpu.device, cpu.variant) == ("cpu", "x86-64-v2")
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a CUDA and a CPU variant of one small model."""
    folder = tmp_path_factory.mktemp("gpu")
    run_emulated([sys.executable, "-c", BUILD, str(folder)])
    return folder / "model.tvmb"


def emulated(bundle: Path, code: str, **settings: str) -> str:
    """What a program that begins with START prints, run beside the emulated device."""
    command = [sys.executable, "-c", START + code, str(bundle)]
    return run_emulated(command, TVMBRIDGE_CACHE=str(bundle.parent), **settings).stdout


def test_the_gpu_goes_before_the_cpu_and_gives_the_same(bundle: Path):
    code = """
with tvmbridge.load(path) as session:
    assert (session.variant, session.device) == ("cuda-sm_80", "cuda:0")
    for _ in range(3):
        feeds = draw()
        wanted = cpu.run(feeds)
        close(session.run(feeds)["y"], wanted["y"])
    out = np.empty((3, 14), "float32")[:, ::2]
    results = session.run({**feeds, "x": np.asfortranarray(feeds["x"])}, out={"y": out, "z": feeds["x"]})
    assert results["y"] is out and results["z"] is feeds["x"]
    close(out, wanted["y"])
    close(feeds["x"], wanted["z"])
    times_us = session.time_kernels(feeds, seconds=0)
    assert times_us and all(time_us > 0 for time_us in times_us.values())
    print("done")
"""
    assert emulated(bundle, code) == "done\n"


def test_what_lies_on_the_gpu_is_taken_and_left_there_in_the_order_of_the_streams(bundle: Path):
    code = """
class Array:
    def __init__(self, tensor, device=(2, 0)):
        self.tensor, self.device, self.streams = tensor, device, []
    def __dlpack_device__(self):
        return self.device
    def __dlpack__(self, *, stream=None, **_):
        self.streams.append(stream)
        return self.tensor.__dlpack__()

with tvmbridge.load(path, device="cuda") as session:
    feeds, other = draw(), draw()
    first = session.run_on_device(feeds)
    assert first["y"].__dlpack_device__() == (2, 0) and tuple(first["y"].shape) == (3, 7)
    again = Array(first["z"])
    second = session.run_on_device({"x": again, "i": other["i"]})
    assert again.streams == [1]
    assert second["z"].data_ptr() != first["z"].data_ptr()
    close(session.run({"x": second["z"], "i": other["i"]})["y"], cpu.run({"x": feeds["x"], "i": other["i"]})["y"])
    session.run(other)
    close(session.run({"x": first["z"], "i": feeds["i"]})["y"], cpu.run(feeds)["y"])
    assert "shape [3, 7] given" in refused(InputError, lambda: session.run({**feeds, "x": first["y"]}))
    assert "lies on cuda:1" in refused(InputError, lambda: session.run({**feeds, "x": Array(first["z"], (2, 1))}))
    assert "dtype float32 given" in refused(InputError, lambda: session.run({**feeds, "i": first["z"]}))
    assert "run()" in str(refused(InputError, lambda: cpu.run_on_device(feeds)))
    print("done")
"""
    assert emulated(bundle, code) == "done\n"


def test_threads_share_a_session_on_a_gpu(bundle: Path):
    code = """
session, wrong = tvmbridge.load(path, device="cuda:0"), []

def work(feeds):
    for _ in range(5):
        if not np.allclose(session.run(feeds)["y"], cpu.run(feeds)["y"], rtol=1e-4, atol=1e-6):
            wrong.append(feeds)

threads = [threading.Thread(target=work, args=(draw(),)) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert not wrong
print("done")
"""
    assert emulated(bundle, code) == "done\n"


def test_a_gpu_that_is_not_there_is_refused_with_what_is(bundle: Path):
    code = """
print(refused(NoVariantError, lambda: tvmbridge.load(path, device="cuda:2")))
print(refused(ValueError, lambda: tvmbridge.load(path, device="gpu")))
print(*tvmbridge.check_bundle(path, device="cuda:0"), sep="\\n")
"""
    said = emulated(bundle, code)
    assert "there is no cuda:2 on this machine; it has cuda:0 Emulated CUDA device" in said
    assert '"cpu", "cuda" or "cuda:N"' in said
    assert "level='optimal'" in said and "runs on the CPU; the device asked for is cuda:0" in said


def test_a_gpu_without_room_leaves_the_work_to_the_cpu_unless_it_was_asked_for(bundle: Path):
    code = """
session = tvmbridge.load(path)
print(session.device)
close(session.run(feeds := draw())["y"], cpu.run(feeds)["y"])
print(refused(ArtifactError, lambda: tvmbridge.load(path, variant="cuda-sm_80")))
print(refused(ArtifactError, lambda: tvmbridge.load(path, device="cuda")))
"""
    said = emulated(bundle, code, CUDA_EMULATION_MEMORY_BYTES="512").splitlines()
    assert "variant cuda-sm_80 does not start: " in said[0]
    assert said[0].endswith("variant x86-64-v2 takes its place, on the CPU") and said[1] == "cpu"
    assert all("does not start" in line for line in said[2:]) and len(said) == 4


def test_code_of_another_architecture_leaves_the_work_to_the_cpu(bundle: Path):
    code = """
print(tvmbridge.load(path).device)
print(tvmbridge.check_bundle(path)[-1].reason)
"""
    said = emulated(bundle, code, CUDA_EMULATION_CAPABILITY="7.5").splitlines()
    assert said == ["cpu", "holds code for sm_80; this GPU is sm_75"]
