"""Schedule templates: (kernel, target, config) → a scheduled function, for untuned builds, tuning and replay alike.

A template is a module or package of `cpu/` or `gpu/` that ends in `TEMPLATE = Template(...)`, and is found there.
A kernel takes the fitting template of the highest rank, with the config that the template guesses, unless a tuning
record names another. A template without a rank has no config of its own: it replays what records name, and that only.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import tvm

from tvmbridge.errors import CompileError
from tvmbridge.lowering import Kernel
from tvmbridge.targets import Target

Config = dict[str, "int | str | bool"]

FALLBACK = "default"  # the name of the template that takes what no other does


class WeightTransform(Protocol):
    """What becomes of a weight before it is reordered; equal transforms give equal weights."""

    def shape(self, weight: Sequence[int]) -> tuple[int, ...]:
        """The shape of a transformed weight."""

    def apply(self, weight: np.ndarray) -> np.ndarray:
        """Transform one weight."""

    def __hash__(self) -> int: ...


@dataclasses.dataclass(frozen=True)
class Packing:
    """A weight made ready at build time: transformed, where that is wanted, and reordered.

    Reordered is (..., columns) → (vectors, ..., lanes), each vector consecutive columns.

    groups: into how many equal parts the columns fall, each cut into vectors for itself. Where `lanes` does not divide
    a part, its last vector starts earlier and repeats some columns.
    """

    parameter: int
    lanes: int
    groups: int = 1
    transform: WeightTransform | None = None

    def shape(self, weight: Sequence[int]) -> tuple[int, ...]:
        """The shape of a packed weight."""
        *outer, columns = self.transform.shape(weight) if self.transform else weight
        return (self.groups * -(-columns // (self.groups * self.lanes)), *outer, self.lanes)

    def pack(self, weight: np.ndarray) -> np.ndarray:
        """Pack one weight; each group has at least `lanes` columns."""
        weight = self.transform.apply(weight) if self.transform else weight
        columns = weight.shape[-1] // self.groups
        starts = np.minimum(np.arange(0, columns, self.lanes), columns - self.lanes)
        firsts = (np.arange(self.groups)[:, None] * columns + starts).reshape(-1)
        vectors = weight[..., firsts[:, None] + np.arange(self.lanes)]
        return np.ascontiguousarray(np.moveaxis(vectors, -2, 0))


@dataclasses.dataclass(frozen=True)
class Scheduled:
    """A scheduled function, and the order in which it wants its weights.

    trace: of the schedule primitives that made it; None where its loops were written, not transformed.
    """

    function: tvm.tirx.PrimFunc
    packings: tuple[Packing, ...] = ()
    trace: tvm.s_tir.schedule.Trace | None = None


@dataclasses.dataclass(frozen=True)
class Template:
    """One way to schedule one kind of kernel.

    name, version: what a tuning record says; the version rises when a config comes to mean something else.
    rank: of several fitting templates the highest is the untuned choice; None: never chosen, only named by records.
    fits: whether `schedule` can take this kernel.
    configs: the search space, best guesses anywhere in it.
    guess: the config for an untuned build, from the target's facts alone.
    schedule: the scheduled function; raises tvm.s_tir.ScheduleError or ValueError where a config is not possible.
    pays: whether a kernel that fits is worth the rank; where not, the template stands behind all others.
    """

    name: str
    version: int
    rank: int | None
    fits: Callable[[Kernel, Target], bool]
    configs: Callable[[Kernel, Target], list[Config]]
    guess: Callable[[Kernel, Target], Config]
    schedule: Callable[[Kernel, Target, Config], Scheduled]
    pays: Callable[[Kernel, Target], bool] = lambda _kernel, _target: True


@functools.cache
def _templates(folder: str) -> tuple[Template, ...]:
    package = importlib.import_module(f"tvmbridge.schedules.{folder}")
    modules = (
        importlib.import_module(f"{package.__name__}.{found.name}") for found in pkgutil.iter_modules(package.__path__)
    )
    found = (module.TEMPLATE for module in modules if hasattr(module, "TEMPLATE"))
    return tuple(sorted(found, key=lambda t: (t.rank is None, -(t.rank or 0), t.name)))


def recorded_templates(kernel: Kernel, target: Target) -> tuple[Template, ...]:
    """Every template whose records apply to the kernel on the target: the fitting ones, then those without a rank."""
    templates = _templates("gpu" if target.kind == "cuda" else "cpu")
    return tuple(template for template in templates if template.fits(kernel, target))


def template_versions() -> frozenset[tuple[str, int]]:
    """Name and version of every template of any target: what a tuning record can still mean something to."""
    return frozenset((template.name, template.version) for folder in ("cpu", "gpu") for template in _templates(folder))


def fitting_templates(kernel: Kernel, target: Target) -> tuple[Template, ...]:
    """Every template that can choose a config for the kernel on the target, the untuned choice first."""
    fitting = [template for template in recorded_templates(kernel, target) if template.rank is not None]
    if not fitting:
        raise CompileError(f"no schedule template takes kernel {kernel.key} on {target.name}")
    return tuple(sorted(fitting, key=lambda template: not template.pays(kernel, target)))
