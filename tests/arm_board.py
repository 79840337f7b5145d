"""The emulated ARM board of scripts/arm_environment.py, as tests use it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "arm_environment.py"

# Runs on the board: sys.argv is bundle, threads, then inputs and outputs by turns.
_RUN_BUNDLE = """
import importlib.util, json, platform, sys, time, numpy as np, tvmbridge
bundle, threads, *files = sys.argv[1:]
verdicts = {verdict.variant: verdict.level for verdict in tvmbridge.check_bundle(bundle)}
seconds = []
with tvmbridge.load(bundle, threads=int(threads)) as session:
    for given, written in zip(files[::2], files[1::2]):
        started = time.monotonic()
        outputs = session.run(dict(np.load(given)))
        seconds.append(time.monotonic() - started)
        np.savez(written, **outputs)
compilers = [name for name in ("tvm", "onnx", "onnxruntime") if importlib.util.find_spec(name)]
print(json.dumps({"machine": platform.machine(), "compilers": compilers, "verdicts": verdicts, "seconds": seconds}))
"""


def why_no_board() -> str | None:
    """Why ARM code cannot be run here; None where it can."""
    done = subprocess.run([sys.executable, SCRIPT, "check"], capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else done.stderr.strip() or f"status {done.returncode}"


def board_command(
    *command: object,
    tvm: bool = False,
    offline: bool = False,
    cpu: str = "cortex-a72",
    share: Sequence[Path] = (),
    **environment: object,
) -> list[str]:
    """The command line that runs `command` on the board. share: folders that it sees at their own paths."""
    options = ["--cpu", cpu, *(["--tvm"] if tvm else []), *(["--offline"] if offline else [])]
    for folder in share:
        options += ["--share", str(folder)]
    for name, value in environment.items():
        options += ["--env", f"{name}={value}"]
    return [sys.executable, str(SCRIPT), "run", *options, *map(str, command)]


def install_runtime(folder: Path) -> Path:
    """tvmbridge as docs/deploying.md installs it where nothing is compiled: itself alone, into `folder`/site."""
    sources = folder / "sources"  # setuptools writes beside what it builds
    sources.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    shutil.copytree(ROOT / "tvmbridge", sources / "tvmbridge", ignore=shutil.ignore_patterns("__pycache__"))
    site = folder / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--target", site, sources], check=True)
    return site


def run_bundle(
    site: Path, bundle: Path, samples: Sequence[dict[str, np.ndarray]], *, cpu: str = "cortex-a72", threads: int = 2
) -> tuple[dict, list[dict[str, np.ndarray]]]:
    """What the board says of itself and of the bundle, and the bundle's outputs there for each sample."""
    folder = bundle.parent
    files = []
    for index, sample in enumerate(samples):
        np.savez(folder / f"in{index}.npz", **sample)
        files += [folder / f"in{index}.npz", folder / f"out{index}.npz"]
    command = ["python3", "-c", _RUN_BUNDLE, bundle, threads, *files]
    done = subprocess.run(
        board_command(*command, cpu=cpu, share=[site, folder], PYTHONPATH=site, PYTHONDONTWRITEBYTECODE=1),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), [dict(np.load(path)) for path in files[1::2]]
