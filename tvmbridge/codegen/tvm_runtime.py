"""TVM's runtime libraries for a target: the installed package's, or another machine's out of the wheel made for it.

pip fetches the wheel, so that its settings hold (a mirror, a proxy, certificates, a folder of wheels). What goes into a
bundle is checked by digest each time; the cache keeps the libraries and not the wheel, of which they are a twentieth.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import os
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import tvm
from filelock import FileLock, Timeout

from tvmbridge.cache import cache_folder, read_cached, write_cached
from tvmbridge.child import child_command, child_environment
from tvmbridge.errors import ToolchainError, reason
from tvmbridge.host import detect_host

TVM_VERSION = "0.27.0.post1"  # pyproject.toml's; the digests below are of this release
WHEEL_VARIABLE = "TVMBRIDGE_RUNTIME_WHEEL"

_POLL_S = 0.2
_LOCK_TIMEOUT_S = 1800.0  # another build is fetching the same wheel; 100 MB take this long at 50 kB/s

_PIP_DOWNLOAD = ("download", "--no-deps", "--only-binary=:all:", "--platform")

OnFetch = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class PublishedWheel:
    """One wheel of the release. platform: its tag. libraries: name → sha256 of what a bundle may take out of it."""

    platform: str
    sha256: str
    size_bytes: int
    libraries: Mapping[str, str]


WHEELS = {
    "aarch64": PublishedWheel(
        platform="manylinux_2_28_aarch64",
        sha256="4acfdb7653e4e1ba7a707bdf2833db72eb8fda7d04d99141f2a4e1da43171fb7",
        size_bytes=94_643_021,
        libraries={
            "libtvm_runtime.so": "ba06950fac134b8d71549111fad2c6605cd6f738061fe0482f217c37ccbdff05",
            "libtvm_runtime_cuda.so": "c277ef1b0b4afef83d0fa99f50b7ea72632c64a7020ce7ce887d225de13266e6",
            "libtvm_runtime_extra.so": "741979814c4028d536a8a8ed1b9a6306ab23812ab3853803e5146cdde5778dcf",
        },
    ),
    "x86_64": PublishedWheel(
        platform="manylinux_2_28_x86_64",
        sha256="f503fc903b6e16fda5daacac6698ecb8bc38937f57da7aa29f6c7ab169d08657",
        size_bytes=100_544_100,
        libraries={
            "libtvm_runtime.so": "43544bbeaea3cd3ffa919f7eac77244753aff28d1440c42f1ba8df03fa6e3948",
            "libtvm_runtime_cuda.so": "38782fe727adf51a82fa93de2a003044e16cd421564864a340dbd7f341215ffe",
            "libtvm_runtime_extra.so": "12a6fc3e6f1e50ae105d0b580c2ecddbac23473fa906f1fdc92693eae5bc22eb",
        },
    ),
}


def runtime_folder(machine: str, folder: Path, on_fetch: OnFetch | None = None) -> Path:
    """The folder that holds TVM's runtime libraries for `machine`: "x86_64" or "aarch64".

    Those of this machine are the installed package's. Those of the other are put into `folder`: from the cache, from
    the wheel that $TVMBRIDGE_RUNTIME_WHEEL names, or from the package index. on_fetch: called with (bytes so far, bytes
    in all) while the wheel is downloaded. Raises ToolchainError where they cannot be had.
    """
    if machine == detect_host().machine:
        return Path(tvm.__file__).parent / "lib"
    place = folder / f"runtime-{machine}"
    if not place.is_dir():
        libraries = _fetch(machine, WHEELS[machine], on_fetch)
        place.mkdir()
        for name, data in libraries.items():
            (place / name).write_bytes(data)
    return place


def _fetch(machine: str, wheel: PublishedWheel, on_fetch: OnFetch | None) -> dict[str, bytes]:
    """The libraries of the wheel by name, each with the digest that it should have."""
    if tvm.__version__ != TVM_VERSION:
        why = f"what {TVM_VERSION} has for it is known, and {tvm.__version__} is installed"
        raise ToolchainError(f"no TVM runtime for {machine}: {why}", hint=f"pip install apache-tvm=={TVM_VERSION}")
    if found := _cached(wheel):
        return found
    if named := os.environ.get(WHEEL_VARIABLE):
        return _keep(wheel, _read_wheel(Path(named), machine, wheel))
    with _locked(f"runtime-{machine}.lock"):
        if found := _cached(wheel):  # another process fetched it while this one waited
            return found
        try:
            with tempfile.TemporaryDirectory(prefix="tvmbridge-wheel-") as workspace:
                path = _download(machine, wheel, Path(workspace), on_fetch)
                return _keep(wheel, _read_wheel(path, machine, wheel))
        except OSError as exc:
            raise _not_had(machine, wheel, reason(exc)) from exc


def _cached(wheel: PublishedWheel) -> dict[str, bytes] | None:
    """All libraries of the wheel from the cache; None where one is missing or has changed."""
    found = {name: read_cached(cache_folder(), f"{digest}.so") for name, digest in wheel.libraries.items()}
    whole = {name: data for name, data in found.items() if data is not None and _is(data, wheel.libraries[name])}
    return whole if len(whole) == len(found) else None


def _keep(wheel: PublishedWheel, libraries: dict[str, bytes]) -> dict[str, bytes]:
    for name, data in libraries.items():
        write_cached(cache_folder(), f"{wheel.libraries[name]}.so", data)
    return libraries


@contextlib.contextmanager
def _locked(name: str) -> Iterator[None]:
    """Hold a lock in the cache folder; where that cannot be written nothing is shared, and nothing needs a lock."""
    lock = FileLock(str(cache_folder() / name), timeout=_LOCK_TIMEOUT_S)
    with contextlib.ExitStack() as held:
        try:
            cache_folder().mkdir(mode=0o700, parents=True, exist_ok=True)
            held.enter_context(lock)
        except Timeout as exc:
            minutes = f"{_LOCK_TIMEOUT_S / 60:g} minutes"
            raise ToolchainError(
                f"another process has been downloading TVM's runtime for {minutes}: it holds {lock.lock_file}",
                hint="end it, and build again",
            ) from exc
        except OSError:
            pass
        yield


def _download(machine: str, wheel: PublishedWheel, workspace: Path, on_fetch: OnFetch | None) -> Path:
    """Have pip download the wheel into the workspace."""
    if importlib.util.find_spec("pip") is None:
        raise _not_had(machine, wheel, "this Python has no pip to download it with")
    requirement = workspace / "requirements.txt"
    requirement.write_text(f"apache-tvm=={TVM_VERSION} --hash=sha256:{wheel.sha256}\n")
    downloads = workspace / "downloads"
    options = ["--no-input", "--progress-bar", "off", "--require-hashes", "--dest", str(downloads)]
    command = child_command("pip", *_PIP_DOWNLOAD, wheel.platform, *options, "--requirement", str(requirement))
    said = workspace / "pip.log"
    if on_fetch is not None:
        on_fetch(0, wheel.size_bytes)
    # pip's own words of how far it is differ between its versions; the file that it fills, in its TMPDIR, does not.
    with said.open("wb") as log:
        process = subprocess.Popen(
            command, env=child_environment(TMPDIR=str(workspace)), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_S)
                if on_fetch is not None:
                    on_fetch(min(_size_bytes(workspace), wheel.size_bytes), wheel.size_bytes)
        finally:
            process.kill()
            process.wait()
    found = sorted(downloads.glob("*.whl"))
    if process.returncode or len(found) != 1:
        raise _not_had(machine, wheel, f"pip: {_last_error(said.read_text(errors='replace'))}")
    return found[0]


def _read_wheel(path: Path, machine: str, wheel: PublishedWheel) -> dict[str, bytes]:
    """The libraries of a wheel file, checked."""
    libraries = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name, digest in wheel.libraries.items():
                libraries[name] = archive.read(f"tvm/lib/{name}")
                if not _is(libraries[name], digest):
                    raise _not_had(
                        machine, wheel, f"{path}: {name} is not that of apache-tvm {TVM_VERSION} for {machine}"
                    )
    except (OSError, KeyError, zipfile.BadZipFile, ValueError, NotImplementedError) as exc:
        raise _not_had(machine, wheel, f"{path}: {reason(exc)}") from exc
    return libraries


def _not_had(machine: str, wheel: PublishedWheel, why: str) -> ToolchainError:
    command = " ".join(["pip", *_PIP_DOWNLOAD, wheel.platform, f"apache-tvm=={TVM_VERSION}"])
    return ToolchainError(
        f"no TVM runtime for {machine}: {why}",
        hint=f"on a machine with a network: {command}; here: {WHEEL_VARIABLE}=<the file> and build again",
    )


def _last_error(said: str) -> str:
    """What pip gave as its reason: its last line that starts with ERROR, else its last line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["it said nothing"])[-1]


def _size_bytes(folder: Path) -> int:
    """What the files below a folder hold; files that vanish meanwhile hold nothing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_size
    return total


def _is(data: bytes, sha256: str) -> bool:
    return hashlib.sha256(data).hexdigest() == sha256
