"""load() and Session: a bundle's best variant, ready to run."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from tvmbridge.bundle import Bundle, Manifest, VariantEntry, open_bundle
from tvmbridge.cache import cache_folder
from tvmbridge.errors import ArtifactError, DigestError, InputError, TvmBridgeError, reason
from tvmbridge.host import Host
from tvmbridge.runtime.checked import CheckedWeights
from tvmbridge.runtime.choose import detect_host_for, detect_software_for, fitting_variants
from tvmbridge.runtime.devices import Device, parse_device
from tvmbridge.runtime.feeds import FeedChecker, ResultChecker
from tvmbridge.signature import TensorSpec

if TYPE_CHECKING:
    import tvm_ffi

    from tvmbridge.bundle.signing import Key
    from tvmbridge.runtime.executable import Executable

LOGGER = logging.getLogger(__name__)

Result = TypeVar("Result")


class Session:
    """A loaded model; made by load(). A context manager, and safe to call from several threads at once.

    inputs, outputs: names, shapes and dtypes, in the model's order.
    variant: name of the variant that was chosen. device: where it runs, "cpu" or "cuda:0".
    threads: threads that one call uses.
    """

    def __init__(
        self, manifest: Manifest, variant: VariantEntry, executable: Executable, threads: int, device: Device
    ) -> None:
        self.inputs: tuple[TensorSpec, ...] = manifest.signature.inputs
        self.outputs: tuple[TensorSpec, ...] = manifest.signature.outputs
        self.variant = variant.name
        self.device = str(device)
        self.threads = threads
        self._model = manifest.model.name
        self._feeds = FeedChecker(self.inputs, executable.device_inputs)
        self._results = ResultChecker(self.outputs)
        self._executable: Executable | None = executable

    def run(
        self, inputs: Mapping[str, Any], out: Mapping[str, np.ndarray[Any, Any]] | None = None
    ) -> dict[str, np.ndarray[Any, Any]]:
        """Outputs by name for inputs by name; the outputs are arrays of your own, to keep and change.

        inputs: arrays of exactly the dtypes and shapes of `self.inputs`: NumPy's, or any that NumPy can read, by DLPack
        too. A row-major array at an address that 64 divides is read in place; any other is copied first. A session on a
        GPU also takes what lies on that GPU and speaks DLPack (PyTorch, CuPy), without a copy where 64 divides its
        address; what its own stream still computes of it is waited for, on the GPU.
        out: for any of the outputs, a writable NumPy array of its dtype and shape to write it to; new ones are made for
        the others. It may be the memory of an input, not that of another output.
        Several calls may run at once, each from its own thread. Raises InputError for a wrong name, dtype or shape or
        an index out of range, ValueError after close().
        """
        places = None if out is None else self._results.order(out)
        results = self._call(inputs, lambda executable, arrays: executable.call(arrays, places))
        return {spec.name: array for spec, array in zip(self.outputs, results, strict=True)}

    def run_on_device(self, inputs: Mapping[str, Any]) -> dict[str, tvm_ffi.Tensor]:
        """As `run`; the outputs stay on the GPU, as tensors that speak DLPack: torch.from_dlpack(outputs["y"]).

        They are complete when the call returns, so that any stream may read them, and yours to keep and change. An
        output of a dtype that NumPy alone lacks (bfloat16, float8, 4 bits) comes as its bits, in unsigned numbers.
        InputError for a session on the CPU; else raises as `run`.
        """
        if self.device == "cpu":
            raise InputError(f"variant {self.variant} runs on the CPU: no output stays on a GPU", hint="call run()")
        results = self._call(inputs, lambda executable, arrays: executable.call_on_device(arrays))
        return {spec.name: tensor for spec, tensor in zip(self.outputs, results, strict=True)}

    def time_kernels(self, inputs: Mapping[str, Any], *, seconds: float = 0.5) -> dict[str, float]:
        """How many microseconds each kernel takes of one call, by its name in the library; none for CUDA.

        Each is timed where it runs, in the network, and all its calls count together; the median over the calls of
        `run` that fit into about `seconds`. Timing adds about a microsecond to each call of a kernel. Raises as `run`.
        """
        return self._call(inputs, lambda executable, arrays: executable.time_kernels(arrays, seconds))

    def _call(self, inputs: Mapping[str, Any], use: Callable[[Executable, list[Any]], Result]) -> Result:
        executable = self._executable
        if executable is None:
            raise ValueError(f"the session of {self._model} is closed")
        arrays = self._feeds.order(inputs)
        try:
            return use(executable, arrays)
        except InputError:  # what only the result shows: an array given as out does not fit it
            raise
        except Exception as exc:  # the compiled model raises what its kernels raise
            raise TvmBridgeError(f"{self._model}: variant {self.variant} failed while it ran: {reason(exc)}") from exc

    def close(self) -> None:
        """Let go of weights and buffers; calls under way on other threads still finish. Closing twice does nothing."""
        self._executable = None

    def __enter__(self) -> Session:
        """The session itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the session."""
        self.close()

    def __repr__(self) -> str:
        """Model, variant and signature."""
        return f"<Session {self._model} [{self.variant}] {', '.join(map(str, self.inputs))}>"


def load(
    path: str | os.PathLike[str],
    *,
    threads: int | None = None,
    variant: str | None = None,
    device: str | None = None,
    require_signature: Key | Sequence[Key] | None = None,
    recheck: bool = False,
) -> Session:
    """Open a bundle, choose the variant that fits this machine best, check its digests and load it.

    threads: threads a call may use; None: as many as the variant was built for. Never more than the cores that this
        process may use: TVM's threads spin, and starve each other where there are too many.
    variant: a variant's name, to insist on that one.
    device: "cpu", "cuda" (GPU 0) or "cuda:1", to insist on running there; GPUs count as in CUDA, among those that
        CUDA_VISIBLE_DEVICES leaves. None: GPU 0 for a CUDA variant that fits it, else the CPU; where such a variant
        does not start all the same, that is logged, and the best CPU variant takes its place.
    require_signature: public keys (PEM files, or their bytes), one of which must have signed the bundle.
    recheck: read and check all weights even if this user has checked them before on this machine, in the same file,
        unchanged since by its inode and times. Libraries are checked each time.
    Raises ArtifactError children; SignatureError and NoVariantError come before any library is loaded.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"threads={threads}: a call uses at least one")
    with open_bundle(path) as bundle:
        if require_signature is not None:
            from tvmbridge.bundle import verify_signature

            verify_signature(bundle, require_signature)
        wanted = None if device is None else parse_device(device)
        host = detect_host_for(bundle.manifest, wanted)
        software = detect_software_for(bundle, host)
        fitting = fitting_variants(bundle.manifest, host, software, variant, wanted)
        on_cpu = next((each for each in fitting if each.kind != "cuda"), None)
        chosen = fitting[0]
        try:
            return _start_session(bundle, chosen, host, threads, recheck, wanted)
        except ArtifactError as exc:
            if chosen.kind != "cuda" or on_cpu is None or isinstance(exc, DigestError):
                raise
            LOGGER.warning("%s; variant %s takes its place, on the CPU", exc.message, on_cpu.name)
        return _start_session(bundle, on_cpu, host, threads, recheck, None)


