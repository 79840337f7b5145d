"""`tvmbridge log`: looking into tuning logs, joining them and making them small."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

import click

from tvmbridge.cli.options import json_option
from tvmbridge.cli.output import print_json, print_table, show_us

if TYPE_CHECKING:
    from tvmbridge.tuning.log import LogRecords, TrialRecord


@click.group("log")
def log_group() -> None:
    """Show, merge and prune tuning logs (*.tune.jsonl).

    \b
    tvmbridge log show model.tune.jsonl
    """


@log_group.command("show")
@click.argument("log", type=click.Path())
@click.option("--kernel", metavar="TEXT", help="Only kernels whose key has this in it, with each of their records.")
@json_option
def show_command(log: str, kernel: str | None, as_json: bool) -> int:
    """Show the best record of each kernel and target in LOG.

    The best is what the last final check found best, and the best trial where there was no such check.

    \b
    tvmbridge log show model.tune.jsonl
    tvmbridge log show model.tune.jsonl --kernel matmul
    """
    from tvmbridge.tuning.log import read_log

    records = read_log(log)
    keys = dict.fromkeys((r.kernel, r.target) for r in records if kernel is None or kernel in r.kernel)
    if as_json:
        described = [_describe_kernel(records, *key, with_records=kernel is not None) for key in keys]
        print_json({"log": log, **_counts(records), "torn": records.torn, "kernels": described})
        return 0
    for target in dict.fromkeys(target for _, target in keys):
        click.echo(target)
        chosen = [name for name, owner in keys if owner == target]
        if kernel is None:
            columns = ["kernel", "trials", "failed", "best", "found by", "config"]
            print_table(columns, [_best_row(records, name, target) for name in chosen])
            continue
        for name in chosen:
            click.echo(f"\n{name}")
            found = [*records.finals(name, target), *records.measured(name, target)]
            found.sort(key=lambda record: (not record.final, record.median_us or math.inf))
            print_table(["time", "found by", "template", "config", "measured", "error"], list(map(_record_row, found)))
    if kernel is not None and not keys:
        click.echo(f"no kernel's key has {kernel!r} in it", err=True)
    counts = _counts(records)
    finals = f", {counts['finals']} records of final checks" if counts["finals"] else ""
    click.echo(f"{counts['trials']} trials{finals}")
    if records.torn:
        click.echo(records.torn, err=True)
    return 0


@log_group.command("merge")
@click.argument("logs", type=click.Path(), nargs=-1, required=True)
@click.option("-o", "--output", type=click.Path(), required=True, help="The log to write; what it holds is kept.")
@json_option
def merge_command(logs: tuple[str, ...], output: str, as_json: bool) -> int:
    """Join LOGS into one; records that are the same are kept once.

    \b
    tvmbridge log merge monday.tune.jsonl tuesday.tune.jsonl -o all.tune.jsonl
    """
    from tvmbridge.tuning.log import merge_logs

    merged = merge_logs(logs, output)
    if as_json:
        print_json({"output": output, **_counts(merged)})
    else:
        click.echo(f"wrote {output}: {_counts(merged)['trials']} trials")
    return 0


@log_group.command("prune")
@click.argument("log", type=click.Path())
@click.option("-o", "--output", type=click.Path(), help="A new log to write; default: LOG itself.")
@click.option(
    "--keep",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Trials to keep of each template of each kernel and target: the quickest.",
)
@click.option("--stale", is_flag=True, help="Drop records of template versions that this tvmbridge does not have, too.")
@click.option("--dry-run", is_flag=True, help="Only say what would be dropped.")
@json_option
def prune_command(log: str, output: str | None, keep: int, stale: bool, dry_run: bool, as_json: bool) -> int:
    """Drop from LOG what a build never looks up: slow and failed trials, and final checks before the last.

    A build takes the same schedules from it as before. Tuning would measure again what was dropped: keep the whole log
    for that, and share or commit the pruned one.

    \b
    tvmbridge log prune model.tune.jsonl -o small.tune.jsonl
    tvmbridge log prune model.tune.jsonl --keep 1 --stale --dry-run
    """
    from tvmbridge.tuning.prune import prune_log

    size_bytes = os.path.getsize(log) if os.path.exists(log) else 0
    pruned = prune_log(log, output, keep=keep, stale=stale, dry_run=dry_run)
    written = output if output is not None else log
    dropped = sum(pruned.dropped.values())
    if as_json:
        print_json(
            {
                "log": log,
                "output": None if dry_run else written,
                "kept": len(pruned.kept),
                "dropped": dropped,
                "reasons": dict(pruned.dropped),
            }
        )
        return 0
    reasons = ", ".join(f"{count} {reason}" for reason, count in pruned.dropped.items() if count)
    verbs = ("would keep", "drop") if dry_run else ("kept", "dropped")
    click.echo(f"{verbs[0]} {len(pruned.kept)} records, {verbs[1]} {dropped}" + (f": {reasons}" if reasons else ""))
    if not dry_run:
        click.echo(f"wrote {written}: {_show_size(size_bytes)} → {_show_size(os.path.getsize(written))}")
    return 0


def _counts(records: LogRecords) -> dict[str, int]:
    finals = sum(record.final for record in records)
    return {"trials": len(records) - finals, "finals": finals}


def _describe_kernel(records: LogRecords, kernel: str, target: str, *, with_records: bool) -> dict[str, object]:
    import msgspec

    trials, finals = records.measured(kernel, target), records.finals(kernel, target)
    described: dict[str, object] = {
        "kernel": kernel,
        "target": target,
        "trials": len(trials),
        "failed": sum(trial.error is not None for trial in trials),
        "finals": len(finals),
        "best": msgspec.to_builtins(records.best(kernel, target)),
    }
    return {**described, "records": msgspec.to_builtins([*finals, *trials])} if with_records else described


def _best_row(records: LogRecords, kernel: str, target: str) -> list[str]:
    trials, best = records.measured(kernel, target), records.best(kernel, target)
    failed = str(sum(trial.error is not None for trial in trials))
    if best is None:
        return [kernel, str(len(trials)), failed, show_us(None), "–", "all failed"]
    return [kernel, str(len(trials)), failed, show_us(best.median_us), _found_by(best), _show_config(best)]


def _record_row(record: TrialRecord) -> list[str]:
    template = f"{record.template} {record.template_version}"
    error = " ".join((record.error or "").split())
    return [show_us(record.median_us), _found_by(record), template, _show_config(record), record.when, error]


def _found_by(record: TrialRecord) -> str:
    return "final check" if record.final else "trial"


def _show_config(record: TrialRecord) -> str:
    return " ".join(f"{name}={value}" for name, value in record.config.items())


def _show_size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:.1f} kB"
