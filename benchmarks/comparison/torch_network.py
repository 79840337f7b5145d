"""A network as a torch.nn.Module whose `forward` is the code that one would write by hand: one line an operator.

Needs torch and NumPy, and nothing of tvmbridge: it runs in the Python that has torch. The code is generated and not
interpreted, so that eager PyTorch pays for its own calls alone and torch.compile sees a plain function.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

Node = Mapping[str, Any]


def read_network(folder: Path, *, half: bool = False, channels_last: bool = False) -> nn.Module:
    """The network that `plain_graph.write_plain_graph` wrote; takes and gives tensors in the model's order.

    half: weights and arithmetic in float16; inputs and outputs stay as they are. channels_last: the memory format that
    PyTorch recommends for convolutions on tensor cores.
    """
    graph = json.loads((folder / "graph.json").read_text())
    with np.load(folder / "constants.npz") as arrays:
        constants = {name: arrays[f"c{index}"] for index, name in enumerate(graph["constants"])}
    return _Writer(graph, constants, half=half, channels_last=channels_last).module()


def has_convolutions(folder: Path) -> bool:
    """Whether the written network convolves."""
    nodes = json.loads((folder / "graph.json").read_text())["nodes"]
    return any(node["operator"] == "Conv" for node in nodes)


class Network(nn.Module):
    """What `forward` was generated for; `code` is its text."""

    code: str


class _Writer:
    """Collects parameters and lines while the nodes are gone through in their order."""

    def __init__(
        self, graph: Mapping[str, Any], constants: Mapping[str, np.ndarray], *, half: bool, channels_last: bool
    ) -> None:
        self.opset: int = graph["opset"]
        self._graph = graph
        self._constants = constants
        self._half = half
        self._channels_last = channels_last
        self._names: dict[str, str] = {}
        self._network = Network()

    def module(self) -> nn.Module:
        """Write everything."""
        arguments = [self._name(name) for name in self._graph["inputs"]]
        lines = []
        for argument, dtype in zip(arguments, self._graph["inputs"].values(), strict=True):
            if dtype == "float32" and self._half:
                layout = ", memory_format=torch.channels_last" if self._channels_last else ""
                lines.append(f"{argument} = {argument}.to(dtype=torch.float16{layout})")
            elif dtype == "float32" and self._channels_last:
                lines.append(f"{argument} = {argument}.to(memory_format=torch.channels_last)")
        for node in self._graph["nodes"]:
            write = _OPERATORS.get(node["operator"])
            if write is None:
                raise NotImplementedError(f"no PyTorch code is known for {node['operator']} ({node['outputs'][0]})")
            expression = write(self, node)
            lines.append(f"{self._name(node['outputs'][0])} = {expression}")
        results = [self._names[name] + (".float()" if self._half else "") for name in self._graph["outputs"]]
        body = "\n".join(f"    {line}" for line in [*lines, f"return ({', '.join(results)},)"])
        code = f"def forward(self, {', '.join(arguments)}):\n{body}\n"
        scope: dict[str, Any] = {"torch": torch, "F": nn.functional}
        exec(compile(code, "<the network>", "exec"), scope)
        network_class = type("GeneratedNetwork", (Network,), {"forward": scope["forward"], "code": code})
        self._network.__class__ = network_class
        if self._half:
            self._network.half()
        if self._channels_last:
            self._network.to(memory_format=torch.channels_last)
        return self._network.eval().requires_grad_(False)

    def _name(self, value: str) -> str:
        return self._names.setdefault(value, f"v{len(self._names)}")

    def operand(self, node: Node, index: int) -> str:
        """The code of an input: a variable, a parameter, or a number for a constant scalar."""
        name = node["inputs"][index]
        constant = self._constants.get(name)
        if constant is None:
            return self._names[name]
        if constant.ndim == 0:
            return repr(constant.item())
        return self._parameter(name, constant)

    def _parameter(self, name: str, constant: np.ndarray) -> str:
        if name not in self._names:
            member = f"p{len(self._names)}"
            tensor = torch.from_numpy(np.ascontiguousarray(constant))
            if constant.dtype.kind == "f":
                self._network.register_parameter(member, nn.Parameter(tensor, requires_grad=False))
            else:
                self._network.register_buffer(member, tensor)
            self._names[name] = f"self.{member}"
        return self._names[name]

    def constant(self, node: Node, index: int) -> np.ndarray:
        """An input that must be a constant."""
        return self._constants[node["inputs"][index]]

    def constant_or_none(self, node: Node, index: int) -> np.ndarray | None:
        """An input's constant; None where the run computes it."""
        return self._constants.get(node["inputs"][index])

    def has(self, node: Node, index: int) -> bool:
        """Whether an optional input is there."""
        return len(node["inputs"]) > index and node["inputs"][index] != ""


