"""Kernels that misbehave. Each of those in TVMScript is one opaque block, which templates leave as it is."""

from __future__ import annotations

import tvm
from tvm import te
from tvm.script import tirx as T  # noqa: N812


@T.prim_func(s_tir=True)
def aborts(a: T.Buffer((16,), "float32"), b: T.Buffer((16,), "float32")):  # type: ignore[no-untyped-def, valid-type]
    with T.sblock("aborts"):
        T.reads(a[0:16])
        T.writes(b[0:16])
        T.evaluate(T.call_extern("int32", "abort"))


@T.prim_func(s_tir=True)
def reads_wildly(a: T.Buffer((16,), "float32"), b: T.Buffer((16,), "float32")):  # type: ignore[no-untyped-def, valid-type]
    with T.sblock("reads_wildly"):
        T.reads(a[0:16])
        T.writes(b[0:16])
        b[0] = a[T.int64(1) << T.int64(44)]


@T.prim_func(s_tir=True)
def hangs(a: T.Buffer((16,), "float32"), b: T.Buffer((16,), "float32")):  # type: ignore[no-untyped-def, valid-type]
    with T.sblock("hangs"):
        T.reads(a[0:16])
        T.writes(b[0:16])
        T.evaluate(T.call_extern("int32", "pause"))


@T.prim_func(s_tir=True)
def calls_nothing(a: T.Buffer((16,), "float32"), b: T.Buffer((16,), "float32")):  # type: ignore[no-untyped-def, valid-type]
    with T.sblock("calls_nothing"):
        T.reads(a[0:16])
        T.writes(b[0:16])
        T.evaluate(T.call_extern("int32", "there_is_no_such_function"))


@T.prim_func(s_tir=True)
def forks(a: T.Buffer((16,), "float32"), b: T.Buffer((16,), "float32")):  # type: ignore[no-untyped-def, valid-type]
    with T.sblock("forks"):
        T.reads(a[0:16])
        T.writes(b[0:16])
        T.evaluate(T.call_extern("int32", "fork"))


@T.prim_func(s_tir=True)
def leaves(a: T.Buffer((16,), "float32"), b: T.Buffer((16,), "float32")):  # type: ignore[no-untyped-def, valid-type]
    """Goes on in another process of another session, and sleeps there."""
    with T.sblock("leaves"):
        T.reads(a[0:16])
        T.writes(b[0:16])
        T.evaluate(T.call_extern("int32", "daemon", 1, 1))
        T.evaluate(T.call_extern("int32", "pause"))


@T.prim_func(s_tir=True)
def allocates(a: T.Buffer((16,), "float32"), b: T.Buffer((16,), "float32")):  # type: ignore[no-untyped-def, valid-type]
    """Asks the system for 4 TiB, a GiB at a time, and writes to each without looking at the answer."""
    with T.sblock("allocates"):
        T.reads(a[0:16])
        T.writes(b[0:16])
        for _ in T.serial(4096):
            given = T.call_extern("handle", "mmap", T.int64(0), T.int64(1 << 30), 3, 0x22, -1, T.int64(0))
            T.evaluate(T.call_extern("handle", "memset", given, 1, T.int64(1)))


@T.prim_func(s_tir=True)
def prints(a: T.Buffer((16,), "float32"), b: T.Buffer((16,), "float32")):  # type: ignore[no-untyped-def, valid-type]
    with T.sblock("prints"):
        T.reads(a[0:16])
        T.writes(b[0:16])
        T.evaluate(T.call_extern("int32", "puts", "{'index': 0}"))
        T.evaluate(T.call_extern("int32", "fflush", T.int64(0)))


@T.prim_func(s_tir=True)
def reads_input(a: T.Buffer((16,), "float32"), b: T.Buffer((16,), "float32")):  # type: ignore[no-untyped-def, valid-type]
    with T.sblock("reads_input"):
        T.reads(a[0:16])
        T.writes(b[0:16])
        T.evaluate(T.call_extern("int32", "getchar"))


@T.prim_func(s_tir=True)
def takes_its_time(a: T.Buffer((16,), "float32"), b: T.Buffer((16,), "float32")):  # type: ignore[no-untyped-def, valid-type]
    with T.sblock("takes_its_time"):
        T.reads(a[0:16])
        T.writes(b[0:16])
        T.evaluate(T.call_extern("int32", "usleep", 100000))


def eats_memory() -> tvm.tirx.PrimFunc:
    a = te.placeholder((1 << 21, 1 << 20), "float32", "a")  # 8 TiB
    return te.create_prim_func([a, te.compute((1,), lambda i: a[i, i], "b")])


def works() -> tvm.tirx.PrimFunc:
    a = te.placeholder((64, 64), "float32", "a")
    return te.create_prim_func([a, te.compute((64, 64), lambda i, j: tvm.tirx.exp(a[i, j]), "b")])
