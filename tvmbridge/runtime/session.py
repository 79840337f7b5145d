"""load() and Session: a bundle's best variant, ready to run."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from tvmbridge.bundle import Bundle, Manifest, VariantEntry, open_bundle
from tvmbridge.cache import cache_folder
from tvmbridge.errors import ArtifactError, InputError, TvmBridgeError, reason
from tvmbridge.host import Host
from tvmbridge.runtime.checked import CheckedWeights
from tvmbridge.runtime.choose import choose_variant, detect_host_for, detect_software
from tvmbridge.runtime.feeds import FeedChecker, ResultChecker
from tvmbridge.signature import TensorSpec

if TYPE_CHECKING:
    from tvmbridge.bundle.signing import Key
    from tvmbridge.runtime.executable import Executable
    from tvmbridge.runtime.tensors import Array

Result = TypeVar("Result")


class Session:
    """A loaded model; made by load(). A context manager, and safe to call from several threads at once.

    inputs, outputs: names, shapes and dtypes, in the model's order.
    variant: name of the variant that was chosen.
    threads: threads that one call uses.
    """

    def __init__(self, manifest: Manifest, variant: VariantEntry, executable: Executable, threads: int) -> None:
        self.inputs: tuple[TensorSpec, ...] = manifest.signature.inputs
        self.outputs: tuple[TensorSpec, ...] = manifest.signature.outputs
        self.variant = variant.name
        self.threads = threads
        self._model = manifest.model.name
        self._feeds = FeedChecker(self.inputs)
        self._results = ResultChecker(self.outputs)
        self._executable: Executable | None = executable

    def run(
        self, inputs: Mapping[str, Any], out: Mapping[str, np.ndarray[Any, Any]] | None = None
    ) -> dict[str, np.ndarray[Any, Any]]:
        """Outputs by name for inputs by name; the outputs are arrays of your own, to keep and change.

        inputs: arrays of exactly the dtypes and shapes of `self.inputs`: NumPy's, or any that NumPy can read, by DLPack
        too. A row-major array at an address that 64 divides is read in place; any other is copied first.
        out: for any of the outputs, a writable NumPy array of its dtype and shape to write it to; new ones are made for
        the others. It may be the memory of an input, not that of another output.
        Several calls may run at once, each from its own thread. Raises InputError for a wrong name, dtype or shape or
        an index out of range, ValueError after close().
        """
        places = None if out is None else self._results.order(out)
        results = self._call(inputs, lambda executable, arrays: executable.call(arrays, places))
        return {spec.name: array for spec, array in zip(self.outputs, results, strict=True)}

    def time_kernels(self, inputs: Mapping[str, Any], *, seconds: float = 0.5) -> dict[str, float]:
        """How many microseconds each kernel takes of one call, by its name in the library; none for CUDA.

        Each is timed where it runs, in the network, and all its calls count together; the median over the calls of
        `run` that fit into about `seconds`. Timing adds about a microsecond to each call of a kernel. Raises as `run`.
        """
        return self._call(inputs, lambda executable, arrays: executable.time_kernels(arrays, seconds))

    def _call(self, inputs: Mapping[str, Any], use: Callable[[Executable, list[Array]], Result]) -> Result:
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
    require_signature: Key | Sequence[Key] | None = None,
    recheck: bool = False,
) -> Session:
    """Open a bundle, choose the variant that fits this machine best, check its digests and load it.

    threads: threads a call may use; None: as many as the variant was built for. Never more than the cores that this
        process may use: TVM's threads spin, and starve each other where there are too many.
    variant: a variant's name, to insist on that one.
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
        host = detect_host_for(bundle.manifest)
        chosen = choose_variant(bundle.manifest, host, detect_software(), variant)
        return _start_session(bundle, chosen, host, threads, recheck)


def _start_session(bundle: Bundle, variant: VariantEntry, host: Host, threads: int | None, recheck: bool) -> Session:
    # tvm_ffi is imported here, once a variant fits: without it, or with a wrong one, none does.
    from tvmbridge.runtime.executable import Executable
    from tvmbridge.runtime.memory import CUDA, HOST
    from tvmbridge.runtime.native import load_variant

    # The weights' digests come first: what is damaged is found before any library is loaded.
    checked = CheckedWeights(bundle, variant, cache_folder())
    weights = bundle.map_weights(variant, check=recheck or not checked.known)
    checked.remember()
    module = load_variant(bundle, variant)
    count = min(threads if threads is not None else variant.cores, host.cores)
    device = CUDA if variant.kind == "cuda" else HOST
    try:
        executable = Executable(
            module, signature=bundle.manifest.signature, weights=weights, device=device, threads=count
        )
    except Exception as exc:  # TVM raises its own errors for what is no model library, and for a device that fails
        raise ArtifactError(f"{bundle.path}: variant {variant.name} does not start: {reason(exc)}") from exc
    return Session(bundle.manifest, variant, executable, count)
