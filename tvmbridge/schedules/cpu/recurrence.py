"""Recurrent networks on a CPU: the steps of a few sequences at once, some vectors of units and all their gates a tile.

The kernel comes as plain loops over sequences, steps, units and depth, which their annotations name. Here the units are
cut into tiles of vectors, and the sequences into groups that take each step together, so that a weight that is loaded
serves all of a group: what the loops do for one unit of one sequence is written out for each of a tile. The sums of a
tile, of every gate, stay in registers; the weights are packed into the order in which they are read. Threads share
either the groups, each going through all the steps by itself, or the tiles of each step.
"""

from __future__ import annotations

import dataclasses

import tvm
import tvm_ffi
from tvm import tirx
from tvm.s_tir import SBlockRealize

from tvmbridge.lowering import Kernel
from tvmbridge.schedules import Config, Packing, Scheduled, Template
from tvmbridge.schedules.loops.costs import worth_threads
from tvmbridge.schedules.loops.emit import loop, parallel, sequence, store, unrolled, vectorized, with_body
from tvmbridge.schedules.loops.expressions import number, substitute
from tvmbridge.schedules.loops.tiling import Blocks, Tiles, cut, lanes_of, within
from tvmbridge.targets import Target

_AXIS = "recurrence"  # annotation of the loops: what the importer says that each runs over
_MOST_ROWS, _MOST_VECTORS = 8, 4
_MULTIPLY_ADDS_PER_NS = 20.0
_ENOUGH_SUMS = 8  # that hide the latency of a multiply-add
_UNROLL = 4
_SHARED_STEPS = 4  # times the work that else pays for threads: they start anew at every step, and wait for each other


@dataclasses.dataclass(frozen=True)
class _Network:
    """The loops of one kernel.

    weights: which parameters are the weights, (directions, depth, gates, units); packed: those that are constants.
    gates: the most that one product has.
    """

    directions: int
    sequences: int
    steps: int
    units: int
    gates: int
    dtype: str
    weights: tuple[int, ...]
    packed: tuple[int, ...]
    nest: tirx.Stmt

    @property
    def step_ns(self) -> float:
        """Work of one core for one step of one sequence, roughly."""
        return self.gates * self.units * self.units / _MULTIPLY_ADDS_PER_NS


def _read(kernel: Kernel) -> _Network | None:
    """The kernel's loops; None where they are of something else."""
    extents: dict[str, int] = {}
    depths: list[tirx.For] = []

    def note(nest: tirx.For) -> None:
        if _AXIS in nest.annotations:
            extents[str(nest.annotations[_AXIS])] = int(nest.extent)
            if nest.annotations[_AXIS] == "depth":
                depths.append(nest)

    tvm_ffi.structural_walk(kernel.function.body, (tirx.For, note))
    if not depths or not isinstance(kernel.function.body, SBlockRealize):
        return None
    parameters = list(kernel.function.params)
    read: list[tvm.ir.Var] = []
    for depth in depths:
        tvm_ffi.structural_walk(depth, (tvm.ir.TensorLoad, lambda load: read.append(load.source)))
    weights = tuple(index for index, buffer in enumerate(parameters) if buffer in read)
    gates = max(int(parameters[index].shape[2]) for index in weights)
    return _Network(
        extents["direction"],
        extents["sequence"],
        extents["step"],
        extents["unit"],
        gates,
        str(parameters[weights[0]].dtype),
        weights,
        tuple(index for index in weights if index in kernel.constants),
        _innermost(kernel.function.body),
    )


def _innermost(statement: tirx.Stmt) -> tirx.Stmt:
    while isinstance(statement, SBlockRealize):
        statement = statement.block.body
    return statement


def _require(kernel: Kernel) -> _Network:
    network = _read(kernel)
    assert network is not None, kernel.key
    return network


def _units(network: _Network, target: Target) -> Blocks:
    return Blocks(network.units, within(network.units, lanes_of(target, network.dtype)))


def _tiles(network: _Network, target: Target) -> list[tuple[int, int]]:
    """Every (sequences, vectors of units) whose sums fit the registers, the best first."""
    count = _units(network, target).count
    found = {
        (cut(network.sequences, high).size, cut(count, wide).size)
        for high in range(1, _MOST_ROWS + 1)
        for wide in range(1, _MOST_VECTORS + 1)
        if _registers(network.gates, high, wide) <= target.vector_registers
    }

    def worth(tile: tuple[int, int]) -> tuple[float, float]:
        rows, vectors = tile
        sums = rows * vectors * network.gates
        loads = 1 / rows + 1 / (vectors * network.gates)
        return min(sums, _ENOUGH_SUMS) / loads, -vectors

    return sorted(found or {(1, 1)}, key=worth, reverse=True)


