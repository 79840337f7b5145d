"""Collects what the GPU benchmark needs into a folder, and makes a Python environment of it where there is no network.

`collect` runs where tvmbridge is installed and pip reaches an index; `make_environment` needs Python alone.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from comparison.parts import LIST_NAME, PartsError, join_parts, split_file

WHEELS = "wheels"
REQUIREMENTS = "requirements.txt"
ARCHIVE = "wheels.tar"
CUDA_RUNTIME = "nvidia-cuda-runtime"  # TVM's CUDA runtime library is linked to it
# What benchmarks/comparison needs besides tvmbridge's own dependencies; pip itself, as a venv may come without.
_BESIDES = ("psutil>=6", "pip")
_PLATFORMS = ("28", "27", "24", "17", "12", "5")


class BringError(Exception):
    """What is needed could not be collected or installed; the message says what."""


def collect(folder: Path, *, python: str, toolkit: bool, part_bytes: int | None) -> list[Path]:
    """Download the wheels for Python `python` ("3.12") on x86-64 Linux; returns the files to take along.

    toolkit: whether NVIDIA's compiler comes too; where the other machine has it, it need not. part_bytes: the most that
    one file may hold; None: wheels as they are.
    """
    wanted = [*own_requirements(_declared(), toolkit=toolkit), *_BESIDES]
    wheels = folder / WHEELS
    wheels.mkdir(parents=True, exist_ok=True)
    (wheels / REQUIREMENTS).write_text("\n".join(wanted) + "\n")
    _run(_download_command(wheels, python))
    if part_bytes is None:
        return sorted(wheels.iterdir())
    with tempfile.TemporaryDirectory(dir=folder) as place:
        archive = Path(place, ARCHIVE)
        with tarfile.open(archive, "w") as tar:
            for path in sorted(wheels.iterdir()):
                tar.add(path, path.name)
        parts = split_file(archive, folder, part_bytes)
    shutil.rmtree(wheels)
    return [*parts, folder / LIST_NAME]


def own_requirements(requirements: Sequence[str], *, toolkit: bool) -> list[str]:
    """What tvmbridge declares that it needs, and its extra `cuda`; of that, if not `toolkit`, CUDA's runtime alone."""
    from packaging.requirements import Requirement

    found = []
    for text in requirements:
        requirement = Requirement(text)
        marker = requirement.marker
        needed = marker is None or marker.evaluate({"extra": ""})
        cuda = not needed and marker is not None and marker.evaluate({"extra": "cuda"})
        if needed or (cuda and (toolkit or requirement.name == CUDA_RUNTIME)):
            requirement.marker = None
            found.append(str(requirement))
    return found


def _declared() -> list[str]:
    try:
        return importlib.metadata.requires("tvmbridge") or []
    except importlib.metadata.PackageNotFoundError as exc:
        raise BringError("tvmbridge is not installed in this Python: pip install -e . first") from exc


def _download_command(wheels: Path, python: str) -> list[str]:
    platforms = [word for minor in _PLATFORMS for word in ("--platform", f"manylinux_2_{minor}_x86_64")]
    target = ["--only-binary=:all:", "--implementation", "cp", "--python-version", python, *platforms]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    return [*pip, *target, "--dest", str(wheels), "--requirement", str(wheels / REQUIREMENTS)]


def make_environment(folder: Path, place: Path) -> Path:
    """A virtual environment in `place` with what was brought in `folder`; returns its Python.

    It sees this source tree and nothing of this Python's packages: torch stays where it is, for a process of its own.
    An environment that was made before, of the same wheels, is used again.
    """
    python, made = place / "bin" / "python", place / "made"
    wheels = _unpacked(folder)
    content = "\n".join(path.name for path in sorted(wheels.iterdir()))
    if made.is_file() and made.read_text() == content and python.exists():
        return python
    pip = next(iter(sorted(wheels.glob("pip-*.whl"))), None)
    if pip is None or not (wheels / REQUIREMENTS).is_file():
        raise BringError(f"{wheels} is not what --bring has collected: it lacks pip or {REQUIREMENTS}")
    _run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(place)])
    install = ["install", "--quiet", "--no-index", "--find-links", str(wheels), "--requirement"]
    _run([str(python), "-m", "pip", "--disable-pip-version-check", *install, str(wheels / REQUIREMENTS)], pip)
    (site,) = place.glob("lib/python3*/site-packages")
    (site / "source-tree.pth").write_text(f"{Path(__file__).resolve().parents[2]}\n")
    made.write_text(content)
    return python


def _unpacked(folder: Path) -> Path:
    """The folder of wheels, out of the parts where it came in parts."""
    wheels = folder / WHEELS
    if not (folder / LIST_NAME).is_file():
        if not wheels.is_dir():
            raise BringError(f"{folder} holds neither {LIST_NAME} nor {WHEELS}/: name the folder that --bring filled")
        return wheels
    if wheels.is_dir():
        return wheels
    try:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            archive = join_parts(folder, Path(place))
            with tarfile.open(archive) as tar:
                # Pythons before 3.10.12 and 3.11.4 have no filters; the parts are what --bring made, by their digests.
                tar.extraction_filter = getattr(tarfile, "data_filter", None)
                tar.extractall(Path(place, WHEELS))
            Path(place, WHEELS).rename(wheels)
    except (PartsError, tarfile.TarError) as exc:
        raise BringError(str(exc)) from exc
    return wheels


def _run(command: Sequence[str], pip: Path | None = None) -> None:
    environment = dict(os.environ)
    if pip is not None:
        environment["PYTHONPATH"] = str(pip)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "ERROR" in line] or done.stderr.splitlines()[-3:]
        raise BringError(f"{' '.join(command[:6])} … failed: {'; '.join(said)}")
