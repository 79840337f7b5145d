"""The benchmark networks as ONNX models with seeded random weights: `python benchmarks/networks.py resnet50`.

The weights are drawn so that the signal keeps its size from layer to layer (He et al., 2015) and the logits stay
ordinary: with constant weights all outputs are equal, which hides every layout error.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto

from topologies.dense import mlp
from topologies.light import LIGHT_NETWORKS, light_network
from topologies.mobilenet import mobilenet_v2
from topologies.transformers import bert4, vit_tiny

_MAKERS: dict[str, Callable[[int, np.random.Generator], ModelProto]] = {
    **{name: functools.partial(light_network, name) for name in LIGHT_NETWORKS},
    "mobilenet_v2": mobilenet_v2,
    "vit_tiny": vit_tiny,
    "bert4": bert4,
    "mlp": mlp,
}
NETWORKS = tuple(_MAKERS)
SEED = 2026

# Their weights draw images apart from layer to layer (`centre_rows`), and so whatever rounding changes: the input alone
# rounded to float16, which is 2e-4 off then, moves their outputs by 3e-3 to 1e-2 (docs/cuda.md).
AMPLIFYING = frozenset({"resnet50", "shufflenet", "inception_v1", "mobilenet_v2"})

# The batches that each network is measured at.
BATCHES: dict[str, tuple[int, ...]] = {**dict.fromkeys(NETWORKS, (1, 4)), "vit_tiny": (1,), "mlp": (32,)}


def make_network(name: str, batch: int | None = None) -> ModelProto:
    """Make one of NETWORKS; the same bytes for the same arguments and NumPy version. ValueError for another name.

    The image networks take float32 [batch, 3, 224, 224], bert4 int64 ids [batch, 128], mlp float32 [batch, 128].
    batch: the weights do not depend on it; None: the first of the network's BATCHES.
    """
    if name not in _MAKERS:
        raise ValueError(f"no network {name!r}; there are {', '.join(NETWORKS)}")
    rng = np.random.default_rng([SEED, *name.encode()])
    return _MAKERS[name](BATCHES[name][0] if batch is None else batch, rng)


def main() -> None:
    """Write one network to a file."""
    parser = argparse.ArgumentParser(description="Write a benchmark network with seeded random weights as ONNX.")
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--batch", type=int, help="default: 32 for the mlp, 1 for any other")
    parser.add_argument("-o", "--output", type=Path, help="default: NETWORK.onnx")
    arguments = parser.parse_args()
    output = arguments.output or Path(f"{arguments.network}.onnx")
    onnx.save(make_network(arguments.network, arguments.batch), output)
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
