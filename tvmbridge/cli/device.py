"""`tvmbridge device`: lends this machine to those who tune, verify and time elsewhere; lists who lends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from tvmbridge.cli.options import json_option, resolve_targets
from tvmbridge.cli.output import print_json, print_table
from tvmbridge.errors import DeviceError, TargetError, reason
from tvmbridge.targets import RpcMeasure

if TYPE_CHECKING:
    from tvmbridge.device.tracker import Device


@click.group("device")
def device_group() -> None:
    """Lend a device to those who tune, verify and time over RPC; list the devices there are.

    \b
    tvmbridge device serve --tracker 127.0.0.1:9190 --key rpi4
    tvmbridge device list --tracker 127.0.0.1:9190
    """


@device_group.command(
    "serve", context_settings={"ignore_unknown_options": True, "help_option_names": []}, add_help_option=False
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def serve_command(arguments: tuple[str, ...]) -> int:
    """Lend this machine to a TVM RPC tracker until it is interrupted.

    The same as `python -m tvmbridge.device.server`, which needs fewer packages.
    """
    from tvmbridge.device.server import main

    return main(arguments, program="tvmbridge device serve")


@device_group.command("list")
@click.option("--tracker", "trackers", multiple=True, metavar="HOST:PORT", help="Ask this tracker. Repeatable.")
@click.option("--targets", "targets_file", type=click.Path(), help="Ask the trackers that this file's targets name.")
@json_option
def list_command(trackers: tuple[str, ...], targets_file: str | None, as_json: bool) -> int:
    """List the devices that trackers know: where they are, whether they are lent, and how steady their times are.

    Without --tracker, those of the targets.yaml are asked. Exit code 1 where there is no device.

    \b
    tvmbridge device list --tracker 127.0.0.1:9190
    tvmbridge device list --targets targets.yaml --json
    """
    asked = trackers or _declared_trackers(targets_file)
    from tvmbridge.device.tracker import list_devices

    found: list[tuple[str, Device]] = []
    for tracker in dict.fromkeys(asked):
        try:
            found += [(tracker, device) for device in list_devices(tracker)]
        except OSError as exc:
            raise DeviceError(
                f"no TVM RPC tracker answers at {tracker} ({reason(exc)})",
                hint="python -m tvm.exec.rpc_tracker --host 127.0.0.1 --port 9190",
            ) from exc
    if as_json:
        print_json([_describe(tracker, device) for tracker, device in found])
    elif found:
        columns = ["key", "address", "state", "machine", "threads", "governor", "temperature", "load", "clock"]
        print_table(columns, [_row(device) for _, device in found])
        for _, device in found:
            for warning in _warnings(device):
                click.echo(f"{device.key} {device.address}: {warning}", err=True)
    else:
        click.echo("no device is registered", err=True)
    return 0 if found else 1


def _declared_trackers(targets_file: str | None) -> list[str]:
    targets = resolve_targets(targets_file, ())
    trackers = [target.measure.tracker for target in targets if isinstance(target.measure, RpcMeasure)]
    if not trackers:
        raise TargetError("no target is measured over RPC", hint="name the tracker: --tracker 127.0.0.1:9190")
    return trackers


def _describe(tracker: str, device: Device) -> dict[str, Any]:
    details = dict(device.details) if device.details is not None else None
    warnings = _warnings(device)
    return {"tracker": tracker, "key": device.key, "address": device.address, "details": details, "warnings": warnings}


def _warnings(device: Device) -> list[str]:
    from tvmbridge.device.health import health_warnings

    if device.details is None:
        return []
    health = device.details["health"]
    return health_warnings({**health, "load": None} if device.details["busy"] else health)  # the load is the session's


def _row(device: Device) -> list[str]:
    details = device.details
    if details is None:
        return [device.key, device.address, "says nothing", *["–"] * 6]
    health: Mapping[str, Any] = details["health"]
    return [
        device.key,
        device.address,
        "lent" if details["busy"] else "free",
        f"{details['machine']} emulated" if details["emulated"] else details["machine"],
        str(details["threads"]),
        health["governor"] or "–",
        _show(health["temperature_c"], "{:.0f} °C"),
        _show(health["load"], "{:.2f}"),
        _show(health["mhz"], "{:.0f} MHz"),
    ]


def _show(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)
