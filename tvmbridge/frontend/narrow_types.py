"""Types narrower than TVM can compute in (bfloat16, float8, 4 bits): their bits to values and back, and rounding."""

from __future__ import annotations

from tvm import relax

from tvmbridge.errors import ModelError

_MOVING = frozenset(
    {
        *("Compress", "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "If"),
        *("MaxPool", "Pad", "Relu", "Reshape", "ReverseSequence", "ScatterElements", "ScatterND", "Slice", "Split"),
        *("SpaceToDepth", "Squeeze", "Tile", "Transpose", "Trilu", "Unsqueeze", "Where", "Max", "Min", "TopK"),
    }
)


def is_exact(op_type: str) -> bool:
    """Whether an operator's results are among its operands' values, so that they need no rounding."""
    return op_type in _MOVING


def decode(_builder: relax.BlockBuilder, _bits: relax.Expr, dtype: str) -> relax.Expr:
    """The values, in the carrier's dtype, of the bits that an input holds."""
    raise ModelError(f"inputs of type {dtype} are not supported", hint="convert the model to float32 or float16")


def encode(_builder: relax.BlockBuilder, _values: relax.Expr, dtype: str) -> relax.Expr:
    """The bits of values that are held in the carrier's dtype."""
    raise ModelError(f"outputs of type {dtype} are not supported", hint="convert the model to float32 or float16")


def rounded(_builder: relax.BlockBuilder, _values: relax.Expr, dtype: str) -> relax.Expr:
    """Values in the carrier's dtype, rounded to those that the narrow type has."""
    raise ModelError(f"tensors of type {dtype} are not supported", hint="convert the model to float32 or float16")
