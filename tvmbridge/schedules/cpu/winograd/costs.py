"""What a convolution takes, directly and by Winograd: a rough estimate, that decides what an untuned build takes."""

from __future__ import annotations

import math

from tvmbridge.schedules.cpu.winograd.convolution import Convolution
from tvmbridge.schedules.cpu.winograd.transforms import WINDOW, Transform
from tvmbridge.schedules.loops.costs import VECTOR_NS
from tvmbridge.schedules.loops.tiling import lanes_of
from tvmbridge.targets import Target

_TRANSFORM = 9  # operations of a vector for each point of a tile, its loads and stores included
_WIDE, _LANES_A_CYCLE = 8, 16  # cores with vectors of so many lanes do that many multiply-adds in one or two of them
_WEIGHT_BYTES_PER_NS = 16  # of one core, and cautious: in a network, weights come from memory


def direct_ns(convolution: Convolution, target: Target) -> float:
    """What it takes all cores to compute it as `contraction` does."""
    return _ns(convolution, target, convolution.product.multiply_adds, WINDOW**2)


def winograd_ns(convolution: Convolution, transform: Transform, target: Target) -> float:
    """What it takes all cores to compute it in tiles of one size."""
    lanes, points = lanes_of(target, "float32"), convolution.tiles(transform.tile) * transform.points
    channels, outputs = convolution.channels.extent, -(-convolution.outputs // lanes) * lanes
    operations = channels * outputs + _TRANSFORM * (channels + outputs)
    return _ns(convolution, target, points * operations, transform.points)


def _ns(convolution: Convolution, target: Target, operations: int, points: int) -> float:
    """operations: of one element each. points: how often there is each weight."""
    lanes = lanes_of(target, "float32")
    cycles = operations / (_LANES_A_CYCLE if lanes >= _WIDE else lanes)
    weight_bytes = 4 * points * convolution.channels.extent * convolution.outputs
    # Memory serves several cores faster than one, but not as many times as there are cores.
    return cycles * VECTOR_NS / target.cores + weight_bytes / (_WEIGHT_BYTES_PER_NS * math.sqrt(target.cores))
