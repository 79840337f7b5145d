"""Sliding windows on a GPU: depthwise convolution and pooling of channels-last tensors.

A thread has a few neighbouring positions of a few neighbouring channels, so that neighbouring threads load neighbouring
channels, and inputs that windows share are loaded once for the positions of a thread.
"""

from __future__ import annotations

import math

from tvmbridge.lowering import Kernel
from tvmbridge.schedules import Config, Scheduled, Template
from tvmbridge.schedules.gpu.window.strips import Strips, lanes_of_channels, write_strips
from tvmbridge.schedules.loops.emit import with_body
from tvmbridge.schedules.loops.tiling import cut
from tvmbridge.schedules.reading.rows import read_rows
from tvmbridge.schedules.reading.sliding import Sliding, read_sliding
from tvmbridge.targets import Target

_FILLING = 1 << 15  # threads that keep a GPU busy
_LONG = 32  # taps from which the sum of one result is worth dividing among threads


def _read(kernel: Kernel) -> Sliding:
    sliding = read_sliding(kernel.function)
    assert sliding is not None
    return sliding


def _fits(kernel: Kernel, _target: Target) -> bool:
    return read_sliding(kernel.function) is not None


def _configs(kernel: Kernel, _target: Target) -> list[Config]:
    """threads: of a block. positions, vector: of a thread, along the innermost sliding axis and the channels."""
    sliding = _read(kernel)
    extent = Strips(sliding, 1, 1).slide.axis.extent
    vectors = sorted({lanes_of_channels(sliding, most) for most in (1, 2, 4, 8)})
    return [
        {"threads": threads, "positions": positions, "vector": vector}
        for threads in (64, 128, 256)
        for positions in sorted({cut(extent, most).size for most in (1, 2, 4, 7)})
        for vector in vectors
    ]


def _guess(kernel: Kernel, _target: Target) -> Config:
    """As many channels and then positions to a thread as leave threads enough to keep the GPU busy."""
    sliding = _read(kernel)
    allowed = [c for c in _configs(kernel, _target) if c["threads"] == 128 and int(c["positions"]) <= 4]

    def threads(config: Config) -> int:
        return Strips(sliding, int(config["positions"]), int(config["vector"])).threads

    busy = [config for config in allowed if threads(config) >= _FILLING] or [max(allowed, key=threads)]
    return max(busy, key=lambda c: (min(int(c["vector"]), 4), int(c["positions"])))


def _schedule(kernel: Kernel, _target: Target, config: Config) -> Scheduled:
    strips = Strips(_read(kernel), int(config["positions"]), int(config["vector"]))
    return Scheduled(with_body(kernel.function, write_strips(strips, int(config["threads"]))))


def _pays(kernel: Kernel, _target: Target) -> bool:
    """Unless few results of many taps leave the GPU idle: a row's sum can be divided among threads."""
    sliding = _read(kernel)
    taps = math.prod(slide.window for slide in (*sliding.slides, sliding.across))
    return taps < _LONG or Strips(sliding, 1, 1).threads >= _FILLING or read_rows(kernel.function) is None


TEMPLATE = Template(
    name="window", version=1, rank=10, fits=_fits, configs=_configs, guess=_guess, schedule=_schedule, pays=_pays
)
