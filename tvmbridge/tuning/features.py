"""What the cost model knows of a candidate: numbers of its config and of its kernel's tensors, read from their keys."""

from __future__ import annotations

import functools
import math
import re

from tvmbridge.tuning.record import ConfigValue

_TENSOR = re.compile(r"([a-z]+\d*)\[([0-9,]*)\]")

Features = dict[str, float]


def candidate_features(kernel: str, template: str, config: dict[str, ConfigValue]) -> Features:
    """The features of one config of a kernel, by name; a name that another candidate lacks says nothing of it.

    kernel: its key, whose text is all that a log of another model has of it.
    """
    known = _kernel_features(kernel)
    features = {f"template={template}": 1.0, **known.numbers}
    for name, value in config.items():
        if isinstance(value, str):
            features[f"{name}={value}"] = 1.0
            continue
        features[name] = math.log2(1 + value)
        if value > 1:
            for axis, size in known.extents:
                features[f"{name}/{axis}"] = math.log2(size / value)
                features[f"{name}%{axis}"] = -(-size // value) * value / size - 1.0  # the part of the tiles beyond it
    return features


class _KernelFeatures:
    """Of one kernel: `numbers` are features; `extents` are those of the output that a config may cut into tiles."""

    def __init__(self, key: str) -> None:
        operators = key.partition("(")[0]
        tensors = [(dtype, _sizes(axes)) for dtype, axes in _TENSOR.findall(key)]
        self.numbers: Features = {f"operator={name}": 1.0 for name in re.split(r"_(?=[a-z])", operators)}
        self.numbers["tensors"] = len(tensors)
        for position, (_, sizes) in enumerate(tensors[:3]):
            self.numbers |= {f"tensor{position}.{axis}": math.log2(1 + size) for axis, size in enumerate(sizes[:6])}
        self.extents: list[tuple[str, int]] = []
        if tensors:
            dtype, sizes = tensors[-1]
            self.numbers[f"dtype={dtype}"] = 1.0
            if sizes:
                inner, outer = sizes[-1], math.prod(sizes[:-1])
                row = sizes[-2] if len(sizes) > 1 else 1
                self.extents = [("columns", max(1, inner)), ("rows", max(1, outer)), ("row", max(1, row))]
                self.numbers |= {f"output.{axis}": math.log2(size) for axis, size in self.extents}


@functools.lru_cache(maxsize=4096)
def _kernel_features(key: str) -> _KernelFeatures:
    return _KernelFeatures(key)


def _sizes(axes: str) -> list[int]:
    return [int(axis) for axis in axes.split(",") if axis]
