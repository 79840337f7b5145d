"""`tvmbridge log`: looking into tuning logs and joining them."""

from __future__ import annotations

import click

from tvmbridge.cli.options import json_option
from tvmbridge.cli.output import print_json, print_table, show_us


@click.group("log")
def log_group() -> None:
    """Show and merge tuning logs (*.tune.jsonl).

    \b
    tvmbridge log show model.tune.jsonl
    """


@log_group.command("show")
@click.argument("log", type=click.Path())
@json_option
def show_command(log: str, as_json: bool) -> int:
    """Show the best record of each kernel and target in LOG.

    \b
    tvmbridge log show model.tune.jsonl
    """
    import msgspec

    from tvmbridge.tuning.log import read_log

    records = read_log(log)
    keys = dict.fromkeys((record.kernel, record.target) for record in records)
    best = [(key, records.measured(*key), records.best(*key)) for key in keys]
    if as_json:
        described = [
            {
                "kernel": kernel,
                "target": target,
                "trials": len(trials),
                "failed": sum(trial.error is not None for trial in trials),
                "best": msgspec.to_builtins(winner),
            }
            for (kernel, target), trials, winner in best
        ]
        print_json({"log": log, "trials": len(records), "torn": records.torn, "kernels": described})
        return 0
    for target in dict.fromkeys(target for (_, target), _, _ in best):
        click.echo(target)
        rows = []
        for (kernel, owner), trials, winner in best:
            if owner == target:
                config = (
                    " ".join(f"{name}={value}" for name, value in winner.config.items()) if winner else "all failed"
                )
                rows.append([kernel, str(len(trials)), show_us(winner.median_us if winner else None), config])
        print_table(["kernel", "trials", "best", "config"], rows)
    click.echo(f"{len(records)} trials")
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
        print_json({"output": output, "trials": len(merged)})
    else:
        click.echo(f"wrote {output}: {len(merged)} trials")
    return 0
