"""Kernels without reductions on a GPU: whatever computes each element of its output from elements of its inputs.

Such a kernel is as fast as its bytes: neighbouring threads write neighbouring elements, up to 16 bytes each, and where
an input is contiguous along another axis than the output, blocks turn square tiles of it in shared memory.
"""

from __future__ import annotations

import tvm

from tvmbridge.lowering import Kernel
from tvmbridge.schedules import Config, Scheduled, Template
from tvmbridge.schedules.gpu.map.flat import write_flat
from tvmbridge.schedules.gpu.map.turned import turned_of, write_turned
from tvmbridge.schedules.loops.emit import scratch, sequence, with_body
from tvmbridge.schedules.loops.stages import Stage
from tvmbridge.schedules.reading.maps import read_maps
from tvmbridge.schedules.reading.pieces import Piece, moved, read_pieces
from tvmbridge.targets import Target

_FILLING = 1 << 15  # threads that keep a GPU busy: a kernel of fewer takes narrower vectors to have as many


def _stages(kernel: Kernel) -> tuple[Stage, ...] | None:
    """What an element takes that is computed again costs less than a launch and a way through memory."""
    return read_maps(kernel.function, keep_dear=False)


def _pieces(stage: Stage) -> tuple[Piece, ...]:
    """The stage in one piece, or none: conditions are the threads' own."""
    return read_pieces(stage, most=1)


def _fits(kernel: Kernel, _target: Target) -> bool:
    return _stages(kernel) is not None


def _configs(_kernel: Kernel, _target: Target) -> list[Config]:
    """threads: of a block. vector: most elements of a load or store. items: vectors of a thread."""
    return [
        {"threads": threads, "vector": vector, "items": items}
        for threads in (64, 128, 256, 512)
        for vector in (1, 2, 4, 8)
        for items in (1, 2, 4)
    ]


def _guess(kernel: Kernel, _target: Target) -> Config:
    """Vectors as wide as leaves threads enough to keep the GPU busy."""
    stages = _stages(kernel)
    assert stages is not None
    elements = max((stage.size for stage in stages), default=0)
    vector = next((lanes for lanes in (4, 2) if elements // lanes >= _FILLING), 1)
    return {"threads": 256 if elements // vector >= 2 * _FILLING else 128, "vector": vector, "items": 1}


def _schedule(kernel: Kernel, _target: Target, config: Config) -> Scheduled:
    stages = _stages(kernel)
    assert stages is not None
    kept: dict[tvm.ir.Var, tvm.ir.Var] = {}
    allocations = []
    for stage in stages:
        if not stage.output:
            kept[stage.buffer], allocation = scratch([stage.size], str(stage.buffer.dtype), stage.name)
            allocations.append(allocation)
    launches = []
    for stage in stages:
        for piece in _pieces(stage):
            piece = moved(piece, kept)
            turned = turned_of(piece)
            if turned is not None:
                launches.append(write_turned(piece, turned, int(config["threads"])))
            else:
                launches.append(write_flat(piece, int(config["threads"]), int(config["vector"]), int(config["items"])))
    return Scheduled(with_body(kernel.function, sequence(*allocations, *launches)))


TEMPLATE = Template(
    name="map",
    version=1,
    rank=5,
    fits=_fits,
    configs=_configs,
    guess=_guess,
    schedule=_schedule,
)