def _convolution(writer: _Writer, node: Node) -> str:
    x, pads = _padded(writer, node, "0.0")
    weight = writer.operand(node, 1)
    bias = writer.operand(node, 2) if writer.has(node, 2) else "None"
    spatial = writer.constant(node, 1).ndim - 2
    attributes = node["attributes"]
    strides = tuple(attributes.get("strides", [1] * spatial))
    dilations = tuple(attributes.get("dilations", [1] * spatial))
    settings = f"stride={strides}, padding={pads}, dilation={dilations}, groups={attributes.get('group', 1)}"
    return f"F.conv2d({x}, {weight}, {bias}, {settings})"


def _padded(writer: _Writer, node: Node, filler: str) -> tuple[str, tuple[int, ...]]:
    """The first input, and the padding that the operator itself takes: the same at both ends, or none."""
    x = writer.operand(node, 0)
    pads = node["attributes"].get("pads", [0, 0, 0, 0])
    if node["attributes"].get("auto_pad", "NOTSET") != "NOTSET" or len(pads) != 4:
        raise NotImplementedError(f"{node['outputs'][0]}: no PyTorch code is known for these pads")
    begin, end = pads[:2], pads[2:]
    if begin == end:
        return x, tuple(begin)
    return f"F.pad({x}, {(begin[1], end[1], begin[0], end[0])}, value={filler})", (0, 0)


def _max_pool(writer: _Writer, node: Node) -> str:
    x, pads = _padded(writer, node, "float('-inf')")
    return f"F.max_pool2d({x}, {_window(node)}, padding={pads})"


def _average_pool(writer: _Writer, node: Node) -> str:
    pads = node["attributes"].get("pads", [0, 0, 0, 0])
    if pads[:2] != pads[2:]:
        raise NotImplementedError(f"{node['outputs'][0]}: no PyTorch code is known for an average over uneven pads")
    counted = bool(node["attributes"].get("count_include_pad", 0))
    x = writer.operand(node, 0)
    return f"F.avg_pool2d({x}, {_window(node)}, padding={tuple(pads[:2])}, count_include_pad={counted})"


def _window(node: Node) -> str:
    attributes = node["attributes"]
    if attributes.get("ceil_mode", 0) or any(step != 1 for step in attributes.get("dilations", [])):
        raise NotImplementedError(f"{node['outputs'][0]}: no PyTorch code is known for this window")
    kernel = attributes["kernel_shape"]
    return f"{tuple(kernel)}, stride={tuple(attributes.get('strides', [1] * len(kernel)))}"


def _batch_norm(writer: _Writer, node: Node) -> str:
    x, scale, bias, mean, variance = (writer.operand(node, index) for index in range(5))
    epsilon = node["attributes"].get("epsilon", 1e-5)
    return f"F.batch_norm({x}, {mean}, {variance}, {scale}, {bias}, False, 0.0, {epsilon!r})"


def _gemm(writer: _Writer, node: Node) -> str:
    attributes = node["attributes"]
    if attributes.get("transA", 0) or attributes.get("alpha", 1.0) != 1 or attributes.get("beta", 1.0) != 1:
        raise NotImplementedError(f"{node['outputs'][0]}: no PyTorch code is known for this Gemm")
    x, weight = writer.operand(node, 0), writer.operand(node, 1)
    bias = writer.operand(node, 2) if writer.has(node, 2) else "None"
    return f"F.linear({x}, {weight if attributes.get('transB', 0) else f'{weight}.t()'}, {bias})"


def _softmax(writer: _Writer, node: Node) -> str:
    x = writer.operand(node, 0)
    if writer.opset >= 13:
        return f"torch.softmax({x}, {node['attributes'].get('axis', -1)})"
    # Over all axes from `axis` on, as one.
    axis = node["attributes"].get("axis", 1)
    return f"torch.softmax({x}.flatten({axis}), -1).reshape({x}.shape)"


