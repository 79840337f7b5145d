"""A bundle where it is used: under load, in many processes, without apache-tvm, in C++, and after a kill."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import tvmbridge
from tests.test_runtime import run_python
from tvmbridge.bundle import open_bundle

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / "examples" / "digits" / "digits.onnx"


def test_the_requirements_of_the_runtime_are_those_of_the_package():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements-runtime.txt").read_text().splitlines()]
    required = [line for line in lines if line]
    assert set(required) <= set(declared)
    assert {line.split("=")[0].split(">")[0] for line in required} == {"apache-tvm-ffi", "msgspec", "numpy"}


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    bundle = tmp_path_factory.mktemp("digits") / "digits.tvmb"
    report = tvmbridge.build(tvmbridge.import_onnx(DIGITS, dims={"batch": 1}), ["native"], bundle, seconds=0.1)
    assert not report.failed
    return bundle


@pytest.fixture(scope="module")
def expected() -> tuple[np.ndarray, np.ndarray]:
    """Images, and ONNX Runtime's logits of them."""
    images = np.load(DIGITS.with_name("held_out.npz"))["image"][:64]
    session = onnxruntime.InferenceSession(str(DIGITS), providers=["CPUExecutionProvider"])
    return images, np.concatenate([session.run(None, {"image": image[None]})[0] for image in images])


@pytest.mark.compiler
def test_two_builds_without_tuning_differ_in_the_measured_latency_alone(digits, tmp_path):
    again = tmp_path / "again.tvmb"
    tvmbridge.build(tvmbridge.import_onnx(DIGITS, dims={"batch": 1}), ["native"], again, seconds=0.1)
    from tvmbridge.bundle.difference import find_differences

    with open_bundle(digits) as a, open_bundle(again) as b:
        differences = find_differences(a.manifest, b.manifest)
        assert {each.what for each in differences} <= {"variant native: latency_us"}
        assert a.manifest.members == b.manifest.members


@pytest.mark.slow
def test_eight_threads_call_one_session_a_thousand_times_each(digits, expected, monkeypatch, tmp_path):
    monkeypatch.setenv("TVMBRIDGE_CACHE", str(tmp_path / "cache"))
    images, logits = expected
    failures: list[BaseException] = []
    with tvmbridge.load(digits, threads=1) as session:

        def work(first: int) -> None:
            try:
                for step in range(1000):
                    index = (first * 7 + step) % len(images)
                    found = session.run({"image": images[index : index + 1]})["logits"]
                    np.testing.assert_allclose(found, logits[index : index + 1], rtol=1e-3, atol=1e-3)
            except BaseException as exc:
                failures.append(exc)

        workers = [threading.Thread(target=work, args=(first,)) for first in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert failures == []


@pytest.mark.slow
def test_sixteen_processes_open_one_bundle_at_once_with_an_empty_cache(digits, expected, tmp_path):
    images, logits = expected
    np.savez(tmp_path / "in.npz", images=images, logits=logits)
    code = """
import sys, time, numpy as np, tvmbridge
from pathlib import Path
start = Path(sys.argv[3])
start.with_name(f"ready-{sys.argv[4]}").touch()
while not start.exists():
    time.sleep(0.001)
arrays = np.load(sys.argv[2])
with tvmbridge.load(sys.argv[1]) as session:
    for image, logits in zip(arrays["images"], arrays["logits"]):
        np.testing.assert_allclose(session.run({"image": image[None]})["logits"][0], logits, rtol=1e-3, atol=1e-3)
print("right")
"""
    printed: list[str] = []
    start, cache = tmp_path / "start", tmp_path / "cache"

    def work(index: int) -> None:
        printed.append(run_python(code, digits, tmp_path / "in.npz", start, index, cache=cache))

    workers = [threading.Thread(target=work, args=(index,)) for index in range(16)]
    for worker in workers:
        worker.start()
    until = time.monotonic() + 100
    while len(list(tmp_path.glob("ready-*"))) < len(workers) and time.monotonic() < until:
        time.sleep(0.01)
    start.touch()
    for worker in workers:
        worker.join()
    assert printed == ["right"] * 16
    assert {path.suffix for path in cache.iterdir()} == {".so"}  # no temporary file is left


@pytest.mark.slow
def test_a_bundle_runs_in_a_virtual_environment_without_apache_tvm(digits, expected, tmp_path):
    """As docs/deploying.md says; needs the package registry."""
    images, logits = expected
    np.savez(tmp_path / "in.npz", image=images[:1])
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "TVM", "VIRTUAL"))}
    environment["TVMBRIDGE_CACHE"] = str(tmp_path / "cache")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    sources = tmp_path / "sources"  # setuptools writes beside what it builds
    sources.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    shutil.copytree(ROOT / "tvmbridge", sources / "tvmbridge", ignore=shutil.ignore_patterns("__pycache__"))
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-r", ROOT / "requirements-runtime.txt"], check=True, env=environment)
    subprocess.run([*pip, "--no-deps", sources], check=True, env=environment, cwd=tmp_path)
    code = """
import importlib.util, sys, numpy as np, tvmbridge
out = tvmbridge.load(sys.argv[1]).run(dict(np.load(sys.argv[2])))
np.savez(sys.argv[3], **out)
print([name for name in ("tvm", "onnx", "onnxruntime", "xgboost") if importlib.util.find_spec(name)])
"""
    arguments = [digits, tmp_path / "in.npz", tmp_path / "out.npz"]
    done = subprocess.run(
        [python, "-c", code, *arguments], capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "out.npz")["logits"], logits[:1], rtol=1e-3, atol=1e-3)


