"""The process that runs one variant, as the request file says that it is given (see `variant`), here or on a device.

A variant that crashes takes this process with it and not the build, and the building process never runs a kernel.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tvmbridge.bundle.dtypes import restore
from tvmbridge.errors import NoVariantError, TvmBridgeError
from tvmbridge.runtime import Session, load
from tvmbridge.verify.inputs import write_arrays
from tvmbridge.verify.latency import measure_latency
from tvmbridge.verify.reference import ReferenceSession


def main(request_path: str) -> int:
    """Run every sample, save the outputs, time the first sample; print the times as JSON, or what is wrong.

    Beside ONNX Runtime where the request has a reference. {"unsupported"} where the variant does not run here.
    """
    request = json.loads(Path(request_path).read_text())
    try:
        with load(request["bundle"], variant=request["variant"], threads=request["threads"]) as session:
            samples = [_read_feeds(path, session) for path in request["samples"]]
            for feeds, output in zip(samples, request["outputs"], strict=True):
                results = session.run(feeds)
                write_arrays(output, {f"o{index}": results[spec.name] for index, spec in enumerate(session.outputs)})
            latency = measure_latency(
                lambda: session.run(samples[0]),
                _reference_call(request["reference"], samples[0], session.threads),
                seconds=request["seconds"],
            )
            kernel_us = session.time_kernels(samples[0], seconds=request["seconds"] / 4)
    except NoVariantError as exc:
        print(json.dumps({"unsupported": exc.message}))
        return 0
    except TvmBridgeError as exc:
        print(exc.message)
        return 1
    timed = {"latency": dataclasses.asdict(latency), "threads": session.threads, "kernel_us": kernel_us}
    print(json.dumps({"variant": session.variant, **timed}))
    return 0


def _reference_call(source: str | None, feeds: dict[str, np.ndarray], threads: int) -> Callable[[], object] | None:
    if source is None:
        return None
    reference = ReferenceSession(source, threads=threads)
    return lambda: reference.run(feeds)


def _read_feeds(path: str, session: Session) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return {spec.name: restore(arrays[f"i{index}"], spec.dtype) for index, spec in enumerate(session.inputs)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