def _reshape(writer: _Writer, node: Node) -> str:
    x = writer.operand(node, 0)
    shape = [int(axis) for axis in writer.constant(node, 1)]
    axes = [f"{x}.shape[{index}]" if axis == 0 else str(axis) for index, axis in enumerate(shape)]
    return f"torch.reshape({x}, ({', '.join(axes)},))"


def _clip(writer: _Writer, node: Node) -> str:
    limits = [writer.constant(node, index).item() if writer.has(node, index) else None for index in (1, 2)]
    x = writer.operand(node, 0)
    return f"F.relu6({x})" if limits == [0, 6] else f"torch.clamp({x}, {limits[0]!r}, {limits[1]!r})"


def _gather(writer: _Writer, node: Node) -> str:
    axis = node["attributes"].get("axis", 0)
    index = writer.constant_or_none(node, 1)
    if index is not None and index.ndim == 0:
        return f"{writer.operand(node, 0)}.select({axis}, {int(index)})"
    if axis != 0:
        raise NotImplementedError(f"{node['outputs'][0]}: no PyTorch code is known for this Gather")
    return f"F.embedding({writer.operand(node, 1)}, {writer.operand(node, 0)})"


def _layer_norm(writer: _Writer, node: Node) -> str:
    if node["attributes"].get("axis", -1) != -1:
        raise NotImplementedError(f"{node['outputs'][0]}: no PyTorch code is known for this LayerNormalization")
    x, scale = writer.operand(node, 0), writer.operand(node, 1)
    bias = writer.operand(node, 2) if writer.has(node, 2) else "None"
    width = writer.constant(node, 1).shape
    return f"F.layer_norm({x}, {width}, {scale}, {bias}, {node['attributes'].get('epsilon', 1e-5)!r})"


def _local_response_norm(writer: _Writer, node: Node) -> str:
    given = node["attributes"]
    settings = [given["size"], given.get("alpha", 1e-4), given.get("beta", 0.75), given.get("bias", 1.0)]
    return f"F.local_response_norm({writer.operand(node, 0)}, {', '.join(map(repr, settings))})"


def _attention(writer: _Writer, node: Node) -> str:
    query, turned_key, value = (writer.operand(node, index) for index in range(3))
    scale = node["attributes"]["scale"]
    return f"F.scaled_dot_product_attention({query}, {turned_key}.transpose(-2, -1), {value}, scale={scale!r})"


def _joined(sign: str) -> Callable[[_Writer, Node], str]:
    return lambda writer, node: f" {sign} ".join(writer.operand(node, index) for index in range(len(node["inputs"])))


def _concat(writer: _Writer, node: Node) -> str:
    parts = [writer.operand(node, index) for index in range(len(node["inputs"]))]
    return f"torch.cat(({', '.join(parts)}), {node['attributes']['axis']})"


def _linear(writer: _Writer, node: Node) -> str:
    return f"F.linear({', '.join(writer.operand(node, index) for index in range(3))})"


_OPERATORS: dict[str, Callable[[_Writer, Node], str]] = {
    "Add": _joined("+"),
    "Attention": _attention,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _convolution,
    "Div": _joined("/"),
    "Dropout": lambda writer, node: writer.operand(node, 0),
    "Erf": lambda writer, node: f"torch.erf({writer.operand(node, 0)})",
    "Flatten": lambda writer, node: f"torch.flatten({writer.operand(node, 0)}, {node['attributes'].get('axis', 1)})",
    "Gather": _gather,
    "Gelu": lambda writer, node: f"F.gelu({writer.operand(node, 0)})",
    "Gemm": _gemm,
    "GlobalAveragePool": lambda writer, node: f"F.adaptive_avg_pool2d({writer.operand(node, 0)}, 1)",
    "LRN": _local_response_norm,
    "LayerNormalization": _layer_norm,
    "Linear": _linear,
    "MatMul": lambda writer, node: f"torch.matmul({writer.operand(node, 0)}, {writer.operand(node, 1)})",
    "MaxPool": _max_pool,
    "Mul": _joined("*"),
    "Relu": lambda writer, node: f"F.relu({writer.operand(node, 0)})",
    "Reshape": _reshape,
    "Softmax": _softmax,
    "Sum": _joined("+"),
    "Transpose": lambda writer, node: f"{writer.operand(node, 0)}.permute({tuple(node['attributes']['perm'])})",
}
