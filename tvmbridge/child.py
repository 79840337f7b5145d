"""Starts Python processes of our own: this interpreter, this package, and nothing of the folder they are started in."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

# `python -m` puts the current folder first on the module path: a select.py of the user's would be imported as ours.
_START = """\
import sys
if sys.path[0] == "":
    del sys.path[0]
import runpy
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def child_command(module: str, *arguments: str) -> list[str]:
    """The command line that runs `module` as a program."""
    return [sys.executable, "-c", _START, module, *arguments]


def child_environment(**changes: str) -> Mapping[str, str]:
    """This process's environment with `changes`, in which the child finds the package that started it."""
    package = str(Path(__file__).resolve().parents[1])
    search = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(search), **changes}