@pytest.mark.compiler
def test_the_cpp_example_runs_an_unpacked_variant(digits, expected, tmp_path):
    from tvmbridge.bundle.unpack import unpack_variant

    compiler = next(filter(None, map(shutil.which, ("g++", "c++", "clang++"))), None)
    if compiler is None:
        pytest.skip("no C++ compiler: apt install g++")
    images, logits = expected
    with open_bundle(digits) as bundle:
        unpack_variant(bundle, bundle.manifest.variants[0], tmp_path / "model")
    example = tmp_path / "cpp"
    shutil.copytree(ROOT / "examples" / "cpp", example)
    make = ["make", "-s", "run_variant", f"PYTHON={sys.executable}", f"CXX={compiler}"]
    subprocess.run(make, cwd=example, check=True)
    images[:1].tofile(tmp_path / "image.bin")
    command = [example / "run_variant", tmp_path / "model", tmp_path / "image.bin"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "logits float32" in done.stdout
    found = np.fromfile(tmp_path / "output0.bin", "float32").reshape(1, 10)
    np.testing.assert_allclose(found, logits[:1], rtol=1e-3, atol=1e-3)
    for wrong in ([], [tmp_path / "image.bin"] * 2, [tmp_path / "none.bin"], [DIGITS]):
        done = subprocess.run(
            [example / "run_variant", tmp_path / "model", *wrong], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 1 and done.stderr.startswith("error: ")


def test_the_cpp_example_says_which_python_has_no_tvm_ffi():
    command = ["make", "-B", "-C", ROOT / "examples" / "cpp", "PYTHON=.venv/bin/none"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and ".venv/bin/none has no apache-tvm-ffi" in done.stderr


@pytest.mark.slow
def test_a_kill_during_a_build_leaves_the_old_bundle_as_it_was(digits, tmp_path):
    bundle = tmp_path / "digits.tvmb"
    shutil.copy(digits, bundle)
    old = bundle.read_bytes()
    command = [sys.executable, "-m", "tvmbridge", "build", DIGITS, "--dim", "batch=1", "--no-tune", "-o", bundle]
    # The last moment is the most interesting: while the file is written, which a full pipe would make last.
    code = """
import os, runpy, signal, sys, tvmbridge.bundle.writer as writer
def write_members(stream, *rest, whole=writer._write_members):
    stream.write(b"half of it")
    stream.flush()
    os.kill(os.getpid(), signal.SIGKILL)
writer._write_members = write_members
sys.argv = sys.argv[1:]
runpy.run_module("tvmbridge", run_name="__main__", alter_sys=True)
"""
    killed = [sys.executable, "-c", code, "tvmbridge", *command[3:]]
    for moment in (0.5, 2.0, 4.0):
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        if process.returncode == 0:  # a fast machine
            old = bundle.read_bytes()
        assert bundle.read_bytes() == old
    done = subprocess.run(killed, cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert bundle.read_bytes() == old
    with open_bundle(bundle) as opened:
        opened.check_members()
