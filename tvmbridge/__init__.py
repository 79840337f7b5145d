"""tvmbridge: ONNX models as ordinary software modules, compiled by Apache TVM for x86, ARM and CUDA.

On a build machine:

    model = tvmbridge.import_onnx("model.onnx", shapes={"x": (1, 3, 224, 224)})
    targets = tvmbridge.load_targets("targets.yaml")
    report = tvmbridge.build(model, targets, "model.tvmb", budget=tvmbridge.Budget(minutes=5), log="model.tune.jsonl")

On the machine that runs it, without a compiler:

    session = tvmbridge.load("model.tvmb")
    outputs = session.run({"x": x})

Each name below is imported when it is first used, so that loading a bundle never imports TVM.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tvmbridge.version import __version__

if TYPE_CHECKING:
    from tvmbridge.errors import AccuracyError as AccuracyError
    from tvmbridge.errors import ArtifactError as ArtifactError
    from tvmbridge.errors import BundleFormatError as BundleFormatError
    from tvmbridge.errors import CompileError as CompileError
    from tvmbridge.errors import DeviceError as DeviceError
    from tvmbridge.errors import DigestError as DigestError
    from tvmbridge.errors import InputError as InputError
    from tvmbridge.errors import IsolationError as IsolationError
    from tvmbridge.errors import LogError as LogError
    from tvmbridge.errors import ModelError as ModelError
    from tvmbridge.errors import ModelFileError as ModelFileError
    from tvmbridge.errors import NewerVersionError as NewerVersionError
    from tvmbridge.errors import NoVariantError as NoVariantError
    from tvmbridge.errors import OutputError as OutputError
    from tvmbridge.errors import ReferenceUnavailable as ReferenceUnavailable
    from tvmbridge.errors import ShapeError as ShapeError
    from tvmbridge.errors import SignatureError as SignatureError
    from tvmbridge.errors import TargetError as TargetError
    from tvmbridge.errors import ToolchainError as ToolchainError
    from tvmbridge.errors import TuningError as TuningError
    from tvmbridge.errors import TvmBridgeError as TvmBridgeError
    from tvmbridge.errors import UnsupportedOperatorError as UnsupportedOperatorError
    from tvmbridge.frontend import ImportedModel as ImportedModel
    from tvmbridge.frontend import import_onnx as import_onnx
    from tvmbridge.isolate import Limits as Limits
    from tvmbridge.isolate import call_isolated as call_isolated
    from tvmbridge.pipeline import BuildReport as BuildReport
    from tvmbridge.pipeline import build as build
    from tvmbridge.runtime import Session as Session
    from tvmbridge.runtime import check_bundle as check_bundle
    from tvmbridge.runtime import load as load
    from tvmbridge.runtime.inference_session import InferenceSession as InferenceSession
    from tvmbridge.targets import Target as Target
    from tvmbridge.targets import load_targets as load_targets
    from tvmbridge.targets import parse_preset as parse_preset
    from tvmbridge.tuning.budget import Budget as Budget
    from tvmbridge.tuning.log import TuningLog as TuningLog
    from tvmbridge.tuning.tune import tune as tune

_ERRORS = (
    "AccuracyError",
    "ArtifactError",
    "BundleFormatError",
    "CompileError",
    "DeviceError",
    "DigestError",
    "InputError",
    "IsolationError",
    "LogError",
    "ModelError",
    "ModelFileError",
    "NewerVersionError",
    "NoVariantError",
    "OutputError",
    "ReferenceUnavailable",
    "ShapeError",
    "SignatureError",
    "TargetError",
    "ToolchainError",
    "TuningError",
    "TvmBridgeError",
    "UnsupportedOperatorError",
)

_HOMES = {
    "import_onnx": "frontend",
    "ImportedModel": "frontend",
    "load_targets": "targets",
    "parse_preset": "targets",
    "Target": "targets",
    "Budget": "tuning.budget",
    "TuningLog": "tuning.log",
    "tune": "tuning.tune",
    "build": "pipeline",
    "BuildReport": "pipeline",
    "load": "runtime",
    "Session": "runtime",
    "InferenceSession": "runtime.inference_session",
    "check_bundle": "runtime",
    "call_isolated": "isolate",
    "Limits": "isolate",
    **dict.fromkeys(_ERRORS, "errors"),
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tvmbridge' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"tvmbridge.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
