"""Starts the programs that are compared: each becomes a function from inputs to outputs, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from tvmbridge.signature import ModelSignature

Arrays = Mapping[str, np.ndarray]
Run = Callable[[Arrays], Arrays]


def start_openvino(model: Path, threads: int) -> Run:
    """OpenVINO in float32 (its default rounds to bfloat16 where the CPU can), at its fastest: no array is copied."""
    import openvino

    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
    }
    compiled = openvino.Core().compile_model(str(model), "CPU", settings)
    request = compiled.create_infer_request()
    names = [output.any_name for output in compiled.outputs]

    def run(feeds: Arrays) -> Arrays:
        results = request.infer(dict(feeds), share_inputs=True, share_outputs=True)
        return {name: results[index] for index, name in enumerate(names)}

    return run


def start_tvm_default(model: Path, threads: int) -> Run:
    """What `tvm.compile` makes of the imported model when it is left alone. Needs TVM's runtime loaded."""
    import tvm
    from tvm import relax

    import tvmbridge
    from tvmbridge.lowering.tvm_target import tvm_target
    from tvmbridge.runtime.threads import PoolSize

    imported = tvmbridge.import_onnx(model)
    signature: ModelSignature = imported.signature
    executable = tvm.compile(imported.module, target=tvm_target(tvmbridge.parse_preset("native")))
    machine = relax.VirtualMachine(executable, tvm.cpu())
    pool = PoolSize(threads)  # TVM's own choice is half of the CPUs
    pool.apply()

    def run(feeds: Arrays) -> Arrays:
        pool.hold()
        result = machine["main"](*(tvm.runtime.tensor(feeds[spec.name]) for spec in signature.inputs))
        results = [result] if isinstance(result, tvm.runtime.Tensor) else list(result)
        return {spec.name: tensor.numpy() for spec, tensor in zip(signature.outputs, results, strict=True)}

    return run
