"""What a converter is given: one node of the ONNX graph, with all that is known about its operands and results.

Every shape is static. A value is known where it follows from constants, bound inputs and shapes; it then is an array.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import ml_dtypes
import numpy as np
import onnx
import tvm
from onnx import helper
from tvm import relax

from tvmbridge.errors import ModelError, UnboundValueError, UnsupportedOperatorError

# Types that TVM's code generation cannot hold are computed in a type that holds each of their values.
CARRIERS: Mapping[str, str] = {
    **dict.fromkeys(("bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"), "float32"),
    **dict.fromkeys(("float8_e8m0fnu", "float4_e2m1fn"), "float32"),
    **{"int4": "int8", "uint4": "uint8", "int2": "int8", "uint2": "uint8"},
}
OLD_ROUNDING = "simple"  # our nearest_mode of a Resize as it was before op-set 11
_INTEGERS = (f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64))
PLAIN = frozenset({"bool", "float16", "float32", "float64", *_INTEGERS})


def carrier(dtype: str) -> str:
    """The dtype in which values of an ONNX element type are computed; both by NumPy's names."""
    return CARRIERS.get(dtype, dtype)


def numpy_type(dtype: str) -> np.dtype[Any]:
    """The NumPy dtype of an ONNX element type by name."""
    return np.dtype(getattr(ml_dtypes, dtype)) if dtype in CARRIERS else np.dtype(dtype)


class Tensor:
    """One tensor while the graph is traced: an expression, or where its value is known an array.

    dtype: the ONNX element type, by NumPy's name ("float32", "bfloat16", "int4").
    shape: elements per axis. array: its value, of that dtype; None where only the run knows it.
    inputs: the graph's inputs that it is computed of.
    """

    def __init__(self, expr: relax.Expr, dtype: str, *, inputs: frozenset[str] = frozenset()) -> None:
        self._expr: relax.Expr | None = expr
        self.array: np.ndarray | None = None
        self.dtype = dtype
        self.shape: tuple[int, ...] = tuple(int(axis) for axis in expr.ty.shape.values)
        self.inputs = inputs

    @classmethod
    def known(cls, array: np.ndarray) -> Tensor:
        """A tensor whose value is known."""
        made = cls.__new__(cls)
        made._expr, made.array, made.dtype, made.shape = None, array, array.dtype.name, tuple(array.shape)
        made.inputs = frozenset()
        return made

    @property
    def expr(self) -> relax.Expr:
        """The tensor in Relax, of the carrier's dtype."""
        if self._expr is None:
            dtype = carrier(self.dtype)
            self._expr = relax.const(np.asarray(self.array, dtype, order="C"), dtype)
        return self._expr


def known_arrays(tensors: Sequence[Tensor]) -> list[np.ndarray] | None:
    """The values of tensors; None where one of them is not known."""
    arrays = [tensor.array for tensor in tensors if tensor.array is not None]
    return arrays if len(arrays) == len(tensors) else None


