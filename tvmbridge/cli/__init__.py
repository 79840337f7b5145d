"""The `tvmbridge` command: each subcommand parses, makes one library call and prints.

The only place that exits or sets up logging. Exit codes: 0 all well; 1 something failed, and was said; 2 wrong usage;
130 interrupted.
"""

from __future__ import annotations

import io
import logging
import os
import sys

import click

from tvmbridge.cli.bench import bench_command
from tvmbridge.cli.build import build_command
from tvmbridge.cli.device import device_group
from tvmbridge.cli.exchange import export_command, import_command
from tvmbridge.cli.inspect import check_command, doctor_command, inspect_command, targets_command
from tvmbridge.cli.log import log_group
from tvmbridge.cli.output import print_error, print_json
from tvmbridge.cli.report import report_command
from tvmbridge.cli.run import run_command, verify_command
from tvmbridge.cli.signing import keygen_command, sign_command, verify_signature_command
from tvmbridge.cli.tune import tune_command
from tvmbridge.cli.unpack import diff_command, unpack_command
from tvmbridge.errors import TvmBridgeError
from tvmbridge.version import __version__

FAILED, INTERRUPTED = 1, 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="tvmbridge")
@click.option("-v", "--verbose", is_flag=True, help="Log what happens inside, to standard error.")
def tvmbridge(verbose: bool) -> None:
    """Build ONNX models into tuned, verified bundles for x86, ARM and CUDA, and run them.

    \b
    tvmbridge build model.onnx --shape x=1x3x224x224 --minutes 5 -o model.tvmb
    tvmbridge run model.tvmb -i in.npz -o out.npz

    Every command takes --json. Exit codes: 0 all well, 1 something failed (and was said), 2 wrong usage.
    """
    logging.basicConfig(level=logging.DEBUG if verbose else logging.WARNING, format="%(name)s: %(message)s")
    for noisy in ("asyncio", "filelock", "onnxscript", "onnx_ir"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


for command in (
    build_command,
    tune_command,
    run_command,
    bench_command,
    verify_command,
    inspect_command,
    check_command,
    targets_command,
    doctor_command,
    device_group,
    log_group,
    report_command,
    diff_command,
    unpack_command,
    keygen_command,
    sign_command,
    verify_signature_command,
):
    tvmbridge.add_command(command)
for command in (export_command, import_command):
    log_group.add_command(command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    as_json = "--json" in arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # no terminal is too old for what we have to say
    try:
        code = tvmbridge.main(list(arguments), obj=arguments, prog_name="tvmbridge", standalone_mode=False)
        sys.stdout.flush()
    except click.UsageError as exc:
        if as_json:
            print_json({"error": {"kind": "UsageError", "message": exc.format_message(), "hint": None}})
        else:
            exc.show()
        sys.exit(exc.exit_code)
    except TvmBridgeError as exc:
        print_error(exc, as_json)
        sys.exit(FAILED)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        _drop_output()
        sys.exit(FAILED)
    except OSError as exc:  # every file of ours is named where it fails: what is left is our own output
        _drop_output()
        click.echo(f"error: cannot write the output: {exc.strerror or exc}", err=True)
        sys.exit(FAILED)
    sys.exit(code if isinstance(code, int) else 0)


def _drop_output() -> None:
    """Whoever read our output has gone, or it is full: Python must not try again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
