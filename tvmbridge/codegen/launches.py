"""How the host's code launches each GPU function, read from the program once TVM has parted host and device."""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm.ir.instrument import PassInstrument, pass_instrument

from tvmbridge.bundle.gpu_code import GpuFunction

_PARTED = "tirx.SplitHostDevice"  # after it, and until arguments are packed, a launch is one call
_LAUNCH = "tirx.call_ffi_kernel"
_DYNAMIC_SHARED = "tirx.use_dyn_shared_memory"


def launch_reader(found: list[GpuFunction]) -> PassInstrument:
    """An instrument of TVM's passes that appends every GPU function that is launched, without its machine code."""

    @pass_instrument
    class LaunchReader:
        """Looks at the program after one pass."""

        def run_after_pass(self, module: tvm.IRModule, info: tvm.transform.PassInfo) -> None:
            """Called by TVM."""
            if info.name == _PARTED:
                found.extend(read_launches(module))

    return LaunchReader()


def read_launches(module: tvm.IRModule) -> list[GpuFunction]:
    """The GPU functions that the module's host functions launch."""
    found: list[GpuFunction] = []
    for variable, function in module.functions.items():
        if isinstance(function, tvm.tirx.PrimFunc):
            kernel = str(variable.name_hint)

            def visit(call: tvm.ir.Call, kernel: str = kernel) -> None:
                if getattr(call.op, "name", None) == _LAUNCH:
                    found.append(_describe(call, kernel))

            tvm_ffi.structural_walk(function.body, [(tvm.ir.Call, visit)])
    return found


def _describe(call: tvm.ir.Call, kernel: str) -> GpuFunction:
    """One launch: its last arguments are what `launch_params` names."""
    names = [str(name) for name in call.attrs.launch_params]
    values = [
        int(value) if isinstance(value, tvm.tirx.IntImm) else 0 for value in call.args[len(call.args) - len(names) :]
    ]
    given = dict(zip(names, values, strict=True))

    def extents(index: str) -> tuple[int, int, int]:
        return (given.get(f"{index}.x", 1), given.get(f"{index}.y", 1), given.get(f"{index}.z", 1))

    name = str(call.args[0].value)
    return GpuFunction(name, kernel, extents("blockIdx"), extents("threadIdx"), given.get(_DYNAMIC_SHARED, 0))
