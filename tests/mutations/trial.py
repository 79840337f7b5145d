"""Imports one model in a forked process, and builds and runs it where it is taken; what became of the process."""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import json
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

import tests.onnx_models as models
from tvmbridge.bundle import ModelFacts, write_bundle
from tvmbridge.codegen import build_variant
from tvmbridge.errors import InputError, TvmBridgeError
from tvmbridge.frontend import import_onnx
from tvmbridge.lowering import lower
from tvmbridge.runtime import load
from tvmbridge.signature import TensorSpec
from tvmbridge.targets import parse_preset

GOOD = ("refused", "fails to compile", "imported", "ran")
CPU_S = 60
WALL_S = 240
GROWTH_BYTES = 3 << 30
_FEED_BYTES = 1 << 26  # a model of larger inputs or outputs is not run


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a model.

    kind: of GOOD, or "foreign" (an exception that is none of ours), "crash", "time" or "memory".
    why: the error in a line. where: the place in the source, for what is not good.
    """

    kind: str
    why: str = ""
    where: str = ""
    seconds: float = 0.0
    grown_bytes: int = 0

    @property
    def is_bad(self) -> bool:
        return self.kind not in GOOD


class Bench:
    """A process that tries models, each in a fork of it: a process that has run kernels itself has none that can."""

    def __enter__(self) -> Bench:
        context = multiprocessing.get_context("spawn")
        self._end, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._end.close()
        self._process.join()

    def try_model(self, data: bytes, *, build: bool = True) -> Outcome:
        """See the function of this name."""
        self._end.send((data, build))
        return self._end.recv()


def _serve(connection: Connection) -> None:
    warm_up()
    with contextlib.suppress(EOFError):
        while True:
            data, build = connection.recv()
            connection.send(try_model(data, build=build))


def warm_up() -> None:
    """Import all that an import needs: a forked process has it, and starts in milliseconds. No kernel runs here."""
    import_onnx(models.mlp())
    import onnx.reference  # noqa: F401 -- what folding imports when it first folds


def try_model(data: bytes, *, build: bool = True) -> Outcome:
    """Import the bytes as a file, in a fork of this process; and compile and run it, where build is asked for."""
    with tempfile.TemporaryDirectory(prefix="tvmbridge-mutation-") as name:
        folder = Path(name)
        (folder / "model.onnx").write_bytes(data)
        started = time.monotonic()
        pid = os.fork()
        if pid == 0:
            _be_child(folder, build)
        killed, status, grown = _watch(pid, folder)
        seconds = time.monotonic() - started
        if killed is None and (folder / "result").exists():
            return Outcome(**json.loads((folder / "result").read_text()), seconds=seconds, grown_bytes=grown)
        where = _place((folder / "stderr").read_text(errors="replace"))
        if killed is None and os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            killed = "time" if number == signal.SIGXCPU else f"crash by {signal.Signals(number).name}"
        kind, _, why = (killed or f"crash by exit {status}").partition(" ")
        return Outcome(kind, why, where, seconds, grown)


def _watch(pid: int, folder: Path) -> tuple[str | None, int, int]:
    """Why it was killed, if it was; how it ended; the most memory that it added to what it began with."""
    began, grown, ends = None, 0, time.monotonic() + WALL_S
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return None, status, grown
        used = _used_bytes(pid)
        began = used if began is None else began
        grown = max(grown, used - began)
        why = "memory" if grown > GROWTH_BYTES else "time" if time.monotonic() > ends else None
        if why is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR1)  # the stack, where Python can still say it
                time.sleep(0.3)
                os.kill(pid, signal.SIGKILL)
            return why, os.waitpid(pid, 0)[1], grown
        time.sleep(0.01)


def _used_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return 1024 * int(line.split()[1])
    return 0


def _be_child(folder: Path, build: bool) -> None:
    """Never returns."""
    code = 1
    try:
        descriptor = os.open(folder / "stderr", os.O_WRONLY | os.O_CREAT)
        os.dup2(descriptor, 2)
        os.dup2(descriptor, 1)
        faulthandler.enable(descriptor, all_threads=False)
        faulthandler.register(signal.SIGUSR1, descriptor)
        faulthandler.register(signal.SIGXCPU, descriptor, chain=True)
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S + 5))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        outcome = _judge(folder, build)
        (folder / "part").write_text(json.dumps(outcome))
        (folder / "part").rename(folder / "result")
        code = 0
    finally:
        os._exit(code)


def _judge(folder: Path, build: bool) -> dict[str, str]:
    try:
        imported = import_onnx(folder / "model.onnx")
    except TvmBridgeError as exc:
        return {"kind": "refused", "why": f"{type(exc).__name__}: {exc.message[:300]}"}
    except Exception as exc:
        return _foreign(exc)
    specs = (*imported.signature.inputs, *imported.signature.outputs)
    if not build or sum(map(_size_bytes, specs)) > _FEED_BYTES:
        return {"kind": "imported"}
    try:
        target = parse_preset("native")
        variant, _ = build_variant(lower(imported, target), target, None, folder)
        facts = ModelFacts(imported.name, imported.sha256, imported.opset)
        write_bundle(folder / "model.tvmb", model=facts, signature=imported.signature, variants=[variant])
        with load(folder / "model.tvmb") as session:
            for way in ("usual", "zero", "least", "odd"):
                with contextlib.suppress(InputError):  # an index out of range
                    session.run({spec.name: _feed(spec, way) for spec in session.inputs})
    except TvmBridgeError as exc:
        return {"kind": "fails to compile", "why": f"{type(exc).__name__}: {exc.message[:300]}"}
    except Exception as exc:
        return _foreign(exc)
    return {"kind": "ran"}


def _size_bytes(spec: TensorSpec) -> int:
    size = 1
    for axis in spec.shape:
        size *= axis or 0
    return size * 8


def _feed(spec: TensorSpec, way: str) -> np.ndarray:
    """Data by dtype: ordinary, all zero, the least there is, or NaN and -1."""
    shape = tuple(axis or 0 for axis in spec.shape)
    numbers = np.random.default_rng(1).uniform(-2, 2, shape)
    kind = np.dtype(spec.dtype).kind
    if way == "zero":
        numbers = np.zeros(shape)
    elif way == "least" and kind == "i":
        return np.full(shape, np.iinfo(spec.dtype).min, spec.dtype)
    elif way != "usual":
        numbers[...] = -np.inf if way == "least" else np.nan
        if kind not in "f":
            numbers[...] = -1
    with np.errstate(all="ignore"):
        return numbers.astype("int64" if kind in "biu" else spec.dtype).astype(spec.dtype)


def _foreign(exc: Exception) -> dict[str, str]:
    lines = traceback.format_exception(exc)
    frames = [frame for frame in traceback.extract_tb(exc.__traceback__) if "tvmbridge" in frame.filename]
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    first = (str(exc).strip().splitlines() or [""])[0][:200]
    print("".join(lines), file=sys.stderr)
    return {"kind": "foreign", "why": f"{type(exc).__name__}: {first}", "where": where}


def _place(dump: str) -> str:
    """The innermost place in our source that a dumped stack names, and the innermost of all."""
    found = []
    for line in dump.splitlines():
        if line.strip().startswith('File "'):
            path, _, rest = line.strip()[6:].partition('"')
            found.append((path, f"{Path(path).name}:{rest.split()[2]}"))
    ours = next((place for path, place in found if "/tvmbridge/" in path), "")
    return f"{found[0][1]} of {ours}" if found else ""
