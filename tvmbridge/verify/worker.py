"""The process that runs one variant for `verify_variant`: `python -m tvmbridge.verify.worker request.json`.

A variant that crashes takes this process with it and not the build, and the building process never runs a kernel.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np

from tvmbridge.errors import TvmBridgeError
from tvmbridge.runtime import Session, load
from tvmbridge.verify.inputs import write_arrays
from tvmbridge.verify.latency import measure_latency
from tvmbridge.verify.reference import ReferenceSession


def main(request_path: str) -> int:
    """Run every sample, save the outputs, time the first sample; print the latency as JSON."""
    request = json.loads(Path(request_path).read_text())
    try:
        with load(request["bundle"], variant=request["variant"]) as session:
            for sample, output in zip(request["samples"], request["outputs"], strict=True):
                with np.load(sample) as arrays:
                    feeds = {spec.name: arrays[f"i{index}"] for index, spec in enumerate(session.inputs)}
                results = session.run(feeds)
                write_arrays(output, {f"o{index}": results[spec.name] for index, spec in enumerate(session.outputs)})
            with np.load(request["samples"][0]) as arrays:
                feeds = {spec.name: arrays[f"i{index}"] for index, spec in enumerate(session.inputs)}
            reference = (
                ReferenceSession(request["reference"], threads=session.threads) if request["reference"] else None
            )
            latency = measure_latency(
                lambda: session.run(feeds),
                (lambda: reference.run(feeds)) if reference else None,
                seconds=request["seconds"],
            )
    except TvmBridgeError as exc:
        print(exc, file=sys.stderr)
        return 1
    print(json.dumps(dataclasses.asdict(latency)))
    return 0


def _read_feeds(path: str, session: Session) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return {spec.name: arrays[f"i{index}"] for index, spec in enumerate(session.inputs)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
