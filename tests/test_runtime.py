"""Sessions that run real compiled models, in this process and in processes without a compiler."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import msgspec
import numpy as np
import pytest

import tvmbridge.bundle
from tvmbridge.bundle import BuiltVariant, ModelFacts, Requires, open_bundle, write_bundle
from tvmbridge.errors import ArtifactError, BundleFormatError, InputError, NoVariantError, TvmBridgeError
from tvmbridge.host import detect_host
from tvmbridge.runtime import check_bundle, load
from tvmbridge.runtime.tensors import to_bits
from tvmbridge.signature import ModelSignature, TensorSpec
from tvmbridge.targets import Target

ROOT = str(Path(tvmbridge.bundle.__file__).parents[2])


def run_python(code: str, *arguments: object, cache: Path, path: str = ROOT, flags: tuple[str, ...] = ()) -> str:
    """Standard output of a new process that knows tvmbridge."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("TVM", "PYTHON", "OMP"))}
    environ |= {"PYTHONPATH": path, "TVMBRIDGE_CACHE": str(cache)}
    done = subprocess.run(
        [sys.executable, *flags, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environ,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_runtime_imports_no_compiler(tmp_path):
    code = "import sys, tvmbridge.runtime; print({'tvm', 'tvm_ffi', 'onnx', 'xgboost'} & set(sys.modules))"
    assert run_python(code, cache=tmp_path) == "set()"


def compile_library(path: Path, inputs, weights, body, outputs: int = 1) -> Path:
    """Compile main(inputs…, weights) with `body(emit, inputs, weights)`, in the form that the runtime expects."""
    import tvm
    from tvm import relax

    builder = relax.BlockBuilder()
    variables = [relax.Var(spec.name, relax.TensorType(spec.shape, spec.dtype)) for spec in inputs]
    parameters = list(variables)
    if weights:
        kinds = [relax.TensorType(weight.shape, weight.dtype.name) for weight in weights]
        parameters.append(relax.Var("weights", relax.TupleType(kinds)))
    with builder.function("main", parameters):
        with builder.dataflow():
            members = [relax.TupleGetItem(parameters[-1], index) for index in range(len(weights))]
            results = body(builder.emit, variables, members)
            output = builder.emit_output(results[0] if outputs == 1 else relax.Tuple(results))
        builder.emit_func_output(output)
    module = relax.transform.LegalizeOps()(builder.get())
    for variable, function in module.functions_items():
        if isinstance(function, tvm.tirx.PrimFunc):
            module[variable] = make_parallel(function)
    target = tvm.target.Target({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64-v2"})
    tvm.compile(module, target).export_library(str(path))
    return path


def make_parallel(function):
    """The kernel with its outermost loops on TVM's thread pool."""
    import tvm

    schedule = tvm.s_tir.Schedule(function)
    for block in schedule.get_child_blocks(schedule.get_sblock("root")):
        for loop in schedule.get_loops(block)[:1]:
            schedule.parallel(loop)
    return schedule.mod["main"]


def installed_runtime() -> Path:
    import tvm

    return Path(tvm.__file__).parent / "lib" / "libtvm_runtime.so"


def write_model(path: Path, library: Path, inputs, outputs, weights=(), *, runtime: bool = True, **changes) -> Path:
    import tvm
    import tvm_ffi

    target = Target(
        name=changes.pop("name", "native"), kind="x86", triple="x86_64-linux-gnu", cpu="x86-64-v2", features=(), cores=2
    )
    facts = {
        "requires": Requires("x86_64", (), (), "2.17"),
        "tvm": tvm.__version__,
        "tvm_ffi": tvm_ffi.__version__,
        "runtime_libraries": (installed_runtime(),) if runtime else (),
    }
    variant = BuiltVariant(
        target=target, library=library, weights=tuple(weights), kernels=2, tuned_kernels=0, **(facts | changes)
    )
    signature = ModelSignature(tuple(inputs), tuple(outputs))
    write_bundle(path, model=ModelFacts("tiny", "0" * 64, 17), signature=signature, variants=[variant], log=None)
    return path


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """A bundle of y = x @ w + b, positive = max(y, 0), with its parts."""
    from tvm import relax

    folder = tmp_path_factory.mktemp("dense")
    rng = np.random.default_rng(11)
    weights = (rng.normal(size=(67, 131)).astype("float32"), rng.normal(size=131).astype("float32"))
    inputs = [TensorSpec("x", (5, 67), "float32")]
    outputs = [TensorSpec("y", (5, 131), "float32"), TensorSpec("positive", (5, None), "float32")]

    def body(emit, variables, members):
        y = emit(relax.op.add(relax.op.matmul(variables[0], members[0]), members[1]))
        return [y, emit(relax.op.nn.relu(y))]

    library = compile_library(folder / "model.so", inputs, weights, body, outputs=2)
    path = write_model(folder / "m.tvmb", library, inputs, outputs, weights)
    return SimpleNamespace(path=path, library=library, inputs=inputs, outputs=outputs, weights=weights)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TVMBRIDGE_CACHE", str(tmp_path_factory.mktemp("cache") / "cache"))


def draw_x(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(5, 67)).astype("float32")


def assert_dense(dense, x: np.ndarray, result: dict) -> None:
    y = x.astype("float64") @ dense.weights[0] + dense.weights[1]
    assert list(result) == ["y", "positive"]
    np.testing.assert_allclose(result["y"], y, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(result["positive"], np.maximum(result["y"], 0))


RUN = """
import os, sys, numpy as np
from tvmbridge.runtime import load
path, inputs, outputs = sys.argv[1:4]
with load(path) as session:
    np.savez(outputs, **session.run(dict(np.load(inputs))))
heavy = {"tvm", "onnx", "onnxruntime", "xgboost", "scipy"} & set(sys.modules)
maps = open("/proc/self/maps").read()
print(sorted(heavy), os.environ["TVMBRIDGE_CACHE"] in maps, maps.count("r-xp") > 0, "libtvm_compiler" in maps)
"""


@pytest.mark.compiler
def test_a_new_process_runs_a_bundle_without_importing_a_compiler(dense, tmp_path):
    x = draw_x(1)
    np.savez(tmp_path / "in.npz", x=x)
    printed = run_python(RUN, dense.path, tmp_path / "in.npz", tmp_path / "out.npz", cache=tmp_path / "cache")
    assert printed == "[] True True False"
    assert_dense(dense, x, dict(np.load(tmp_path / "out.npz")))


@pytest.mark.compiler
def test_a_process_without_apache_tvm_runs_on_the_runtime_in_the_bundle(dense, tmp_path):
    import tvm_ffi

    packages = Path(tvm_ffi.__file__).parents[1]
    deployed = tmp_path / "packages"
    deployed.mkdir()
    for pattern in ("numpy", "numpy.libs", "msgspec", "tvm_ffi", "apache_tvm_ffi-*", "typing_extensions*"):
        for package in packages.glob(pattern):
            (deployed / package.name).symlink_to(package)
    (deployed / "tvmbridge").symlink_to(Path(ROOT) / "tvmbridge")
    x = draw_x(2)
    np.savez(tmp_path / "in.npz", x=x)
    cache = tmp_path / "cache"
    code = RUN + "\nimport importlib.util\nprint(importlib.util.find_spec('tvm'))"
    arguments = (dense.path, tmp_path / "in.npz", tmp_path / "out.npz")
    # -S: no site-packages, so that what is installed here is out of reach.
    printed = run_python(code, *arguments, cache=cache, path=str(deployed), flags=("-S",))
    assert printed.splitlines() == ["[] True True False", "None"]
    assert_dense(dense, x, dict(np.load(tmp_path / "out.npz")))
    assert len(list(cache.iterdir())) == 2


@pytest.mark.compiler
def test_a_variant_without_a_runtime_uses_the_installed_one(dense, tmp_path):
    path = write_model(tmp_path / "m.tvmb", dense.library, dense.inputs, dense.outputs, dense.weights, runtime=False)
    x = draw_x(3)
    np.savez(tmp_path / "in.npz", x=x)
    run_python(RUN, path, tmp_path / "in.npz", tmp_path / "out.npz", cache=tmp_path / "cache")
    assert_dense(dense, x, dict(np.load(tmp_path / "out.npz")))


@pytest.mark.compiler
def test_tvm_can_be_imported_after_a_session_ran(dense, tmp_path):
    code = """
import sys
from tvmbridge.runtime import load
session = load(sys.argv[1])
import tvm
print(tvm.__version__ != "", load(sys.argv[1]).variant)
"""
    assert run_python(code, dense.path, cache=tmp_path) == "True native"


@pytest.mark.compiler
def test_a_session_says_what_it_takes_and_gives(dense):
    with load(dense.path, threads=1) as session:
        assert (list(session.inputs), list(session.outputs)) == (dense.inputs, dense.outputs)
        assert (session.variant, session.threads) == ("native", 1)
        assert "x: float32[5, 67]" in repr(session)
    assert [verdict.variant for verdict in check_bundle(dense.path)] == ["native"]


@pytest.mark.compiler
def test_inputs_at_any_address_stride_and_protection_give_the_same_outputs(dense):
    x = draw_x(4)
    shifted = np.empty(x.nbytes + 64, np.uint8)
    frozen = x.copy()
    frozen.flags.writeable = False
    with load(dense.path) as session:
        expected = session.run({"x": x})
        assert_dense(dense, x, expected)
        for offset in (0, 1, 4, 33):
            view = shifted[offset : offset + x.nbytes].view("float32").reshape(x.shape)
            view[...] = x
            np.testing.assert_array_equal(session.run({"x": view})["y"], expected["y"])
        for other in (np.asfortranarray(x), np.repeat(x, 2, axis=1)[:, ::2], frozen):
            np.testing.assert_array_equal(session.run({"x": other})["y"], expected["y"])


@pytest.mark.compiler
def test_outputs_own_their_memory_and_survive_later_calls(dense):
    with load(dense.path) as session:
        first = session.run({"x": draw_x(5)})
        kept = first["y"].copy()
        session.run({"x": draw_x(6)})
        assert first["y"].flags.owndata and first["y"].flags.writeable
        np.testing.assert_array_equal(first["y"], kept)


@pytest.mark.compiler
def test_outputs_are_written_where_the_caller_wants_them(dense):
    x = draw_x(7)
    y, wide = np.full((5, 131), np.nan, "float32"), np.full((5, 262), np.nan, "float32")
    with load(dense.path) as session:
        result = session.run({"x": x}, {"y": y})
        assert result["y"] is y
        assert_dense(dense, x, result)
        result = session.run({"x": x}, out={"y": wide[:, ::2], "positive": y})
        np.testing.assert_array_equal(y, np.maximum(wide[:, ::2], 0))
        assert np.isnan(wide[:, 1::2]).all()
        with pytest.raises(InputError, match="given as out"):
            session.run({"x": x}, {"y": y[:1]})
        # "positive" has an axis that the run decides: only the result shows that this does not fit.
        with pytest.raises(InputError, match="has the shape"):
            session.run({"x": x}, {"positive": np.empty((5, 7), "float32")})


@pytest.mark.compiler
def test_aligned_inputs_are_read_in_place_also_from_read_only_memory(dense):
    from tvmbridge.runtime.tensors import allocate_aligned, lend_array

    array = allocate_aligned((5, 67), np.dtype("float32"))
    array[...] = draw_x(8)
    array.flags.writeable = False
    tensor = lend_array(array)
    assert np.from_dlpack(tensor).ctypes.data == array.ctypes.data
    with load(dense.path) as session:
        assert_dense(dense, array, session.run({"x": array}))


@pytest.mark.compiler
def test_a_required_signature_is_checked_before_anything_is_loaded(dense, tmp_path):
    from tvmbridge.bundle import make_key, sign_bundle

    path = tmp_path / "m.tvmb"
    path.write_bytes(dense.path.read_bytes())
    make_key(tmp_path / "key")
    code = """
import sys
from tvmbridge.errors import SignatureError
from tvmbridge.runtime import load
try:
    load(sys.argv[1], require_signature=sys.argv[2])
except SignatureError as error:
    print("tvm_ffi" in sys.modules, "not signed" in error.message)
else:
    print("loaded")
"""
    assert run_python(code, path, tmp_path / "key.pub", cache=tmp_path / "cache") == "False True"
    sign_bundle(path, tmp_path / "key")
    assert run_python(code, path, tmp_path / "key.pub", cache=tmp_path / "cache") == "loaded"


@pytest.mark.compiler
def test_threads_share_a_session_and_get_their_own_outputs(dense):
    session = load(dense.path)
    failures = []

    def work(seed: int) -> None:
        try:
            for step in range(25):
                x = draw_x(100 * seed + step)
                assert_dense(dense, x, session.run({"x": x}))
        except BaseException as exc:
            failures.append(exc)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert failures == []


@pytest.mark.compiler
def test_sessions_with_different_threads_in_one_thread_get_what_they_asked_for(dense, tmp_path):
    code = """
import dataclasses, os, sys, numpy as np
from tvmbridge.runtime import load, session as module
here = module.detect_host_for
module.detect_host_for = lambda *asked: dataclasses.replace(here(*asked), cores=3)  # more than there may be
x = np.ones((5, 67), "float32")
allowed = os.sched_getaffinity(0)
one, three, two = (load(sys.argv[1], threads=count) for count in (1, 3, 2))
import tvm_ffi
count = tvm_ffi.get_global_func("runtime.NumThreads")
def threads_of(session):
    worker = session._executable._callers.own.worker
    session.run({"x": x})
    return worker.submit(count).result() if worker else count()
print([threads_of(session) for session in (one, three, two, one, three)], os.sched_getaffinity(0) == allowed)
same = [session.run({"x": x})["y"].tobytes() for session in (one, two, three)]
print(len(set(same)))
"""
    assert run_python(code, dense.path, cache=tmp_path).splitlines() == ["[1, 3, 2, 1, 3] True", "1"]


@pytest.mark.compiler
def test_more_threads_than_cores_are_as_many_as_cores(dense):
    with load(dense.path, threads=999) as session:
        assert session.threads == detect_host().cores


@pytest.mark.compiler
def test_a_forked_process_runs_the_session_it_inherited(dense, tmp_path):
    code = """
import os, sys, numpy as np
from tvmbridge.runtime import load
session = load(sys.argv[1], threads=2)
x = np.ones((5, 67), "float32")
expected = session.run({"x": x})["y"]
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(session.run({"x": x})["y"], expected) else 3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert run_python(code, dense.path, cache=tmp_path) == "0"


@pytest.mark.compiler
def test_a_forked_process_runs_a_session_of_its_own(dense, tmp_path):
    code = """
import os, sys, numpy as np
from tvmbridge.runtime import load
x = np.ones((5, 67), "float32")
expected = load(sys.argv[1], threads=2).run({"x": x})["y"]
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(load(sys.argv[1], threads=2).run({"x": x})["y"], expected) else 3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert run_python(code, dense.path, cache=tmp_path) == "0"


@pytest.mark.compiler
def test_many_processes_fill_an_empty_cache_at_once(dense, tmp_path):
    x = draw_x(8)
    np.savez(tmp_path / "in.npz", x=x)
    cache = tmp_path / "cache"

    def start(index: int) -> None:
        run_python(RUN, dense.path, tmp_path / "in.npz", tmp_path / f"{index}.npz", cache=cache)

    workers = [threading.Thread(target=start, args=(index,)) for index in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for index in range(4):
        assert_dense(dense, x, dict(np.load(tmp_path / f"{index}.npz")))
    assert [path.suffix for path in cache.iterdir()] == [".so"]


@pytest.mark.compiler
def test_an_unusable_cache_is_no_obstacle_and_leaves_no_temporary_folder(dense, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "tmp").mkdir()
    x = draw_x(9)
    np.savez(tmp_path / "in.npz", x=x)
    code = f"import tempfile; tempfile.tempdir = {str(tmp_path / 'tmp')!r}\n" + RUN
    run_python(code, dense.path, tmp_path / "in.npz", tmp_path / "out.npz", cache=tmp_path / "file")
    assert_dense(dense, x, dict(np.load(tmp_path / "out.npz")))
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.compiler
@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int64", "float16", "bfloat16", "float64"])
def test_every_dtype_passes_through_unchanged(dtype, tmp_path):
    from tvm import relax

    kind = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
    rng = np.random.default_rng(3)
    x, weight = (rng.integers(0, 2 if dtype == "bool" else 50, size=(3, 7)).astype(kind) for _ in range(2))
    inputs, outputs = [TensorSpec("x", (3, 7), dtype)], [TensorSpec("y", (3, 7), dtype)]
    # Compiled code takes bfloat16 as its bits, which for positive numbers are ordered as the numbers are.
    bits = [TensorSpec("x", (3, 7), "uint16" if dtype == "bfloat16" else dtype)]
    if dtype == "bfloat16":
        weight = weight.view("uint16")
    # LLVM's code generator has no maximum of booleans; for them "or" is the same.
    maximum = relax.op.logical_or if dtype == "bool" else relax.op.maximum
    library = compile_library(tmp_path / "model.so", bits, [weight], lambda emit, xs, ws: [emit(maximum(xs[0], ws[0]))])
    with load(write_model(tmp_path / "m.tvmb", library, inputs, outputs, [weight])) as session:
        y = session.run({"x": x})["y"]
    assert y.dtype == kind
    np.testing.assert_array_equal(y.astype("float64"), np.maximum(x, weight.view(kind)).astype("float64"))


@pytest.mark.compiler
def test_a_model_without_weights_with_scalars_and_an_input_returned_as_it_came(tmp_path):
    from tvm import relax

    inputs = [TensorSpec("a", (), "float32"), TensorSpec("b", (4,), "float32")]
    outputs = [TensorSpec("sum", (), "float32"), TensorSpec("same", (4,), "float32")]
    library = compile_library(
        tmp_path / "model.so", inputs, [], lambda emit, xs, _: [emit(relax.op.add(xs[0], xs[0])), xs[1]], outputs=2
    )
    b = np.arange(4, dtype="float32")
    with load(write_model(tmp_path / "m.tvmb", library, inputs, outputs)) as session:
        result = session.run({"a": np.float32(2.5), "b": b})
    assert result["sum"].shape == () and result["sum"] == 5.0
    b[...] = 0
    assert result["same"].tolist() == [0, 1, 2, 3]


@pytest.mark.compiler
def test_a_result_written_over_an_input_leaves_the_other_results_right(tmp_path):
    from tvm import relax

    from tvmbridge.runtime.tensors import allocate_aligned

    inputs = [TensorSpec("x", (4,), "float32")]
    outputs = [TensorSpec("twice", (4,), "float32"), TensorSpec("same", (4,), "float32")]
    library = compile_library(
        tmp_path / "model.so", inputs, [], lambda emit, xs, _: [emit(relax.op.add(xs[0], xs[0])), xs[0]], outputs=2
    )
    x = allocate_aligned((4,), np.dtype("float32"))
    x[...] = [1, 2, 3, 4]
    with load(write_model(tmp_path / "m.tvmb", library, inputs, outputs)) as session:
        result = session.run({"x": x}, out={"twice": x})
    assert result["twice"] is x and x.tolist() == [2, 4, 6, 8]
    assert result["same"].tolist() == [1, 2, 3, 4]


@pytest.mark.compiler
def test_a_gpus_memory_copies_weights_inputs_and_outputs(dense, monkeypatch):
    import tvm_ffi

    from tvmbridge.runtime import gpu_memory
    from tvmbridge.runtime.memory import HOST as HOST_DEVICE
    from tvmbridge.runtime.memory import allocate_on_device, copy_to_device

    monkeypatch.setattr(gpu_memory, "_PINNED", HOST_DEVICE)
    specs = (TensorSpec("x", (2, 3), "bfloat16"), TensorSpec("e", (0, 3), "float32"))
    # Host memory stands in for the device's: the calls are the same.
    memory = gpu_memory.GpuMemory(ModelSignature(specs, specs), HOST_DEVICE)
    x = np.arange(6).astype(ml_dtypes.bfloat16).reshape(3, 2).T
    assert isinstance(memory.feed(0, x), tvm_ffi.Tensor)
    np.testing.assert_array_equal(memory.fetch(0, memory.feed(0, x), None), x)
    for out in (np.empty((2, 3), ml_dtypes.bfloat16), np.empty((2, 6), ml_dtypes.bfloat16)[:, ::2]):
        assert memory.fetch(0, memory.feed(0, x), out) is out
        np.testing.assert_array_equal(out, x)
    with pytest.raises(InputError, match="has the shape"):
        memory.fetch(0, memory.feed(0, x), np.empty((3, 2), ml_dtypes.bfloat16))
    assert memory.fetch(1, memory.feed(1, np.zeros((0, 3), "float32")), None).shape == (0, 3)
    tensor = allocate_on_device(dense.weights[0].shape, "float32", HOST_DEVICE)
    copy_to_device(dense.weights[0], tensor)
    np.testing.assert_array_equal(np.from_dlpack(tensor), dense.weights[0])


@pytest.mark.compiler
def test_a_closed_session_says_so(dense):
    session = load(dense.path)
    session.close()
    session.close()
    with pytest.raises(ValueError, match="the session of tiny is closed"):
        session.run({"x": draw_x(1)})


@pytest.mark.compiler
def test_a_tampered_library_or_weight_is_found_before_anything_is_loaded(dense, tmp_path):
    with open_bundle(dense.path) as bundle:
        variant = bundle.manifest.variants[0]
        offsets = [bundle._members[name].data_offset for name in (variant.library, variant.weights[0].member)]
    code = """
import sys
from tvmbridge.errors import DigestError
from tvmbridge.runtime import load
try:
    load(sys.argv[1])
except DigestError as error:
    print(error.message)
print("libtvm_runtime" in open("/proc/self/maps").read())
"""
    for offset in offsets:
        data = bytearray(dense.path.read_bytes())
        data[offset + 4] ^= 0x40
        (tmp_path / "m.tvmb").write_bytes(data)
        message, mapped = run_python(code, tmp_path / "m.tvmb", cache=tmp_path / "cache").splitlines()
        assert "are not those that the manifest promises" in message and mapped == "False"
    assert not (tmp_path / "cache").exists()


@pytest.mark.compiler
def test_a_library_that_is_none_or_no_model_is_an_artifact_error(dense, tmp_path):
    (tmp_path / "text.so").write_bytes(b"not an ELF file")
    path = write_model(tmp_path / "m.tvmb", tmp_path / "text.so", dense.inputs, dense.outputs)
    with pytest.raises(ArtifactError, match="library of variant native cannot be loaded"):
        load(path)
    path = write_model(tmp_path / "m.tvmb", Path(msgspec._core.__file__), dense.inputs, dense.outputs)
    with pytest.raises(ArtifactError, match="variant native does not start"):
        load(path)


@pytest.mark.compiler
def test_a_variant_that_does_not_fit_is_refused_before_its_library_is_touched(dense, tmp_path, monkeypatch):
    path = write_model(
        tmp_path / "m.tvmb",
        dense.library,
        dense.inputs,
        dense.outputs,
        dense.weights,
        requires=Requires("x86_64", ("a-feature-of-2090",)),
    )
    monkeypatch.setattr(tvmbridge.bundle.Bundle, "read_member", lambda *_: pytest.fail("a member was read"))
    with pytest.raises(NoVariantError, match="lacks a-feature-of-2090"):
        load(path)
    assert [verdict.level for verdict in check_bundle(path)] == ["unsupported"]


@pytest.mark.compiler
def test_a_failure_inside_the_model_is_told_in_one_line(dense, tmp_path):
    # The manifest promises another shape than the library was compiled for.
    inputs = [TensorSpec("x", (6, 67), "float32")]
    path = write_model(tmp_path / "m.tvmb", dense.library, inputs, dense.outputs, dense.weights)
    with load(path) as session, pytest.raises(TvmBridgeError, match="variant native failed while it ran") as caught:
        session.run({"x": np.zeros((6, 67), "float32")})
    assert "\n" not in caught.value.message


def test_load_refuses_what_is_no_bundle_and_a_silly_number_of_threads(tmp_path):
    with pytest.raises(BundleFormatError, match=r"m\.tvmb: there is no such file"):
        load(tmp_path / "m.tvmb")
    with pytest.raises(ValueError, match="threads=0"):
        load(tmp_path / "m.tvmb", threads=0)


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool", ml_dtypes.bfloat16, ml_dtypes.int4])
def test_only_types_that_numpy_lacks_are_taken_as_bits_wherever_the_array_comes_from(dtype):
    array = np.ones(3, dtype)
    unpickled = pickle.loads(pickle.dumps(array))  # its dtype is another object than NumPy's own
    expected = array.dtype if isinstance(dtype, str) else np.dtype(f"uint{8 * array.dtype.itemsize}")
    assert to_bits(array).dtype == to_bits(unpickled).dtype == expected
