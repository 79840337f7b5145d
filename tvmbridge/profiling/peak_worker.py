"""The process that measures for `peak` what this machine can do at most, and prints it as JSON.

Two small kernels of ours. One multiplies and adds in registers alone, in as many independent sums as keep the units
busy while each waits for its last result. The other streams through arrays that no cache holds: c = a + s·b, whose
three arrays are counted once each, as STREAM counts them (https://www.cs.virginia.edu/stream/ref.html).
"""

from __future__ import annotations

import json
import sys
import time

import msgspec
import numpy as np
import tvm
from tvm.script import tirx as T  # noqa: N812 -- TVM's script is written with that name

from tvmbridge.lowering.tvm_target import tvm_target
from tvmbridge.targets import Target

_SUMS = 16  # two units with a latency of 4 or 5 need 10; TVM keeps no more than 1024 bytes on the stack
_STEPS = 50_000
_ARRAY_FLOATS = 22_400_000  # three arrays of it: 269 MB
_SECONDS = 0.6  # for each of the two; the fastest run counts


def main(target_json: str, threads: int) -> int:
    """Print {"gflops", "gb_per_s"} of the fastest runs; the environment has set the size of TVM's pool."""
    target = msgspec.json.decode(target_json, type=Target)
    lanes, sums = target.vector_bits // 32, min(_SUMS, target.vector_registers - 4)
    factors, out = np.array([0.999, 0.001], np.float32), np.zeros(threads * sums * lanes, np.float32)
    multiplied_s = _fastest_s(_multiply_adds(threads, sums, lanes), target, [factors, out])
    vectors = _ARRAY_FLOATS // threads // lanes
    arrays = [np.full(threads * vectors * lanes, value, np.float32) for value in (1.5, 0.25, 0.0)]
    streamed_s = _fastest_s(_triad(threads, vectors, lanes), target, arrays)
    gflops = 2 * threads * _STEPS * sums * lanes / multiplied_s / 1e9
    print(json.dumps({"gflops": gflops, "gb_per_s": sum(array.nbytes for array in arrays) / streamed_s / 1e9}))
    return 0


def _fastest_s(function: tvm.tirx.PrimFunc, target: Target, arrays: list[np.ndarray]) -> float:
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    main = tvm.compile(module, target=tvm_target(target)).mod["main"]
    tensors = [tvm.runtime.tensor(array) for array in arrays]
    times: list[float] = []
    until = time.perf_counter() + _SECONDS
    while len(times) < 3 or time.perf_counter() < until:
        before = time.perf_counter()
        main(*tensors)
        times.append(time.perf_counter() - before)
    return min(times)


def _multiply_adds(threads: int, sums: int, lanes: int) -> tvm.tirx.PrimFunc:
    @T.prim_func(s_tir=True)
    def multiply_adds(  # type: ignore[no-untyped-def]
        factors: T.Buffer((2,), "float32"),  # type: ignore[valid-type]
        out: T.Buffer((threads * sums * lanes,), "float32"),  # type: ignore[valid-type]
    ):
        T.func_attr({"tirx.noalias": True})
        for thread in T.parallel(threads):
            with T.sblock("thread"):
                row = T.axis.spatial(threads, thread)
                kept = T.sblock_alloc_buffer((sums * lanes,), "float32", scope="local")
                for i in T.unroll(sums):
                    for lane in T.vectorized(lanes):
                        kept[i * lanes + lane] = T.float32(i)
                for _ in range(_STEPS):
                    for i in T.unroll(sums):
                        for lane in T.vectorized(lanes):
                            kept[i * lanes + lane] = kept[i * lanes + lane] * factors[0] + factors[1]
                for i in T.unroll(sums):
                    for lane in T.vectorized(lanes):
                        out[(row * sums + i) * lanes + lane] = kept[i * lanes + lane]

    return multiply_adds


def _triad(threads: int, vectors: int, lanes: int) -> tvm.tirx.PrimFunc:
    floats = threads * vectors * lanes

    @T.prim_func(s_tir=True)
    def triad(  # type: ignore[no-untyped-def]
        a: T.Buffer((floats,), "float32"),  # type: ignore[valid-type]
        b: T.Buffer((floats,), "float32"),  # type: ignore[valid-type]
        c: T.Buffer((floats,), "float32"),  # type: ignore[valid-type]
    ):
        for thread in T.parallel(threads):
            for i in range(vectors):
                for lane in T.vectorized(lanes):
                    with T.sblock("element"):
                        at = T.axis.spatial(floats, (thread * vectors + i) * lanes + lane)
                        c[at] = a[at] + T.float32(3) * b[at]

    return triad


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
