"""3 × 3 convolutions on a CPU with fewer multiplications: Winograd's F(2×2, 3×3) and F(4×4, 3×3).

`convolution.py` reads the kernel, `inputs.py`, `products.py` and `outputs.py` write its three phases, which `plan.py`
cuts into blocks; here is what can be chosen, and the best guess.
"""

from __future__ import annotations

from collections.abc import Callable

import tvm
from tvm import tirx

from tvmbridge.lowering import Kernel
from tvmbridge.schedules import Config, Packing, Scheduled, Template
from tvmbridge.schedules.cpu.winograd.convolution import Convolution, read_convolution
from tvmbridge.schedules.cpu.winograd.costs import direct_ns, winograd_ns
from tvmbridge.schedules.cpu.winograd.inputs import transform_inputs
from tvmbridge.schedules.cpu.winograd.outputs import transform_outputs
from tvmbridge.schedules.cpu.winograd.plan import Plan
from tvmbridge.schedules.cpu.winograd.products import multiply
from tvmbridge.schedules.cpu.winograd.transforms import TRANSFORMS, FilterTransform
from tvmbridge.schedules.loops.costs import worth_threads
from tvmbridge.schedules.loops.emit import loop, parallel, sequence, with_body
from tvmbridge.schedules.loops.expressions import number
from tvmbridge.schedules.loops.register_tile import fitting_tiles
from tvmbridge.schedules.loops.shares import Share
from tvmbridge.schedules.loops.tiling import Blocks, cut, lanes_of
from tvmbridge.targets import Target

_FEWEST_CHANNELS = 16  # below so many the transforms cost more than the multiplications that they save
_REGISTER_TILES = 5
_CACHE_BYTES = 1 << 20  # a typical second-level cache
_BESIDE_WEIGHTS = 1 << 17  # bytes of scratch that leave most of it to the weights
_MOST_BYTES = 1 << 26  # of scratch; less is all of most networks' layers
_OWN_BYTES = (1, _BESIDE_WEIGHTS, 1 << 19, _CACHE_BYTES, _MOST_BYTES)
_SHARED_BYTES = (1 << 19, _CACHE_BYTES, _MOST_BYTES)
_CLEARLY = 1.15

_Phase = Callable[[Share | None], tirx.Stmt]


def _fits(kernel: Kernel, target: Target) -> bool:
    convolution = read_convolution(kernel)
    least = max(_FEWEST_CHANNELS, lanes_of(target, "float32"))
    return convolution is not None and min(convolution.channels.extent, convolution.outputs) >= least


def _read(kernel: Kernel) -> Convolution:
    convolution = read_convolution(kernel)
    assert convolution is not None, kernel.key
    return convolution


def _pays(kernel: Kernel, target: Target) -> bool:
    convolution = _read(kernel)
    best = min(winograd_ns(convolution, transform, target) for transform in TRANSFORMS.values())
    return direct_ns(convolution, target) > _CLEARLY * best


def _vectors(convolution: Convolution, target: Target) -> Blocks:
    return Blocks(convolution.outputs, lanes_of(target, "float32"))


def _register_tile(convolution: Convolution, tile: int, target: Target) -> tuple[int, int]:
    # LLVM loads ahead of the multiply-adds: on ARM in pairs of elements, which here lie beside each other.
    spare = target.vector_registers // (4 if target.machine == "aarch64" else 8)
    count = _vectors(convolution, target).count
    return fitting_tiles(convolution.tiles(tile), count, target.vector_registers - spare + 1)[0]


