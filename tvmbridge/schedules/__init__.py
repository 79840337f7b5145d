"""Schedule templates: (kernel, target, config) → a scheduled function, for untuned builds, tuning and replay alike.

A template is one file of `cpu/` or `gpu/` that ends in `TEMPLATE = Template(...)`; this file finds it there.
A kernel takes the fitting template of the highest rank, with the config that the template guesses, unless a tuning
record names another.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Callable

import numpy as np
import tvm

from tvmbridge.errors import CompileError
from tvmbridge.lowering import Kernel
from tvmbridge.targets import Target

Config = dict[str, "int | str | bool"]

FALLBACK = "default"  # the name of the template that takes what no other does


@dataclasses.dataclass(frozen=True)
class Packing:
    """A weight reordered at build time: last axis cut into tiles, tile index first: (..., N) → (N/tile, ..., tile)."""

    parameter: int
    tile: int

    def pack(self, weight: np.ndarray) -> np.ndarray:
        """Reorder one weight; the number of columns is a multiple of the tile."""
        tiles = weight.reshape(*weight.shape[:-1], weight.shape[-1] // self.tile, self.tile)
        return np.ascontiguousarray(np.moveaxis(tiles, -2, 0))


@dataclasses.dataclass(frozen=True)
class Scheduled:
    """A scheduled function, and the order in which it wants its weights."""

    function: tvm.tirx.PrimFunc
    packings: tuple[Packing, ...] = ()


@dataclasses.dataclass(frozen=True)
class Template:
    """One way to schedule one kind of kernel.

    name, version: what a tuning record says; the version rises when a config comes to mean something else.
    rank: of several fitting templates the highest is the untuned choice.
    fits: whether `schedule` can take this kernel.
    configs: the search space, best guesses anywhere in it.
    guess: the config for an untuned build, from the target's facts alone.
    schedule: the scheduled function; raises tvm.s_tir.ScheduleError or ValueError where a config is not possible.
    """

    name: str
    version: int
    rank: int
    fits: Callable[[Kernel, Target], bool]
    configs: Callable[[Kernel, Target], list[Config]]
    guess: Callable[[Kernel, Target], Config]
    schedule: Callable[[Kernel, Target, Config], Scheduled]


@functools.cache
def _templates(folder: str) -> tuple[Template, ...]:
    package = importlib.import_module(f"tvmbridge.schedules.{folder}")
    modules = (
        importlib.import_module(f"{package.__name__}.{found.name}") for found in pkgutil.iter_modules(package.__path__)
    )
    found = (module.TEMPLATE for module in modules if hasattr(module, "TEMPLATE"))
    return tuple(sorted(found, key=lambda template: (-template.rank, template.name)))


def fitting_templates(kernel: Kernel, target: Target) -> tuple[Template, ...]:
    """Every template that takes the kernel on the target, the untuned choice first."""
    templates = _templates("gpu" if target.kind == "cuda" else "cpu")
    fitting = tuple(template for template in templates if template.fits(kernel, target))
    if not fitting:
        raise CompileError(f"no schedule template takes kernel {kernel.key} on {target.name}")
    return fitting
