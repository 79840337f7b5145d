"""What a call of Session.run costs beyond the compiled model's own: `python benchmarks/overhead.py`.

    python benchmarks/overhead.py [--seconds S] [--threads N]

The digits model, whose kernels take microseconds. Four programs take turns: the bare call of TVM's virtual machine, its
arguments made once; Session.run; the same with `out`; ONNX Runtime's run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import tvm_ffi

import tvmbridge
from tvmbridge.bundle import open_bundle
from tvmbridge.cli.output import print_table, show_us
from tvmbridge.runtime.memory import HOST, bind_weights
from tvmbridge.runtime.native import load_variant
from tvmbridge.runtime.tensors import allocate_aligned, lend_array
from tvmbridge.verify.latency import time_in_turns

DIGITS = Path(__file__).parents[1] / "examples" / "digits" / "digits.onnx"
OVERHEAD_US = 15.0
_POOLED_ALLOCATOR = 2


def main() -> int:
    """Measure and print; 1 where the overhead is above its target."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tvmbridge-overhead-") as name:
        bundle = Path(name, "digits.tvmb")
        report = tvmbridge.build(tvmbridge.import_onnx(DIGITS, dims={"batch": 1}), ["native"], bundle, seconds=0.1)
        if report.failed:
            raise report.failed[0].error or RuntimeError("the digits model was not built")
        session = tvmbridge.load(bundle, threads=arguments.threads)
        image = allocate_aligned((1, 1, 8, 8), np.dtype("float32"))
        image[...] = np.random.default_rng(0).standard_normal(image.shape, dtype=np.float32)
        logits = np.empty((1, 10), np.float32)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = arguments.threads
        reference = onnxruntime.InferenceSession(str(DIGITS), options, providers=["CPUExecutionProvider"])
        bare = bare_call(bundle, image)
        expected = reference.run(None, {"image": image})[0]
        for found in (np.from_dlpack(bare()), session.run({"image": image})["logits"]):
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
        programs = {
            "bare call": bare,
            "Session.run": lambda: session.run({"image": image}),
            "Session.run(out=…)": lambda: session.run({"image": image}, {"logits": logits}),
            "ONNX Runtime": lambda: reference.run(None, {"image": image}),
        }
        blocks = time_in_turns(list(programs.values()), seconds=arguments.seconds, rounds=5)
    times_us = {n: float(np.median(np.concatenate(b))) * 1e6 for n, b in zip(programs, blocks, strict=True)}
    over_us = times_us["Session.run"] - times_us["bare call"]
    print_table(["program", "median"], [[name, show_us(time_us)] for name, time_us in times_us.items()])
    print(f"Session.run over the bare call: {over_us:.1f} µs; wanted: ≤ {OVERHEAD_US:g}")
    return 0 if over_us <= OVERHEAD_US else 1


def bare_call(bundle: Path, image: np.ndarray) -> tvm_ffi.Function:
    """A function without arguments that runs the compiled model, called as docs/bundle-format.md says."""
    with open_bundle(bundle) as opened:
        (variant,) = opened.manifest.variants
        machine = load_variant(opened, variant)["vm_load_executable"]()
        weights = bind_weights(opened.map_weights(variant), HOST)
    machine["vm_initialization"](*HOST, _POOLED_ALLOCATOR)
    run, tensor = machine["main"], lend_array(image)
    return lambda: run(tensor, weights)


if __name__ == "__main__":
    sys.exit(main())
