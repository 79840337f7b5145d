"""A lowered model → one compiled variant: schedules decided, weights packed, code generated and linked, facts read."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import tvm
import tvm_ffi

from tvmbridge.bundle import BuiltVariant, Requires
from tvmbridge.codegen.assemble import assemble
from tvmbridge.codegen.compile import compile_library
from tvmbridge.codegen.elf import read_elf_facts
from tvmbridge.codegen.fatbin import list_machine_code
from tvmbridge.codegen.plan import KernelPlan, plan_kernels
from tvmbridge.errors import CompileError
from tvmbridge.host import detect_host
from tvmbridge.lowering import LoweredModel
from tvmbridge.targets import Target
from tvmbridge.tuning.lookup import LogRecords

__all__ = ["KernelPlan", "build_variant"]


def build_variant(
    lowered: LoweredModel, target: Target, records: LogRecords | None, folder: Path
) -> tuple[BuiltVariant, tuple[KernelPlan, ...]]:
    """Compile a lowered model for one target, into a library in `folder`.

    records: tuning records; those of this target and these kernels decide the schedules. Returns the variant and what
    was decided for each kernel. ToolchainError where a tool is missing, CompileError where a stage fails.
    """
    plans = plan_kernels(lowered, target, records)
    module, weights = assemble(lowered, plans)
    library = folder / f"{target.name}.so"
    compile_library(module, target, library)
    facts = read_elf_facts(library)
    if facts.machine != target.machine:
        raise CompileError(f"the linker made {facts.machine} code for {target.name}, which is {target.machine}")
    if target.kind == "cuda":
        missing = set(target.architectures) - set(list_machine_code(library))
        if missing:
            raise CompileError(f"the library of {target.name} holds no machine code for {', '.join(sorted(missing))}")
    runtime_libraries = _runtime_libraries(target, library)
    floors = [facts.glibc, *(read_elf_facts(path).glibc for path in runtime_libraries)]
    variant = BuiltVariant(
        target=target,
        library=library,
        weights=weights,
        requires=Requires(
            machine=target.machine,
            cpu_features=tuple(sorted(target.cpu_features)),
            architectures=target.architectures,
            glibc=max((f for f in floors if f), key=_version, default=None),
        ),
        tvm=tvm.__version__,
        tvm_ffi=tvm_ffi.__version__,
        runtime_libraries=runtime_libraries,
        kernels=len(plans),
        tuned_kernels=sum(plan.record is not None for plan in plans),
    )
    return variant, plans


def _runtime_libraries(target: Target, library: Path) -> tuple[Path, ...]:
    """What the library needs of TVM's runtime, from the installed package where that is for the target's machine."""
    spec = importlib.util.find_spec("tvm")
    if spec is None or spec.origin is None or detect_host().machine != target.machine:
        return ()
    libraries = Path(spec.origin).parent / "lib"
    names = ["libtvm_runtime.so"] + (["libtvm_runtime_cuda.so"] if target.kind == "cuda" else [])
    # Sorting and its kin are calls of functions by name, which TVM keeps in a library of their own.
    names += ["libtvm_runtime_extra.so"] if b"tvm.contrib." in library.read_bytes() else []
    return tuple(libraries / name for name in names)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))
