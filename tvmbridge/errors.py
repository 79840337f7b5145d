"""Every error that a user can cause or meet, and nothing else.

    TvmBridgeError            root: catch this one
    ├── ModelError            the ONNX model cannot be used
    │   ├── ModelFileError    missing, empty, truncated, not ONNX, external data missing
    │   ├── ShapeError        dimensions unbound, or bound against the model (.dimensions)
    │   ├── UnsupportedOperatorError   operators without a converter, all of them (.operators)
    │   ├── UnboundValueError   inputs decide shapes and are not bound to values (.inputs)
    │   └── ReferenceUnavailable       ONNX Runtime is not installed or does not take the model: nothing to compare with
    ├── TargetError           targets.yaml or a --target preset is wrong
    ├── ToolchainError        a linker or nvcc is missing: says what to install
    ├── CompileError          lowering, scheduling, code generation or linking failed
    ├── TuningError           tuning cannot start or go on
    │   └── LogError          a tuning log is foreign, damaged, newer or in use by another process
    ├── DeviceError           no device can be had over RPC, or all that were had were lost
    ├── AccuracyError         a variant's outputs differ from the reference's
    ├── ArtifactError         a bundle cannot be used
    │   ├── BundleFormatError foreign, truncated, malformed
    │   ├── DigestError       a member's bytes are not those that the manifest promises
    │   ├── SignatureError    a signature is missing, wrong, by another key, or cannot be made or checked
    │   ├── NewerVersionError written by a newer tvmbridge
    │   └── NoVariantError    no variant of the bundle runs on this machine (.reasons)
    ├── IsolationError        an isolated process crashed, or took more memory or time than it may
    ├── InputError            run() got a wrong name, shape or dtype, or an index out of range
    └── OutputError           a result cannot be written: no space, no permission, no such folder

An error says what happened to which thing (`str(error)`) and, in `hint`, what to do about it. A programming mistake is
never one of these; an error of another library is translated once, where that library is called, with `from exc`.
"""

from __future__ import annotations


class TvmBridgeError(Exception):
    """Root of the errors a user can cause or meet.

    message: what happened, to which thing; one line where possible.
    hint: what to do about it; None where the message says it already.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class ModelError(TvmBridgeError):
    """The ONNX model cannot be used."""


class ModelFileError(ModelError):
    """The model file is missing, empty, truncated, not ONNX, or lacks its external data."""


class ShapeError(ModelError):
    """Dimensions of the inputs are unbound, or are bound to values that the model contradicts.

    dimensions: "input[axis]=name" for each unbound dimension; empty where a binding is wrong.
    """

    def __init__(self, message: str, *, dimensions: tuple[str, ...] = (), hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.dimensions = dimensions


class UnsupportedOperatorError(ModelError):
    """The model has operators that no converter takes.

    operators: "domain.OpType (op-set N): node, node, …" for each of them.
    """

    def __init__(self, message: str, *, operators: tuple[str, ...], hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.operators = operators


class UnboundValueError(ModelError):
    """A value that decides shapes is computed at run time: the inputs that it is computed of are to be bound.

    inputs: their names.
    """

    def __init__(self, message: str, *, inputs: tuple[str, ...], hint: str | None = None) -> None:
        flags = " ".join(f"--value {name}=..." for name in inputs)
        super().__init__(message, hint=hint or f"bind what decides it when the model is built: {flags}")
        self.inputs = inputs


class ReferenceUnavailable(ModelError):  # noqa: N818 -- nothing is wrong: there is nothing to compare with
    """ONNX Runtime is not installed, or does not take the model."""


class TargetError(TvmBridgeError):
    """A targets.yaml or a preset given as --target is wrong."""


class ToolchainError(TvmBridgeError):
    """A tool that this target's build needs is not on this machine."""


class CompileError(TvmBridgeError):
    """Lowering, scheduling, code generation or linking failed for one target."""


class TuningError(TvmBridgeError):
    """Tuning cannot start or cannot go on."""


class LogError(TuningError):
    """A tuning log is foreign, damaged, written by a newer tvmbridge, or in use by another process."""


class DeviceError(TvmBridgeError):
    """No device can be had over RPC, or every one that was had was lost."""


class AccuracyError(TvmBridgeError):
    """A variant's outputs differ from the reference's by more than the tolerance."""


class ArtifactError(TvmBridgeError):
    """A bundle cannot be used."""


class BundleFormatError(ArtifactError):
    """The file is not a bundle, or a damaged or malformed one."""


class DigestError(ArtifactError):
    """A member's bytes are not those that the manifest promises."""


class SignatureError(ArtifactError):
    """A signature is missing, wrong, by another key, or cannot be made or checked."""


class NewerVersionError(ArtifactError):
    """The bundle was written by a newer tvmbridge, in a format this one does not know."""


class NoVariantError(ArtifactError):
    """No variant of the bundle runs on this machine.

    reasons: variant name → why it does not run here.
    """

    def __init__(self, message: str, *, reasons: dict[str, str] | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.reasons = reasons or {}


class IsolationError(TvmBridgeError):
    """A process that works for this one crashed, or took more memory or time than it was allowed."""


class InputError(TvmBridgeError):
    """run() was given a wrong name, shape or dtype, or an index out of range."""


class OutputError(TvmBridgeError):
    """A result cannot be written: no space, no permission, or no such folder."""


def reason(exc: BaseException) -> str:
    """One line that says what a foreign exception was: its kind and the first line of its message."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return f"{type(exc).__name__}: {lines[0]}" if lines else type(exc).__name__


def is_interrupt(exc: BaseException) -> bool:
    """Whether an exception out of TVM is Ctrl-C: tvm_ffi makes a RuntimeError without words of KeyboardInterrupt."""
    return isinstance(exc, KeyboardInterrupt) or (isinstance(exc, RuntimeError) and not str(exc))
