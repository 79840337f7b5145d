"""A graph while it is drawn: each node is run at once, so that its shape, dtype and values are known to the next."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.random_graphs.choices import Choices
from tests.random_graphs.conditioning import add_noise, perturb_input, why_ill
from tests.random_graphs.reference import Reference, ReferenceError, make_model

FLOATS = ("float32", "float16", "float64")
SIGNED = ("int32", "int64", "int8", "int16")
UNSIGNED = ("uint8", "uint16", "uint32", "uint64")
INTEGERS = SIGNED + UNSIGNED
NUMBERS = FLOATS + INTEGERS
ANY = (*NUMBERS, "bool")
EXTENTS = (1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 19, 31, 33)
LARGEST_SIZE = 20_000


class Rejected(Exception):  # noqa: N818 -- nothing is wrong: another step is drawn
    """This step does not go here: it does not fit, ONNX Runtime does not take it, or it would prove nothing."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of the graph. value: on the graph's inputs; moved: with rounding errors on the way to it."""

    name: str
    value: np.ndarray
    moved: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @property
    def rank(self) -> int:
        return self.value.ndim

    @property
    def dtype(self) -> str:
        return self.value.dtype.name

    @property
    def is_float(self) -> bool:
        return self.value.dtype.kind == "f"


class Graph:
    """Nodes, inputs and constants so far. specials: whether inputs hold NaN and infinity."""

    def __init__(self, choices: Choices, opset: int, seed: int, *, specials: bool = False) -> None:
        self.choices, self.opset, self.specials = choices, opset, specials
        self.generator = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: dict[str, Tensor] = {}
        self.constants: dict[str, Tensor] = {}
        self.computed: list[Tensor] = []
        self._names = 0

    def name(self, prefix: str = "t") -> str:
        """A new name; some as exporters write them."""
        self._names += 1
        styles = ("{0}{1}", "{0}{1}", "/layer.{1}/{0}_output_0", "{0}.{1}:0")
        return self.choices.of(styles).format(prefix, self._names)

    def input(self, shape: Sequence[int], dtype: str) -> Tensor:
        """A new input of the graph, with data."""
        return self.feed(self.data(shape, dtype))

    def feed(self, value: np.ndarray) -> Tensor:
        """A new input of the graph that is given this value."""
        tensor = Tensor(self.name("x"), value, perturb_input(value, self.generator))
        self.inputs[tensor.name] = tensor
        return tensor

    def constant(self, value: np.ndarray | Iterable[int]) -> Tensor:
        """A value that decides shapes or semantics: an initializer or a Constant node."""
        array = value if isinstance(value, np.ndarray) else np.array(list(value), "int64")
        tensor = Tensor(self.name("c"), array, array)
        self._add_constant(tensor)
        return tensor

    def scalar(self, value: float, dtype: str) -> Tensor:
        return self.constant(np.array(value, dtype))

    def weight(self, value: np.ndarray) -> Tensor:
        """Data of a layer: a constant in either form, or an input of the graph."""
        tensor = Tensor(self.name("w"), value, perturb_input(value, self.generator))
        if self.choices.odds(0.15):
            self.inputs[tensor.name] = tensor
        else:
            self._add_constant(tensor)
        return tensor

    def _add_constant(self, tensor: Tensor) -> None:
        if self.choices.odds(0.25) and (self.opset >= 9 or tensor.is_float):
            attributes: dict[str, Any] = {"value": numpy_helper.from_array(tensor.value)}
            if self.opset >= 12 and tensor.dtype == "int64" and tensor.rank == 1 and self.choices.odds(0.5):
                attributes = {"value_ints": [int(each) for each in tensor.value]} if tensor.value.size else attributes
            elif self.opset >= 12 and tensor.dtype == "float32" and tensor.rank == 0 and self.choices.odds(0.5):
                attributes = {"value_float": float(tensor.value)}
            self.nodes.append(helper.make_node("Constant", [], [tensor.name], **attributes))
        self.constants[tensor.name] = tensor

    def normal(self, shape: Sequence[int], dtype: str, scale: float = 1.0) -> np.ndarray:
        """Weights: normal floats, or small whole numbers."""
        if dtype in FLOATS:
            return np.asarray(self.generator.standard_normal(tuple(shape)) * scale).astype(dtype)
        return np.asarray(self.generator.integers(0 if dtype[0] in "ub" else -4, 5, tuple(shape))).astype(dtype)

    def data(self, shape: Sequence[int], dtype: str) -> np.ndarray:
        """Values of real variety: of both signs, zeros, large and small ones, whole numbers among the floats."""
        shape, generator = tuple(shape), self.generator
        if dtype == "bool":
            return np.asarray(generator.integers(0, 2, shape)).astype(bool)
        if dtype in INTEGERS:
            info = np.iinfo(dtype)
            low, high = self.choices.of(((-7, 7), (-100, 100), (-4096, 4096)))
            return np.asarray(generator.integers(max(low, info.min), min(high, info.max) + 1, shape)).astype(dtype)
        kind = self.choices.of(("normal", "normal", "normal", "whole", "uniform", "large", "small", "mixed", "sparse"))
        value = np.asarray(generator.standard_normal(shape))
        if kind == "whole":
            value = np.asarray(generator.integers(-5, 6, shape)).astype("float64")
        elif kind == "uniform":
            value = np.asarray(generator.random(shape))
        elif kind == "mixed":
            value = value * 10.0 ** np.asarray(generator.integers(-3, 2, shape))
        elif kind == "sparse":
            value = np.where(generator.random(shape) < 0.5, 0.0, value)
        elif kind in ("large", "small"):
            value = value * (50.0 if kind == "large" else 0.01)
        if self.specials and value.size:
            odd = generator.random(shape) < 0.2
            value = np.where(odd, generator.choice([np.nan, np.inf, -np.inf, -0.0], size=shape), value)
        return np.asarray(value).astype(dtype)

    def op(self, kind: str, inputs: Sequence[Tensor | None], **attributes: Any) -> Tensor:
        """Append a node with one output."""
        return self.ops(kind, inputs, 1, **attributes)[0]

    def ops(self, kind: str, inputs: Sequence[Tensor | None], outputs: int, **attributes: Any) -> tuple[Tensor, ...]:
        """Append a node. Attributes that are None are left out."""
        names = [self.name(kind.lower() if self.choices.odds(0.2) else "t") for _ in range(outputs)]
        node = helper.make_node(
            kind,
            [tensor.name if tensor is not None else "" for tensor in inputs],
            names,
            name=f"{kind}_{self._names}",
            **{key: value for key, value in attributes.items() if value is not None},
        )
        return self.emit([node], [tensor for tensor in inputs if tensor is not None], names)

    def emit(
        self, nodes: Sequence[onnx.NodeProto], reads: Sequence[Tensor], outputs: Sequence[str]
    ) -> tuple[Tensor, ...]:
        """Append nodes after running them; Rejected where that gives nothing to compare.

        reads: every tensor of the graph that they use, those that their subgraphs capture included.
        """
        known = {tensor.name: tensor for tensor in reads}
        fixed = {name: tensor.value for name, tensor in known.items() if name in self.constants}
        fed = {name: tensor for name, tensor in known.items() if name not in fixed}
        for node in nodes:
            _require_schema(node.op_type, self.opset)
        model = make_model(
            nodes, {name: tensor.value for name, tensor in fed.items()}, fixed, dict.fromkeys(outputs), self.opset
        )
        try:
            reference = Reference(model)
            values = reference.run({name: tensor.value for name, tensor in fed.items()})
            moved = reference.run({name: tensor.moved for name, tensor in fed.items()})
        except ReferenceError as exc:
            raise Rejected(str(exc)) from exc
        made = []
        operators = frozenset(node.op_type for node in nodes)
        for name in outputs:
            value, other = np.asarray(values[name]), add_noise(operators, np.asarray(moved[name]), self.generator)
            if value.size > LARGEST_SIZE or value.ndim > 6 or value.dtype.name not in ANY:
                raise Rejected("too large")
            reason = why_ill(value, other, specials=self.specials)
            if reason is not None:
                raise Rejected(reason)
            made.append(Tensor(name, value, other))
        self.nodes.extend(nodes)
        self.computed.extend(made)
        return tuple(made)

    def snapshot(self) -> tuple[int, int, dict[str, Tensor], dict[str, Tensor]]:
        """What `restore` goes back to."""
        return len(self.nodes), len(self.computed), dict(self.inputs), dict(self.constants)

    def restore(self, state: tuple[int, int, dict[str, Tensor], dict[str, Tensor]]) -> None:
        """Forget what was added since."""
        nodes, computed, self.inputs, self.constants = state
        del self.nodes[nodes:]
        del self.computed[computed:]

    def shape(self, low: int, high: int) -> tuple[int, ...]:
        """A shape of low to high axes and few enough elements."""
        axes: list[int] = []
        for _ in range(self.choices.integer(low, high)):
            room = LARGEST_SIZE // 8 // max(1, math.prod(axes))
            axes.append(self.choices.of([extent for extent in EXTENTS if extent <= max(1, room)]))
        return tuple(axes)

    def pick(self, dtypes: Sequence[str] = ANY, low: int = 0, high: int = 5) -> Tensor:
        """A tensor of one of these dtypes, of low to high axes: one that is there, mostly the last; else a new one."""
        fitting = [t for t in (*self.inputs.values(), *self.computed) if t.dtype in dtypes and low <= t.rank <= high]
        if fitting and not self.choices.odds(0.08):
            return fitting[-1] if self.choices.odds(0.6) else self.choices.of(fitting)
        if self.computed and self.choices.odds(0.75):
            return self._adapted(self.computed[-1], dtypes, low, high)
        names = dtypes if self.choices.odds(0.3) else dtypes[:1]
        return self.input(self.shape(low, high), self.choices.of(names))

    def _adapted(self, x: Tensor, dtypes: Sequence[str], low: int, high: int) -> Tensor:
        if x.dtype not in dtypes:
            x = self.cast(x, self.choices.of(dtypes if self.choices.odds(0.3) else dtypes[:1]))
        if not low <= x.rank <= high:
            x = self.reshape(x, self.factors(x.value.size, self.choices.integer(max(low, min(1, high)), high)))
        return x

    def cast(self, x: Tensor, dtype: str) -> Tensor:
        """Cast; Rejected where ONNX does not say what comes out."""
        if x.is_float and dtype in INTEGERS:
            info, value = np.iinfo(dtype), x.value.astype("float64")
            if not np.isfinite(value).all() or not value.size or value.min() <= info.min - 1 or value.max() >= info.max:
                raise Rejected("out of range")
        return self.op("Cast", [x], to=int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype))))

    def reshape(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        return self.op("Reshape", [x, self.constant(shape)])

    def factors(self, size: int, count: int) -> tuple[int, ...]:
        """`count` extents whose product is `size`; () where count is 0 and size 1."""
        if count == 0:
            if size != 1:
                raise Rejected("no scalar")
            return ()
        axes = [1] * count
        left, divisor = size, 2
        while left > 1:
            while left % divisor:
                divisor += 1
            axes[self.choices.integer(0, count - 1)] *= divisor
            left //= divisor
        return tuple(axes)

    def broadcast_to(self, shape: Sequence[int]) -> tuple[int, ...]:
        """A shape that broadcasts to this one: axes of extent 1, or left out in front."""
        axes = tuple(1 if extent > 1 and self.choices.odds(0.3) else extent for extent in shape)
        return axes[self.choices.integer(0, len(axes)) :] if self.choices.odds(0.4) else axes

    def partner(self, x: Tensor) -> Tensor:
        """Another operand: of x's dtype and a shape that broadcasts with x's."""
        if self.choices.odds(0.4):
            fitting = [t for t in (*self.inputs.values(), *self.computed) if t.dtype == x.dtype and _broadcast(t, x)]
            if fitting:
                return self.choices.of(fitting)
        shape = self.broadcast_to(x.shape)
        if self.choices.odds(0.1) and x.rank < 4:
            shape = (self.choices.of((2, 3, 5)), *(1 if len(shape) < x.rank else extent for extent in x.shape))
        if self.choices.odds(0.5):
            return self.input(shape, x.dtype)
        return self.weight(self.data(shape, x.dtype))

    def axis(self, x: Tensor) -> int:
        """One of x's axes, counted from either end."""
        if not x.rank:
            raise Rejected("no axes")
        axis = self.choices.integer(0, x.rank - 1)
        return axis - x.rank if self.choices.odds(0.3) else axis


def _broadcast(a: Tensor, b: Tensor) -> bool:
    try:
        return math.prod(np.broadcast_shapes(a.shape, b.shape)) <= LARGEST_SIZE
    except ValueError:
        return False


def _require_schema(kind: str, opset: int) -> None:
    try:
        schema = onnx.defs.get_schema(kind, opset)
    except onnx.defs.SchemaError as exc:
        raise Rejected(f"no {kind} in op-set {opset}") from exc
    if schema.deprecated:
        raise Rejected(f"{kind} is gone in op-set {opset}")
