"""A lowered model → one compiled variant: schedules decided, weights packed, code generated and linked, facts read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tvm
import tvm_ffi

from tvmbridge.bundle import BuiltVariant, Requires
from tvmbridge.codegen.assemble import assemble
from tvmbridge.codegen.compile import compile_library
from tvmbridge.codegen.elf import read_elf_facts
from tvmbridge.codegen.fatbin import list_machine_code, list_ptx
from tvmbridge.codegen.plan import KernelPlan, plan_kernels
from tvmbridge.codegen.tvm_runtime import runtime_folder
from tvmbridge.errors import CompileError
from tvmbridge.host import detect_host
from tvmbridge.lowering import LoweredModel
from tvmbridge.targets import Target
from tvmbridge.tuning.lookup import LogRecords

__all__ = ["KernelPlan", "build_variant"]

# What code for another machine may ask of it: RHEL 8, Debian 10. Code for this one may ask for what is here.
FOREIGN_GLIBC = (2, 28)


def build_variant(
    lowered: LoweredModel, target: Target, records: LogRecords | None, folder: Path
) -> tuple[BuiltVariant, tuple[KernelPlan, ...]]:
    """Compile a lowered model for one target, into a library in `folder`.

    records: tuning records; those of this target and these kernels decide the schedules. Returns the variant and what
    was decided for each kernel. ToolchainError where a tool, or TVM's runtime for another machine, is missing,
    CompileError where a stage fails.
    """
    plans = plan_kernels(lowered, target, records)
    module, weights = assemble(lowered, plans)
    library = folder / f"{target.name}.so"
    gpu = compile_library(module, target, library)
    facts = read_elf_facts(library)
    if facts.machine != target.machine:
        raise CompileError(f"the linker made {facts.machine} code for {target.name}, which is {target.machine}")
    if target.kind == "cuda":
        missing = set(target.architectures) - set(list_machine_code(library))
        if missing:
            raise CompileError(f"the library of {target.name} holds no machine code for {', '.join(sorted(missing))}")
        if target.architectures[-1] not in list_ptx(library):
            newest = target.architectures[-1]
            raise CompileError(f"the library of {target.name} holds no PTX of {newest}, which newer GPUs need")
    runtime_libraries = _runtime_libraries(target, library, folder)
    variant = BuiltVariant(
        target=target,
        library=library,
        weights=weights,
        requires=Requires(
            machine=target.machine,
            cpu_features=tuple(sorted(target.cpu_features)),
            architectures=target.architectures,
            glibc=_glibc_floor(target, [library, *runtime_libraries]),
        ),
        tvm=tvm.__version__,
        tvm_ffi=tvm_ffi.__version__,
        runtime_libraries=runtime_libraries,
        kernels=len(plans),
        tuned_kernels=sum(plan.record is not None for plan in plans),
        gpu=gpu,
    )
    return variant, plans


def _runtime_libraries(target: Target, library: Path, folder: Path) -> tuple[Path, ...]:
    """What the library needs of TVM's runtime for its machine."""
    libraries = runtime_folder(target.machine, folder)
    names = ["libtvm_runtime.so"] + (["libtvm_runtime_cuda.so"] if target.kind == "cuda" else [])
    # Sorting and its kin are calls of functions by name, which TVM keeps in a library of their own.
    names += ["libtvm_runtime_extra.so"] if b"tvm.contrib." in library.read_bytes() else []
    return tuple(libraries / name for name in names)


def _glibc_floor(target: Target, libraries: Sequence[Path]) -> str | None:
    """The oldest glibc that all of them load with. CompileError where another machine's may be too old for them."""
    wanted = {path: read_elf_facts(path).glibc for path in libraries}
    named = {path: glibc for path, glibc in wanted.items() if glibc is not None}
    if not named:
        return None
    newest = max(named, key=lambda path: _version(named[path]))
    if target.machine != detect_host().machine and _version(named[newest]) > FOREIGN_GLIBC:
        floor = ".".join(map(str, FOREIGN_GLIBC))
        raise CompileError(
            f"{newest.name} of {target.name} was linked against glibc {named[newest]}; boards are promised {floor}",
            hint="link with zig, which has the old ones: pip install ziglang, and take the cross compiler off PATH",
        )
    return named[newest]


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))
