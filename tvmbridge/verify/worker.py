"""The process that runs one variant, as the request file says that it is given (see `variant`).

A variant that crashes takes this process with it and not the build, and the building process never runs a kernel.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np

from tvmbridge.bundle.dtypes import restore
from tvmbridge.errors import TvmBridgeError
from tvmbridge.runtime import Session, load
from tvmbridge.verify.inputs import write_arrays
from tvmbridge.verify.latency import measure_latency
from tvmbridge.verify.reference import ReferenceSession


def main(request_path: str) -> int:
    """Run every sample, save the outputs, time the first sample; print the times as JSON, or what is wrong."""
    request = json.loads(Path(request_path).read_text())
    try:
        with load(request["bundle"], variant=request["variant"], threads=request["threads"]) as session:
            samples = [_read_feeds(path, session) for path in request["samples"]]
            for feeds, output in zip(samples, request["outputs"], strict=True):
                results = session.run(feeds)
                write_arrays(output, {f"o{index}": results[spec.name] for index, spec in enumerate(session.outputs)})
            reference = ReferenceSession(request["reference"], threads=session.threads)
            latency = measure_latency(
                lambda: session.run(samples[0]), lambda: reference.run(samples[0]), seconds=request["seconds"]
            )
            kernel_us = session.time_kernels(samples[0], seconds=request["seconds"] / 4)
    except TvmBridgeError as exc:
        print(exc.message)
        return 1
    print(json.dumps({"latency": dataclasses.asdict(latency), "threads": session.threads, "kernel_us": kernel_us}))
    return 0


def _read_feeds(path: str, session: Session) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return {spec.name: restore(arrays[f"i{index}"], spec.dtype) for index, spec in enumerate(session.inputs)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
