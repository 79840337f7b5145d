"""What a convolution takes, directly and by Winograd: a rough estimate, that decides what an untuned build takes."""

from __future__ import annotations

from tvmbridge.schedules.cpu.loops.costs import VECTOR_NS
from tvmbridge.schedules.cpu.loops.tiling import lanes_of
from tvmbridge.schedules.cpu.winograd.convolution import Convolution
from tvmbridge.schedules.cpu.winograd.transforms import WINDOW, Transform
from tvmbridge.targets import Target

_TRANSFORM = 9  # operations of a vector for each point of a tile, its loads and stores included
_WEIGHT_BYTES_PER_NS = 16  # of all cores together, and cautious: in a network, weights come from memory


def direct_ns(convolution: Convolution, target: Target) -> float:
    """What it takes all cores to compute it as `contraction` does."""
    return _ns(convolution, target, convolution.product.multiply_adds / lanes_of(target, "float32"), WINDOW**2)


def winograd_ns(convolution: Convolution, transform: Transform, target: Target) -> float:
    """What it takes all cores to compute it in tiles of one size."""
    lanes, points = lanes_of(target, "float32"), convolution.tiles(transform.tile) * transform.points
    channels, outputs = convolution.channels.extent, -(-convolution.outputs // lanes)
    operations = channels * outputs + _TRANSFORM * (-(-channels // lanes) + outputs)
    return _ns(convolution, target, points * operations, transform.points)


def _ns(convolution: Convolution, target: Target, operations: float, points: int) -> float:
    weight_bytes = 4 * points * convolution.channels.extent * convolution.outputs
    return operations * VECTOR_NS / target.cores + weight_bytes / _WEIGHT_BYTES_PER_NS
