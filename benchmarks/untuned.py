"""What the schedule templates bring before any tuning: tvmbridge and TVM's default build beside ONNX Runtime.

    python benchmarks/untuned.py [NETWORK ...] [--threads N] [--seconds S] [--json]

Every figure is a ratio of times taken in one run, in alternating blocks: 1 is ONNX Runtime's speed, 2 takes twice as
long. Outputs are compared first; a network that is wrong has no figure.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import onnx
import tvm
from tvm import relax

import networks
import tvmbridge
from tvmbridge.lowering.tvm_target import tvm_target
from tvmbridge.runtime.threads import PoolSize
from tvmbridge.verify import ReferenceSession, compare_outputs, random_inputs
from tvmbridge.verify.latency import measure_latency


def main() -> None:
    """Print one row a network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=", ".join(networks.NETWORKS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each of the two comparisons of a network")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = [compare(name, arguments.threads, arguments.seconds) for name in arguments.networks or networks.NETWORKS]
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{arguments.threads} thread(s)  tvmbridge / ONNX Runtime   TVM's default / ONNX Runtime   ONNX Runtime ms")
    for row in rows:
        print(
            f"{row['network']:14}{row['tvmbridge']:12.2f}{row['tvm_default']:28.2f}{row['reference_us'] / 1000:23.2f}"
        )


def compare(name: str, threads: int, seconds: float) -> dict[str, object]:
    """Time one network, batch 1 where its batch is free."""
    target = tvmbridge.parse_preset("native")
    with tempfile.TemporaryDirectory() as folder:
        path, bundle = Path(folder, f"{name}.onnx"), Path(folder, f"{name}.tvmb")
        onnx.save(networks.make_network(name), path)
        model = tvmbridge.import_onnx(path)
        tvmbridge.build(model, [target], bundle, tune=False)
        feeds = random_inputs(path, model.signature, seed=1)
        reference = ReferenceSession(path, threads=threads)
        expected = reference.run(feeds)
        default = tvm.compile(model.module, target=tvm_target(target))
        machine = relax.VirtualMachine(default, tvm.cpu())
        tensors = [tvm.runtime.tensor(feeds[spec.name]) for spec in model.signature.inputs]
        pool = PoolSize(threads)  # TVM's own default is half of the CPUs
        pool.apply()

        def run_default() -> np.ndarray:
            pool.hold()
            result = machine["main"](*tensors)
            return (result if isinstance(result, tvm.runtime.Tensor) else result[0]).numpy()

        with tvmbridge.load(bundle, threads=threads) as session:
            assert compare_outputs(expected, session.run(feeds), model.signature).passes(), f"{name} is wrong"
            first = model.signature.outputs[0].name
            np.testing.assert_allclose(run_default(), expected[first], rtol=1e-2, atol=1e-3)
            ours = measure_latency(lambda: session.run(feeds), lambda: reference.run(feeds), seconds=seconds)
        theirs = measure_latency(run_default, lambda: reference.run(feeds), seconds=seconds)
    return {
        "network": name,
        "threads": threads,
        "tvmbridge": ours.ratio,
        "tvm_default": theirs.ratio,
        "reference_us": ours.reference_us,
        "cpu": target.hardware,
    }


if __name__ == "__main__":
    main()