def _block(convolution: Convolution, tile: int, rows: int, own_bytes: int, target: Target, share: bool) -> int:
    """Strips in a block, such that there is so much scratch for a core; fewer where that makes blocks more even."""
    strips = cut(convolution.tiles(tile), rows)
    channels = convolution.channels.extent + convolution.outputs
    strip_bytes = TRANSFORMS[tile].points * strips.size * channels * 4
    most = max(1, own_bytes * (target.cores if share else 1) // strip_bytes)
    together = 1 if share else target.cores
    return -(-strips.count // (-(-strips.count // (most * together)) * together))


def _configs(kernel: Kernel, target: Target) -> list[Config]:
    convolution = _read(kernel)
    count, registers = _vectors(convolution, target).count, target.vector_registers
    found: dict[tuple[tuple[str, int | bool], ...], None] = {}
    for tile in TRANSFORMS:
        tiles = fitting_tiles(convolution.tiles(tile), count, registers)[:_REGISTER_TILES]
        for rows, wide in dict.fromkeys([_register_tile(convolution, tile, target), *tiles]):
            for share in (False, True) if target.cores > 1 else (False,):
                for own_bytes in _SHARED_BYTES if share else _OWN_BYTES:
                    block = _block(convolution, tile, rows, own_bytes, target, share)
                    config = {"tile": tile, "rows": rows, "vectors": wide, "unroll": 4, "block": block, "share": share}
                    found[tuple(config.items())] = None
    return [dict(config) for config in found]


def _guess(kernel: Kernel, target: Target) -> Config:
    """Weights that stay in the cache are read for small blocks again and again, others for large ones only."""
    convolution = _read(kernel)
    tile = min(TRANSFORMS, key=lambda tile: winograd_ns(convolution, TRANSFORMS[tile], target))
    rows, wide = _register_tile(convolution, tile, target)
    weight_bytes = 4 * TRANSFORMS[tile].points * convolution.channels.extent * convolution.outputs
    few = cut(convolution.tiles(tile), rows).count < target.cores
    share = target.cores > 1 and (few or weight_bytes > _CACHE_BYTES)
    own_bytes = _CACHE_BYTES if share or weight_bytes > _CACHE_BYTES else _BESIDE_WEIGHTS
    block = _block(convolution, tile, rows, own_bytes, target, share)
    return {"tile": tile, "rows": rows, "vectors": wide, "unroll": 4, "block": block, "share": share}


def _schedule(kernel: Kernel, target: Target, config: Config) -> Scheduled:
    convolution = _read(kernel)
    transform = TRANSFORMS[int(config["tile"])]
    vectors = _vectors(convolution, target)
    plan = Plan(
        convolution=convolution,
        transform=transform,
        depth=Blocks(convolution.channels.extent, vectors.size),
        vectors=vectors,
        strips=cut(convolution.tiles(transform.tile), int(config["rows"])),
        panel=cut(vectors.count, int(config["vectors"])),
        block=int(config["block"]),
        unroll=int(config["unroll"]),
    )
    packing = Packing(convolution.weight, vectors.size, transform=FilterTransform(transform.tile))
    function = kernel.function
    parameters = list(function.params)
    shape = packing.shape([int(extent) for extent in parameters[convolution.weight].shape])
    weight = tirx.decl_buffer([number(extent) for extent in shape], "float32", "packed")
    parameters[convolution.weight] = weight
    function = tirx.PrimFunc(parameters, function.body, function.ret_type, function.attrs)
    threads = worth_threads(winograd_ns(convolution, transform, target), target)
    body = _blocks(plan, weight, target.cores if threads else 1, bool(config["share"]))
    return Scheduled(with_body(function, body), (packing,))


def _blocks(plan: Plan, weight: tvm.ir.Var, cores: int, share: bool) -> tirx.Stmt:
    """All blocks through all phases. share: cores share each phase of a block, or else the blocks."""
    memory = plan.scratch()

    def phases(block: tvm.ir.Expr, run: Callable[[_Phase], tirx.Stmt]) -> tirx.Stmt:
        return sequence(
            run(lambda share: transform_inputs(plan, memory, block, share)),
            run(lambda share: multiply(plan, memory, weight, block, share)),
            run(lambda share: transform_outputs(plan, memory, block, share)),
        )

    if cores > 1 and share:

        def shared(phase: _Phase) -> tirx.Stmt:
            return parallel(cores, lambda task: phase((task, cores)))

        return sequence(*memory.made, loop(plan.blocks, lambda block: phases(block, shared)))

    def alone(block: tvm.ir.Expr) -> tirx.Stmt:
        return phases(block, lambda phase: phase(None))

    if cores > 1 and plan.blocks > 1:
        return parallel(plan.blocks, lambda block: sequence(*memory.made, alone(block)))
    return sequence(*memory.made, loop(plan.blocks, alone))


TEMPLATE = Template(
    name="winograd",
    version=1,
    rank=11,
    fits=_fits,
    configs=_configs,
    guess=_guess,
    schedule=_schedule,
    pays=_pays,
)
