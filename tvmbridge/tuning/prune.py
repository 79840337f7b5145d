"""Makes a tuning log small: what a build looks up stays, what was only worth trying once goes."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Mapping

from tvmbridge.errors import OutputError
from tvmbridge.tuning.log import read_log, rewrite_log
from tvmbridge.tuning.lookup import LogRecords
from tvmbridge.tuning.record import TrialRecord, render_record

KEEP = 3
REASONS = ("slower", "failed", "superseded", "stale", "repeated")


@dataclasses.dataclass(frozen=True)
class Pruned:
    """What pruning a log comes to: the records that stay, in order, and how many go for each of `REASONS`.

    slower: trials that enough others of the same template beat. failed: trials without a time. superseded: records of
    final checks before the last. stale: records of a template version that there is no more. repeated: identical to one
    before it.
    """

    kept: tuple[TrialRecord, ...]
    dropped: Mapping[str, int]


def prune_records(records: LogRecords, keep: int = KEEP, versions: Collection[tuple[str, int]] | None = None) -> Pruned:
    """Choose what stays: the last final check, and the `keep` quickest trials of each kernel, target and template.

    keep: at least 1, so that the best of each template version stays. versions: names and versions of the templates
    that there are; records of others go. None: they stay.
    """
    if keep < 1:
        raise ValueError(f"keep {keep}: of a template without a trial nothing is known")
    owners = {(record.kernel, record.target) for record in records}
    last = {render_record(record) for owner in owners for record in records.finals(*owner)}
    quickest = _quickest_lines(records, keep)
    kept: dict[bytes, TrialRecord] = {}
    dropped = dict.fromkeys(REASONS, 0)
    for record in records:
        line = render_record(record)
        if versions is not None and (record.template, record.template_version) not in versions:
            dropped["stale"] += 1
        elif record.final and line not in last:
            dropped["superseded"] += 1
        elif not record.final and record.error is not None:
            dropped["failed"] += 1
        elif not record.final and line not in quickest:
            dropped["slower"] += 1
        elif line in kept:
            dropped["repeated"] += 1
        else:
            kept[line] = record
    return Pruned(tuple(kept.values()), dropped)


def prune_log(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    keep: int = KEEP,
    stale: bool = False,
    dry_run: bool = False,
) -> Pruned:
    """Prune a log in place, or into a new file, in one step; what a build takes from it is the same as before.

    output: the file to write, which must not exist; None: the log itself, under its lock. stale: drop the records of
    template versions that this tvmbridge does not have, too. dry_run: write nothing. LogError where the log cannot be
    read or is in use; OutputError where the output exists or cannot be written.
    """
    versions = _known_versions() if stale else None
    pruned = prune_records(read_log(path), keep, versions)
    if dry_run:
        return pruned
    if output is None:

        def prune_again(records: LogRecords) -> tuple[TrialRecord, ...]:
            nonlocal pruned
            pruned = prune_records(
                records, keep, versions
            )  # under the lock: what another writer added meanwhile counts
            return pruned.kept

        rewrite_log(path, prune_again)
    else:
        if os.path.lexists(output):
            raise OutputError(f"{output} exists", hint="choose another name, or remove it first")
        rewrite_log(output, lambda _fresh: pruned.kept)
    return pruned


def _quickest_lines(records: LogRecords, keep: int) -> set[bytes]:
    groups: dict[tuple[str, str, str, int], set[tuple[float, bytes]]] = {}
    for record in records:
        if not record.final and record.median_us is not None:
            group = (record.kernel, record.target, record.template, record.template_version)
            groups.setdefault(group, set()).add((record.median_us, render_record(record)))
    return {line for trials in groups.values() for _, line in sorted(trials)[:keep]}


def _known_versions() -> frozenset[tuple[str, int]]:
    from tvmbridge.schedules import template_versions  # imports TVM, which only this needs

    return template_versions()
