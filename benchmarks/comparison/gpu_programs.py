"""Starts the programs that the GPU benchmark compares; each import stays in the process that needs it.

Inputs lie on the device before a call, and a call returns when its outputs are complete there: what an application
that keeps its data on the GPU waits for.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from comparison.figures import (
    COMPILED,
    COMPILED_DEFAULTS,
    EAGER,
    EAGER_DEFAULTS,
    GRAPHS,
    NOT_INSTALLED,
    ONNXRUNTIME_CUDA,
    OURS,
    TENSORRT,
)
from comparison.gpu_plan import Kind, Precision

Arrays = Mapping[str, np.ndarray]

_COMPILE_MODES = {COMPILED: "default", COMPILED_DEFAULTS: "default", GRAPHS: "reduce-overhead"}
_DEFAULTS = (EAGER_DEFAULTS, COMPILED_DEFAULTS)
_PROVIDERS = {ONNXRUNTIME_CUDA: "CUDAExecutionProvider", TENSORRT: "TensorrtExecutionProvider"}


class NotThereError(Exception):
    """A program that this Python does not have; the message says why."""


@dataclasses.dataclass(frozen=True)
class Running:
    """A started program. call: one run, to its end; outputs: of a run, on the host, by name; prepare: before calls in a
    row, as another program of the process may have changed what holds for all of it."""

    call: Callable[[], object]
    outputs: Callable[[], dict[str, np.ndarray]]
    prepare: Callable[[], None] = lambda: None


def start(program: str, request: Mapping[str, Any], feeds: Arrays) -> Running:
    """Start a program; raises NotThereError where it is not installed.

    request: `bundle` for ours; `graph` (a folder), `half`, `device` and `outputs` (names) for PyTorch; `model`,
    `half_model`, `half` and `outputs` for ONNX Runtime.
    """
    if program in _PROVIDERS:
        return _start_onnxruntime(program, request, feeds)
    if program in (EAGER, EAGER_DEFAULTS, *_COMPILE_MODES):
        return _start_torch(program, request, feeds)
    return _start_ours(request, feeds)


def peers_of(kind: Kind, precision: Precision) -> tuple[str, ...]:
    """The peers that a step times. Of float32, PyTorch's defaults too, with which cuDNN may round to TF32."""
    exact = precision == "float32"
    eager = (EAGER, EAGER_DEFAULTS) if exact else (EAGER,)
    if kind == "speed":
        return eager
    compiled = (COMPILED, COMPILED_DEFAULTS, GRAPHS) if exact else (COMPILED, GRAPHS)
    return (*eager, *compiled, ONNXRUNTIME_CUDA, TENSORRT)


def worker_of(program: str) -> str:
    """The process that a program lives in: those of one share theirs."""
    if program in _PROVIDERS:
        return "onnxruntime"
    return "torch" if program in (EAGER, EAGER_DEFAULTS, *_COMPILE_MODES) else OURS


def _start_ours(request: Mapping[str, Any], feeds: Arrays) -> Running:
    import tvmbridge
    from tvmbridge.runtime.memory import CUDA_TYPE, allocate_on_device, copy_to_device

    session = tvmbridge.load(request["bundle"], device="cuda")
    given = {}
    for spec in session.inputs:
        given[spec.name] = allocate_on_device(feeds[spec.name].shape, spec.dtype, (CUDA_TYPE, 0))
        copy_to_device(feeds[spec.name], given[spec.name])
    # run_on_device returns when the outputs are complete.
    return Running(lambda: session.run_on_device(given), lambda: session.run(given))


def _start_torch(program: str, request: Mapping[str, Any], feeds: Arrays) -> Running:
    if importlib.util.find_spec("torch") is None:
        raise NotThereError(NOT_INSTALLED)
    import torch

    from comparison.torch_network import has_convolutions, read_network

    device, folder = torch.device(request["device"]), Path(request["graph"])
    if device.type == "cuda" and not torch.cuda.is_available():
        raise NotThereError("this torch sees no GPU")
    half = request["half"]
    network: Callable[..., Any] = read_network(folder, half=half, channels_last=half and has_convolutions(folder)).to(
        device
    )
    defaults = _default_numerics()
    numerics = defaults if program in _DEFAULTS else _Numerics(matmul=False, cudnn=False)
    if program in _COMPILE_MODES:
        network = torch.compile(network, mode=_COMPILE_MODES[program], dynamic=False)
    given = [torch.from_numpy(array).to(device) for array in feeds.values()]

    def call() -> Any:
        with torch.inference_mode():
            results = network(*given)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return results

    def outputs() -> dict[str, np.ndarray]:
        numerics.apply()
        return {name: each.cpu().numpy() for name, each in zip(request["outputs"], call(), strict=True)}

    return Running(call, outputs, numerics.apply)


@dataclasses.dataclass(frozen=True)
class _Numerics:
    """Whether float32 products may be rounded to TF32, in matrix products and in convolutions."""

    matmul: bool
    cudnn: bool

    def apply(self) -> None:
        """Let PyTorch compute so, and let cuDNN choose its convolutions by their times."""
        import torch

        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = self.cudnn
        torch.backends.cuda.matmul.allow_tf32 = self.matmul


@functools.cache
def _default_numerics() -> _Numerics:
    """What PyTorch begins with; asked before anything is changed."""
    import torch

    return _Numerics(matmul=torch.backends.cuda.matmul.allow_tf32, cudnn=torch.backends.cudnn.allow_tf32)


def _start_onnxruntime(program: str, request: Mapping[str, Any], feeds: Arrays) -> Running:
    if importlib.util.find_spec("onnxruntime") is None:
        raise NotThereError(NOT_INSTALLED)
    import onnxruntime

    provider = _PROVIDERS[program]
    if provider not in onnxruntime.get_available_providers():
        raise NotThereError(NOT_INSTALLED)
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # NVIDIA's libraries of torch's wheels
    half, tensorrt = request["half"], program == TENSORRT
    settings = {"trt_fp16_enable": half} if tensorrt else {"use_tf32": 0}
    # TensorRT rounds by itself; the CUDA provider needs a model of float16.
    model = request["half_model"] if half and not tensorrt else request["model"]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # fatal errors only
    session = onnxruntime.InferenceSession(model, options, providers=[(provider, settings)])
    if session.get_providers()[0] != provider:
        raise NotThereError(f"{provider} does not start here")
    binding = session.io_binding()
    given = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0) for name, array in feeds.items()}
    for name, value in given.items():
        binding.bind_ortvalue_input(name, value)
    for name in request["outputs"]:
        binding.bind_output(name, "cuda")

    def call() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    def outputs() -> dict[str, np.ndarray]:
        call()
        return dict(zip(request["outputs"], binding.copy_outputs_to_cpu(), strict=True))

    return Running(call, outputs)
