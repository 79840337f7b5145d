"""Names, shapes and dtypes of a model's inputs and outputs: everybody's vocabulary."""

from __future__ import annotations

import msgspec


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One input or output.

    name: as in the ONNX model.
    shape: elements per axis; None where only the run decides it (outputs only).
    dtype: NumPy's name: "float32", "int64", "bool"; "bfloat16" as ml_dtypes names it.
    index_limit: integer inputs: how many elements the model indexes with it, so that values lie between -index_limit
        and index_limit - 1; None where it is no index, or one that the model changes before it uses it.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    index_limit: int | None = None

    def __str__(self) -> str:
        axes = ", ".join("?" if axis is None else str(axis) for axis in self.shape)
        return f"{self.name}: {self.dtype}[{axes}]"


class ModelSignature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a model takes and gives, in the order in which the ONNX model lists it."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