def _registers(gates: int, rows: int, vectors: int) -> int:
    """Of one row the weights are operands in memory, each used once."""
    return rows * vectors * gates + (vectors * gates if rows > 1 else 0) + 1


def _guess(kernel: Kernel, target: Target) -> Config:
    network = _require(kernel)
    rows, vectors = _tiles(network, target)[0]
    fair = -(-network.directions * network.sequences // target.cores)
    if network.directions * network.sequences >= target.cores:
        rows = min(rows, cut(network.sequences, max(1, fair)).size)
        return {"rows": rows, "vectors": vectors, "unroll": _UNROLL, "share": "sequences"}
    return {"rows": rows, "vectors": vectors, "unroll": _UNROLL, "share": "units"}


def _configs(kernel: Kernel, target: Target) -> list[Config]:
    network = _require(kernel)
    shares = ("sequences", "units") if target.cores > 1 else ("sequences",)
    return [
        {"rows": rows, "vectors": vectors, "unroll": unroll, "share": share}
        for rows, vectors in _tiles(network, target)
        for unroll in (2, 4, 8)
        for share in shares
    ]


def _schedule(kernel: Kernel, target: Target, config: Config) -> Scheduled:
    network = _require(kernel)
    units = _units(network, target)
    parameters = list(kernel.function.params)
    packings, packed = [], {}
    for index in network.packed:
        packing, weight = Packing(index, units.size), parameters[index]
        shape = packing.shape([int(extent) for extent in weight.shape])
        parameters[index] = packed[weight] = tirx.decl_buffer(list(map(number, shape)), network.dtype, "packed")
        packings.append(packing)
    writer = _Writer(
        network,
        units,
        cut(network.sequences, int(config["rows"])),
        cut(units.count, int(config["vectors"])),
        int(config["unroll"]),
        str(config["share"]),
        target,
        packed,
    )
    function = tirx.PrimFunc(parameters, kernel.function.body, kernel.function.ret_type, kernel.function.attrs)
    return Scheduled(with_body(function, writer.write()), tuple(packings))


@dataclasses.dataclass(frozen=True)
class _Rows:
    """A group of sequences: how many, the first, and the buffers of the group for those of one sequence."""

    count: int
    sequence: tvm.ir.Var
    first: tvm.ir.Expr
    buffers: dict[tvm.ir.Var, tvm.ir.Var]


@dataclasses.dataclass(frozen=True)
class _Tile:
    """A tile of units: how many vectors, the first, and for each buffer of one unit those of the tile, one a row."""

    unit: tvm.ir.Var
    vectors: int
    first: tvm.ir.Expr
    buffers: dict[tvm.ir.Var, list[tvm.ir.Var]]


@dataclasses.dataclass(frozen=True)
class _Writer:
    network: _Network
    units: Blocks
    groups: Tiles
    panel: Tiles
    unroll: int
    share: str
    target: Target
    packed: dict[tvm.ir.Var, tvm.ir.Var]

    def write(self) -> tirx.Stmt:
        """The groups of each direction, and all their steps."""
        directions, sequences = self.network.nest, self.network.nest.body
        count = self.network.directions * self.groups.count

        def group(task: tvm.ir.Expr) -> tirx.Stmt:
            direction, index = (
                tirx.floordiv(task, number(self.groups.count)),
                tirx.floormod(task, number(self.groups.count)),
            )

            def of_rows(rows: int, first: tvm.ir.Expr) -> tirx.Stmt:
                body = _substituted(sequences.body, {directions.loop_var: direction})
                return self._rows(body, _Rows(rows, sequences.loop_var, first, {}))

            return self.groups.each(index, of_rows)

        work = self.network.step_ns * self.network.steps * self.network.sequences
        if self.share == "sequences" and count > 1 and worth_threads(work, self.target):
            return parallel(count, group)
        return loop(count, group)

    def _rows(self, statement: tirx.Stmt, rows: _Rows) -> tirx.Stmt:
        """A statement of one sequence, for a group of them."""
        if isinstance(statement, tirx.SeqStmt):
            return sequence(*(self._rows(part, rows) for part in statement.seq))
        if isinstance(statement, tirx.AllocBuffer):
            buffer = statement.buffer
            wide = tirx.decl_buffer([number(rows.count), *buffer.shape], buffer.dtype, buffer.name)
            rows.buffers[buffer] = wide
            return tirx.AllocBuffer(wide)
        assert isinstance(statement, tirx.For), type(statement)
        if statement.annotations[_AXIS] == "unit":
            return self._units(statement, rows)
        return loop(
            int(statement.extent),
            lambda i: self._rows(_substituted(statement.body, {statement.loop_var: i}), rows),
            name=statement.loop_var.name,
        )

    def _units(self, statement: tirx.For, rows: _Rows) -> tirx.Stmt:
        """A loop over the units, tile by tile."""

        def tile(index: tvm.ir.Expr) -> tirx.Stmt:
            def of_size(vectors: int, first: tvm.ir.Expr) -> tirx.Stmt:
                return self._tile(statement.body, rows, _Tile(statement.loop_var, vectors, first, {}))

            return self.panel.each(index, of_size)

        multiplies = isinstance(statement.body, tirx.SeqStmt) and any(
            isinstance(part, tirx.For) for part in statement.body.seq
        )
        shared = self.share == "units" and multiplies and self.panel.count > 1
        if shared and worth_threads(self.network.step_ns * rows.count / _SHARED_STEPS, self.target):
            return parallel(self.panel.count, tile)
        return loop(self.panel.count, tile)

    def _tile(self, statement: tirx.Stmt, rows: _Rows, tile: _Tile) -> tirx.Stmt:
        """A statement of one unit of one sequence, for all of a tile."""
        if isinstance(statement, tirx.SeqStmt):
            return sequence(*(self._tile(part, rows, tile) for part in statement.seq))
        if isinstance(statement, tirx.AllocBuffer):
            shape = [number(tile.vectors), number(self.units.size)]
            own = [tirx.decl_buffer(shape, statement.buffer.dtype, statement.buffer.name) for _ in range(rows.count)]
            tile.buffers[statement.buffer] = own
            return sequence(*map(tirx.AllocBuffer, own))
        if isinstance(statement, tirx.For):
            return self._depth(statement, rows, tile)
        assert isinstance(statement, tirx.BufferStore), type(statement)
        return sequence(
            *(
                unrolled(
                    tile.vectors,
                    lambda v: vectorized(
                        self.units.size,
                        lambda lane: self._element(statement, rows, tile, (r, v, lane)),  # noqa: B023
                    ),
                )
                for r in range(rows.count)
            )
        )

    def _depth(self, statement: tirx.For, rows: _Rows, tile: _Tile) -> tirx.Stmt:
        whole, rest = divmod(int(statement.extent), self.unroll)

        def steps(first: tvm.ir.Expr, count: int) -> tirx.Stmt:
            return unrolled(
                count,
                lambda u: self._tile(_substituted(statement.body, {statement.loop_var: first + u}), rows, tile),
            )

        return sequence(
            loop(whole, lambda k: steps(k * number(self.unroll), self.unroll)) if whole else None,
            steps(number(whole * self.unroll), rest) if rest else None,
        )

    def _element(
        self, statement: tirx.BufferStore, rows: _Rows, tile: _Tile, at: tuple[int, tvm.ir.Expr, tvm.ir.Expr]
    ) -> tirx.Stmt:
        """What one store does for one row, vector and lane."""
        r, v, lane = at
        vector = tile.first + v
        values = {rows.sequence: rows.first + number(r), tile.unit: self.units.start(vector) + lane}

        def place(buffer: tvm.ir.Var, indices: list[tvm.ir.Expr]) -> tuple[tvm.ir.Var, list[tvm.ir.Expr]]:
            if buffer in tile.buffers:
                return tile.buffers[buffer][r], [v, lane]
            if buffer in self.packed:
                return self.packed[buffer], [vector, *indices[:-1], lane]
            if buffer in rows.buffers:
                return rows.buffers[buffer], [number(r), *indices]
            return buffer, indices

        def load(node: tvm.ir.TensorLoad) -> tvm.ir.TensorLoad:
            return tirx.BufferLoad(*place(node.source, list(node.indices)))

        value = tvm_ffi.structural_map(statement.value, (tvm.ir.TensorLoad, load))
        buffer, indices = place(statement.buffer, list(statement.indices))
        return store(buffer, [substitute(index, values) for index in indices], substitute(value, values))


def _substituted(statement: tirx.Stmt, values: dict[tvm.ir.Var, tvm.ir.Expr]) -> tirx.Stmt:
    return tvm_ffi.structural_map(statement, (tvm.ir.Var, lambda var: values.get(var, var)))


TEMPLATE = Template(
    name="recurrence",
    version=1,
    rank=12,
    fits=lambda kernel, _target: _read(kernel) is not None,
    configs=_configs,
    guess=_guess,
    schedule=_schedule,
)