def _start_session(
    bundle: Bundle, variant: VariantEntry, host: Host, threads: int | None, recheck: bool, wanted: Device | None
) -> Session:
    # tvm_ffi is imported here, once a variant fits: without it, or with a wrong one, none does.
    from tvmbridge.runtime.executable import Executable
    from tvmbridge.runtime.memory import CUDA_TYPE, HOST
    from tvmbridge.runtime.native import load_variant, never_free

    device = (wanted or Device("cuda")) if variant.kind == "cuda" else Device("cpu")
    # The weights' digests come first: what is damaged is found before any library is loaded.
    checked = CheckedWeights(bundle, variant, cache_folder())
    weights = bundle.map_weights(variant, check=recheck or not checked.known)
    checked.remember()
    module = load_variant(bundle, variant)
    count = min(threads if threads is not None else variant.cores, host.cores)
    try:
        executable = Executable(
            module,
            signature=bundle.manifest.signature,
            weights=weights,
            device=HOST if device.kind == "cpu" else (CUDA_TYPE, device.number),
            threads=count,
            cuda_graphs=variant.cuda_graphs,
        )
    except Exception as exc:  # TVM raises its own errors for what is no model library, and for a device that fails
        if device.kind == "cuda":
            never_free(exc, module)
        what = f"{bundle.path}: variant {variant.name} does not start: {reason(exc)}"
        raise ArtifactError(what, hint=exc.hint if isinstance(exc, TvmBridgeError) else None) from exc
    return Session(bundle.manifest, variant, executable, count, device)
