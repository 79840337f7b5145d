"""`python -m tests.cuda_emulation`: a model, or any program, on the emulated CUDA device (see the package)."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from . import emulated_environment, make_toolkit

_INSIDE = "TVMBRIDGE_TEST_INSIDE_EMULATION"


def main() -> int:
    """Start over in the emulated environment; there, compare a model, or be the program that is asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.cuda_emulation", description=__doc__)
    parser.add_argument("model", nargs="?", type=Path, help="an ONNX file")
    parser.add_argument("command", nargs="*", help="after --: a program to run instead")
    parser.add_argument("--target", default="cuda:sm_80", help="default: cuda:sm_80")
    parser.add_argument("--dim", action="append", default=[], metavar="NAME=SIZE", help="bind a free dimension")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="of the largest relative error; default: 1e-4")
    parser.add_argument("--log", type=Path, help="a tuning log to take schedules from")
    parser.add_argument("--samples", type=int, default=2, help="how many random inputs; default: 2")
    parser.add_argument("--json", action="store_true", help="print one object instead of lines")
    parser.add_argument("--trace", action="store_true", help="print every launch")
    given = sys.argv[1:]
    if "--" in given:
        command = given[given.index("--") + 1 :]
        return subprocess.run(command, env=emulated_environment(make_toolkit()), check=False).returncode
    arguments = parser.parse_args(given)
    if arguments.model is None:
        parser.error("a model, or -- and a program")
    if _INSIDE not in os.environ:
        settings = {_INSIDE: "1", **({"CUDA_EMULATION_TRACE": "1"} if arguments.trace else {})}
        command = [sys.executable, "-m", "tests.cuda_emulation", *given]
        return subprocess.run(command, env=emulated_environment(make_toolkit(), **settings), check=False).returncode
    return compare(arguments)


def compare(arguments: argparse.Namespace) -> int:
    """Build, run and print the largest relative error of each output; 1 where one is above the tolerance."""
    from tvmbridge.tuning.log import read_log

    from .compare import compare_model

    dims = {name: int(size) for name, _, size in (each.partition("=") for each in arguments.dim)}
    records = read_log(arguments.log) if arguments.log else None
    compared = compare_model(arguments.model, arguments.target, dims=dims, records=records, samples=arguments.samples)
    outputs = compared.comparison.outputs
    if arguments.json:
        errors = {output.name: output.mismatch or output.max_relative for output in outputs}
        timed = {"build_s": compared.build_s, "run_s": compared.run_s}
        print(json.dumps({"outputs": errors, "digest": compared.digest, "kernels": dict(compared.kernels), **timed}))
    else:
        for kernel, template in sorted(compared.kernels.items()):
            print(f"  {template:<12}  {kernel}")
        print(f"built in {compared.build_s:.1f} s, ran in {', '.join(f'{run_s:.2f}' for run_s in compared.run_s)} s")
        for output in outputs:
            print(f"{output.name}: {output.mismatch or f'max relative error {output.max_relative:.2e}'}")
    return 0 if compared.comparison.passes(arguments.tolerance) else 1


if __name__ == "__main__":
    sys.exit(main())
