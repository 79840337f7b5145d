"""How many threads TVM uses for a call made on this thread.

TVM keeps a pool per calling thread. The first `runtime.config_threadpool` on a thread makes its pool with one worker
per CPU in the third argument; later ones can use fewer of them, never more. Left alone, TVM makes half as many workers
as an x86 machine has CPUs, and ties the calling thread to the first of those CPUs for good.
"""

from __future__ import annotations

import os
import threading

import tvm_ffi

_SHARE_CPUS = -3  # kSpecifyThreadShareAllCore: a worker may run on any of the CPUs named


_SPIN_COUNT = "TVM_THREAD_POOL_SPIN_COUNT"
_SPINS = 10_000  # some milliseconds: a network's kernels follow each other within microseconds


def limit_spinning() -> None:
    """Let idle workers sleep soon, unless the user has said how soon; to be called before the first pool is made.

    TVM's own 300,000 turns are up to half a second of a core after each call, and as long at the end of the process:
    it waits for workers that look at nothing else meanwhile.
    """
    os.environ.setdefault(_SPIN_COUNT, str(_SPINS))


# Which process made this thread's pool: TVM's own state, which it does not tell. A pool's workers do not live on in a
# forked process, where a call on it would wait for them for ever.
_pool_of_thread = threading.local()


class PoolSize:
    """The number of threads that one session's calls use; needs TVM's runtime loaded."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._configure = tvm_ffi.get_global_func("runtime.config_threadpool")
        self._count = tvm_ffi.get_global_func("runtime.NumThreads")

    def apply(self) -> bool:
        """Set it for calls made on this thread; False where the thread's pool is smaller, or was left by a fork.

        The CPUs that this thread may run on stay as they were.
        """
        if getattr(_pool_of_thread, "process_id", os.getpid()) != os.getpid():
            return False
        _pool_of_thread.process_id = os.getpid()
        allowed = sorted(os.sched_getaffinity(0))
        cpus = [str(cpu) for cpu in allowed]
        self._configure(_SHARE_CPUS, self.threads, [cpus[index % len(cpus)] for index in range(self.threads)])
        if 1 < self.threads < len(cpus):
            # The pool has its size now: let it use every CPU that this thread may use.
            self._configure(_SHARE_CPUS, self.threads, cpus)
        os.sched_setaffinity(0, allowed)
        return self._count() >= self.threads

    def hold(self) -> None:
        """Set it again where another session has changed it on this thread; `apply` came first on this thread."""
        if self._count() != self.threads:
            self.apply()
