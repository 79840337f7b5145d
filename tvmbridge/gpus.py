"""The CUDA devices of this machine, in CUDA's own order, and what their driver can run.

The driver is asked in a process of its own: where this one had initialised CUDA, what is forked from it could not use a
GPU any more. nvidia-smi is not asked which devices there are: it counts them in another order than CUDA does, knows
nothing of CUDA_VISIBLE_DEVICES, and is missing in many containers.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass

from tvmbridge.emulation import names_emulated_gpu

_EMBEDDED_GPUS = frozenset({"sm_87", "sm_88", "sm_110"})

# Attributes (CUDA Driver API, CUdevice_attribute): 75 and 76: compute capability; 16: multiprocessors; 13 and 36: the
# highest clock of these and of the memory, in kHz.
_ASK = """\
import ctypes, json
told = {"devices": []}
def ask():
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as exc:
        return "no NVIDIA driver: " + str(exc)
    version, count = ctypes.c_int(), ctypes.c_int()
    if not cuda.cuDriverGetVersion(ctypes.byref(version)):
        told["cuda"] = "%d.%d" % (version.value // 1000, version.value % 1000 // 10)
    if status := cuda.cuInit(0):
        name = ctypes.c_char_p()
        cuda.cuGetErrorName(status, ctypes.byref(name))
        return "the NVIDIA driver does not start: " + (name.value or b"error %d" % status).decode()
    cuda.cuDeviceGetCount(ctypes.byref(count))
    for index in range(count.value):
        device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
        numbers = [ctypes.c_int() for _ in range(5)]
        cuda.cuDeviceGet(ctypes.byref(device), index)
        cuda.cuDeviceGetName(name, 256, device)
        for attribute, number in zip((75, 76, 16, 13, 36), numbers):
            cuda.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
        told["devices"].append([name.value.decode(), *(number.value for number in numbers)])
    return None if count.value else "the NVIDIA driver sees no GPU"
told["problem"] = ask()
print(json.dumps(told))
"""


@dataclass(frozen=True)
class Gpu:
    """One CUDA device. architecture: "sm_90". mhz, memory_mhz: the highest clocks that it has; 0: not said."""

    name: str
    architecture: str
    multiprocessors: int = 0
    mhz: int = 0
    memory_mhz: int = 0

    @property
    def emulated(self) -> bool:
        """Whether a program on the CPU poses as it: its times are no GPU's."""
        return names_emulated_gpu(self.name)

    @property
    def hardware(self) -> str:
        """What times on it are times of: "NVIDIA A100-SXM4-40GB, 108 SMs, 1410 MHz, memory 1215 MHz".

        One name may stand for several devices: parts of a divided GPU, makes with other clocks.
        """
        said = [f"{self.multiprocessors} SMs"] if self.multiprocessors else []
        said += [f"{self.mhz} MHz"] if self.mhz else []
        said += [f"memory {self.memory_mhz} MHz"] if self.memory_mhz else []
        return ", ".join((self.name, *said))

    def runs(self, architecture: str) -> bool:
        """Whether machine code made for an architecture runs here, leaving aside PTX.

        Within a major version code runs on the same or a later minor one, but neither from nor to the embedded
        devices (CUDA programming guide, binary compatibility).
        """
        built, present = (divmod(int(name[3:]), 10) for name in (architecture, self.architecture))
        if architecture == self.architecture:
            return True
        embedded = {architecture, self.architecture} & _EMBEDDED_GPUS
        return not embedded and built[0] == present[0] and built[1] <= present[1]


@dataclass(frozen=True)
class Gpus:
    """What the driver told. devices: "cuda:0" first. cuda: the newest CUDA that it runs, "13.0"; None without a driver.

    problem: why there are no devices; None where there are.
    """

    devices: tuple[Gpu, ...] = ()
    cuda: str | None = None
    problem: str | None = None


def find_gpus(run: Callable[[list[str]], str | None]) -> Gpus:
    """Ask the driver; takes a few tenths of a second where there is one. run: gives a command's standard output."""
    return parse_gpus(run([sys.executable, "-I", "-c", _ASK]))


def parse_gpus(text: str | None) -> Gpus:
    """What the process that asks has printed; None where it came to no end."""
    try:
        told = json.loads(text or "")
        devices = tuple(
            Gpu(" ".join(name.split()), f"sm_{major}{minor}", multiprocessors, khz // 1000, memory_khz // 1000)
            for name, major, minor, multiprocessors, khz, memory_khz in told["devices"]
        )
        problem = None if devices else str(told["problem"] or "the NVIDIA driver sees no GPU")
        return Gpus(devices, told.get("cuda"), problem)
    except (ValueError, KeyError, TypeError, AttributeError):
        return Gpus(problem="the NVIDIA driver gives no answer")


@dataclass(frozen=True)
class GpuState:
    """How a GPU runs now. Clocks in MHz, now and at most; limits in watts, degrees Celsius; None where not said.

    driver: the driver's version, "580.82.07".
    """

    name: str
    driver: str | None
    sm_mhz: float | None
    max_sm_mhz: float | None
    memory_mhz: float | None
    power_limit_w: float | None
    temperature_c: float | None

    def __str__(self) -> str:
        """One line for people."""
        clock = f"{_shown(self.sm_mhz)} of {_shown(self.max_sm_mhz)} MHz, memory {_shown(self.memory_mhz)} MHz"
        return (
            f"{self.name}, driver {self.driver or '?'}, {clock}, at most {_shown(self.power_limit_w)} W, "
            f"{_shown(self.temperature_c)} °C"
        )


_STATE = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"


def read_gpu_states(run: Callable[[list[str]], str | None]) -> tuple[GpuState, ...]:
    """What nvidia-smi says of each GPU, in its order; none without nvidia-smi."""
    return parse_gpu_states(
        run(["nvidia-smi", f"--query-gpu={_STATE}", "--format=csv,noheader,nounits"]) or "",
    )


def parse_gpu_states(text: str) -> tuple[GpuState, ...]:
    """Lines of the values that `read_gpu_states` asks for; a line that is not one is left out."""
    lines = [[field.strip() for field in line.rsplit(",", 6)] for line in text.splitlines()]
    return tuple(
        GpuState(
            name,
            driver if re.fullmatch(r"[0-9][0-9.]*", driver) else None,
            *(float(number) if re.fullmatch(r"[0-9]+(\.[0-9]+)?", number) else None for number in numbers),
        )
        for name, driver, *numbers in (line for line in lines if len(line) == 7)
    )


def _shown(number: float | None) -> str:
    return "?" if number is None else f"{number:g}"