@dataclasses.dataclass(frozen=True)
class TensorSequence:
    """A sequence, whose length is known while the graph is traced. dtype: of its tensors, where it is empty too."""

    items: tuple[Tensor, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class Missing:
    """An optional without a value."""


Value = Tensor | TensorSequence | Missing


@dataclasses.dataclass(frozen=True)
class Operator:
    """One node, ready to be converted.

    name: what to call the node in a message. domain: "" for ONNX's own operators.
    version: the op-set version that defined the operator as it is meant here: 11 for a Softmax of op-set 12.
    operands: values, None where an input is absent; trailing absent ones may be missing.
    attributes: as Python values (text as str, tensors as arrays, graphs as GraphProto), the schema's defaults included.
    results: ONNX types of the outputs, as far as ONNX infers them; None elsewhere.
    used: per output, whether anything reads it.
    """

    op_type: str
    domain: str
    version: int
    name: str
    builder: relax.BlockBuilder
    operands: tuple[Value | None, ...]
    attributes: Mapping[str, Any]
    results: tuple[onnx.TypeProto | None, ...]
    used: tuple[bool, ...]
    node: onnx.NodeProto = dataclasses.field(repr=False)
    opset: int = 0

    def tensor(self, position: int) -> Tensor:
        """The operand there, a tensor; refuses sequences and optionals."""
        value = self.operands[position] if position < len(self.operands) else None
        if not isinstance(value, Tensor):
            self.refuse(f"its input {position} is no tensor")
        return value

    def has(self, position: int) -> bool:
        """Whether the operand is given."""
        return position < len(self.operands) and self.operands[position] is not None

    @property
    def inputs(self) -> tuple[relax.Expr | None, ...]:
        """The operands as Relax expressions; None where one is absent."""
        return tuple(self.tensor(i).expr if value is not None else None for i, value in enumerate(self.operands))

    def input(self, position: int) -> relax.Expr:
        """One operand as a Relax expression."""
        return self.tensor(position).expr

    def shape(self, position: int) -> tuple[int, ...]:
        """The shape of an operand."""
        return self.tensor(position).shape

    def dtype(self, position: int = 0) -> str:
        """The dtype in which an operand is computed: that of its expression."""
        return carrier(self.tensor(position).dtype)

    def type(self, position: int = 0) -> str:
        """The ONNX element type of an operand, by NumPy's name."""
        return self.tensor(position).dtype

    def constant(self, position: int) -> np.ndarray | None:
        """The value of an operand where it is known; None where it is absent or computed at run time."""
        return self.tensor(position).array if self.has(position) else None

    def known(self, position: int, what: str) -> np.ndarray | None:
        """The value of an operand that has to be known; None where it is absent.

        what: names it in the error ("its axes"). Raises UnboundValueError where only the run decides it.
        """
        if not self.has(position):
            return None
        array = self.tensor(position).array
        if array is None:
            self.refuse_unbound(position, what)
        return array

    def refuse_unbound(self, position: int, what: str) -> NoReturn:
        """Raise UnboundValueError: an operand that had to be known is computed at run time. what: as for `known`."""
        inputs = tuple(sorted(self.tensor(position).inputs))
        raise UnboundValueError(
            f"{self.op_type} {self.name!r}: {what} must be known when the model is built, and the run computes"
            f" them from {', '.join(map(repr, inputs))}",
            inputs=inputs,
        )

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute, given or by the schema's default; `default` where it has neither."""
        return self.attributes.get(name, default)

    def result_shape(self, position: int = 0) -> tuple[int, ...]:
        """The shape of a result, as ONNX infers it; refuses where ONNX does not know it."""
        shape = static_shape(self.results[position]) if position < len(self.results) else None
        if shape is None:
            self.refuse("the shape of its result is known only at run time")
        return shape

    def result_type(self, position: int = 0) -> str:
        """The ONNX element type of a result, by NumPy's name."""
        found = self.results[position] if position < len(self.results) else None
        if found is None or not found.HasField("tensor_type"):
            self.refuse("the type of its result is not known")
        return element_type(found.tensor_type.elem_type)

    def result_dtype(self, position: int = 0) -> str:
        """The dtype in which a result is computed."""
        return carrier(self.result_type(position))

    def refuse(self, why: str) -> NoReturn:
        """Raise UnsupportedOperatorError: this form of the operator is not supported, and why."""
        domain = self.domain or "ai.onnx"
        raise UnsupportedOperatorError(
            f"{self.op_type} {self.name!r}: {why}",
            operators=(f"{domain}.{self.op_type} (op-set {self.opset}): {self.name}: {why}",),
            hint="this form of the operator is not supported: export the model without it, or with another op-set",
        )

    def emit(self, expr: relax.Expr) -> relax.Var:
        """Bind an expression to a variable."""
        return self.builder.emit(expr)

    def compute(self, function: Callable[..., Any], *args: Any, name: str = "", **kwargs: Any) -> relax.Expr:
        """Emit a kernel by a function of te.Tensor; Relax expressions among the arguments become its tensors."""
        return self.builder.emit_te(function, *args, primfunc_name_hint=name or function.__name__.strip("_"), **kwargs)

    def const(self, value: Any, dtype: str | None = None) -> relax.Expr:
        """A constant; of the first operand's dtype where none is given."""
        return relax.const(np.asarray(value, dtype or self.dtype(0)), dtype or self.dtype(0))


Converter = Callable[[Operator], "relax.Expr | Sequence[relax.Expr | None] | None"]


def element_type(number: int) -> str:
    """NumPy's name of an ONNX element type; ModelError for strings and complex numbers."""
    try:
        name = helper.tensor_dtype_to_np_dtype(number).name
    except (KeyError, TypeError, ValueError):
        name = ""
    if name not in PLAIN and name not in CARRIERS:
        named = onnx.TensorProto.DataType.Name(number).lower() if number in onnx.TensorProto.DataType.values() else "?"
        raise ModelError(
            f"elements of type {named} are not supported", hint="supported are numbers and bool: export without them"
        )
    return name


def static_shape(found: onnx.TypeProto | None) -> tuple[int, ...] | None:
    """The shape of a tensor type where every axis is known."""
    if found is None or not found.HasField("tensor_type") or not found.tensor_type.HasField("shape"):
        return None
    axes = found.tensor_type.shape.dim
    return tuple(axis.dim_value for axis in axes) if all(axis.HasField("dim_value") for axis in axes) else None


def is_constant(expr: relax.Expr) -> bool:
    """Whether an expression is a constant of Relax."""
    return isinstance(expr, tvm.ir.GenericConst)
