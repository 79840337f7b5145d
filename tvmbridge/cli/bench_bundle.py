"""`tvmbridge bench` of a bundle: its time, beside ONNX Runtime's or another bundle's, and the gate on that."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from tvmbridge.cli.gates import Case, write_junit
from tvmbridge.cli.options import refuse_replacing
from tvmbridge.cli.output import print_json, print_table, show_latency, show_us
from tvmbridge.errors import ArtifactError
from tvmbridge.signature import ModelSignature

if TYPE_CHECKING:
    from tvmbridge.runtime import Session
    from tvmbridge.targets import RpcMeasure
    from tvmbridge.verify.latency import Latency

Call = Callable[[Mapping[str, np.ndarray]], object]


def is_bundle(path: str) -> bool:
    """By its name, or its first bytes."""
    if path.endswith(".tvmb") or not os.path.isfile(path):
        return path.endswith(".tvmb")
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def bench_bundle(
    bundle: str,
    *,
    inputs: str | None,
    against: str | None,
    max_regression: float | None,
    junit: str | None,
    seconds: float,
    variant: str | None,
    device: str | None,
    threads: int | None,
    seed: int,
    as_json: bool,
) -> int:
    """Time a bundle and print the result; 1 where it takes more than `max_regression` longer than the other."""
    from tvmbridge.runtime import load
    from tvmbridge.verify.inputs import random_inputs, read_inputs
    from tvmbridge.verify.latency import measure_latency

    if junit is not None:
        refuse_replacing(junit, bundle, against, inputs)
    started = time.perf_counter()
    with load(bundle, threads=threads, variant=variant, device=device) as session:
        load_s = time.perf_counter() - started
        signature = ModelSignature(session.inputs, session.outputs)
        model = against if against is not None and not is_bundle(against) else None
        feeds = read_inputs(inputs, signature) if inputs else random_inputs(model, signature, seed=seed)
        with _other(against, session, device) as (other, name):
            reference = None if other is None else lambda: other(feeds)
            latency = measure_latency(lambda: session.run(feeds), reference, seconds=seconds)
        used, used_threads, used_device = session.variant, session.threads, session.device
    slower = _judge(latency, name, max_regression)
    if junit is not None:
        case = Case(f"latency of {used}", time.perf_counter() - started, failure=slower)
        write_junit(junit, "tvmbridge bench", [case])
    if as_json:
        described = {"variant": used, "device": used_device, "threads": used_threads, "load_s": load_s}
        judged = {"against": name or None, "max_regression": max_regression, "passed": slower is None}
        print_json({**described, **dataclasses.asdict(latency), **judged})
    else:
        columns, row = latency_columns(used, used_threads, latency, name)
        print_table([*columns, "load"], [[*row, show_us(load_s * 1e6)]])
        if slower is not None:
            click.echo(slower, err=True)
    return 0 if slower is None else 1


def bench_elsewhere(
    bundle: str,
    place: RpcMeasure,
    inputs: str | None,
    *,
    seconds: float,
    variant: str | None,
    threads: int | None,
    seed: int,
    as_json: bool,
) -> int:
    """Time a bundle on a device, alone, and print the result."""
    from tvmbridge.bundle import open_bundle
    from tvmbridge.verify.elsewhere import time_elsewhere
    from tvmbridge.verify.inputs import random_inputs, read_inputs

    with open_bundle(bundle) as opened:
        signature = opened.manifest.signature
    feeds = read_inputs(inputs, signature) if inputs else random_inputs(None, signature, seed=seed)
    used, used_threads, latency = time_elsewhere(
        place, Path(bundle), feeds, variant=variant, seconds=seconds, threads=threads
    )
    if as_json:
        where = {"tracker": place.tracker, "key": place.key}
        print_json({"variant": used, "threads": used_threads, "rpc": where, **dataclasses.asdict(latency)})
    else:
        columns, row = latency_columns(used, used_threads, latency, "")
        print_table([*columns, "device"], [[*row, place.key]])
    return 0


@contextmanager
def _other(path: str | None, session: Session, device: str | None) -> Iterator[tuple[Call | None, str]]:
    """What to time beside the session: a function of the inputs, and what to call it. device: that was asked for."""
    if path is None:
        yield None, ""
    elif is_bundle(path):
        from tvmbridge.runtime import load

        with load(path, threads=session.threads, device=device) as old:
            if _types(old) != _types(session):
                raise ArtifactError(
                    f"{path}: takes or gives other arrays: {_listed(old)}, not {_listed(session)}",
                    hint="only bundles of the same inputs and outputs can be compared",
                )
            yield old.run, Path(path).name
    else:
        from tvmbridge.verify.reference import ReferenceSession

        yield ReferenceSession(Path(path), threads=session.threads).run, "ONNX Runtime"


def _types(session: Session) -> list[tuple[Any, ...]]:
    return [(spec.name, spec.shape, spec.dtype) for spec in (*session.inputs, *session.outputs)]


def _listed(session: Session) -> str:
    return ", ".join(map(str, (*session.inputs, *session.outputs)))


def _judge(latency: Latency, other: str, max_regression: float | None) -> str | None:
    """What is too slow; None where nothing is."""
    if max_regression is None or latency.ratio is None or latency.ratio <= 1 + max_regression:
        return None
    return f"takes {latency.ratio - 1:.1%} longer than {other}; {max_regression:.1%} is allowed"


def latency_columns(variant: str, threads: int, latency: Latency, other: str) -> tuple[list[str], list[str]]:
    """The head and the row of a table. other: what it was timed beside."""
    median = show_latency(latency.median_us, latency.emulated)
    row = [variant, str(threads), median, show_us(latency.p90_us), show_us(latency.p99_us)]
    columns = ["variant", "threads", "median", "p90", "p99", "calls"]
    row += [str(latency.calls)]
    if latency.reference_us is not None:
        columns += [other, "ratio"]
        row += [show_us(latency.reference_us), f"{latency.ratio:.2f}"]
    return columns, row
