"""ONNX → Relax. `import_onnx()` is the list of steps; each step is one file beside this one.

Steps take a ModelProto that belongs to the import and give one back; they may change the one that they were given.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import numpy_helper

from tvmbridge.errors import ModelError, ShapeError, UnboundValueError, UnsupportedOperatorError
from tvmbridge.frontend.explicit_pads import spell_out_pads
from tvmbridge.frontend.functions import inline_functions
from tvmbridge.frontend.infer import infer_shapes
from tvmbridge.frontend.input_defaults import drop_input_defaults
from tvmbridge.frontend.input_values import bind_values, with_values
from tvmbridge.frontend.operators import check_known_operators, check_operators
from tvmbridge.frontend.opset_upgrade import upgrade_opset
from tvmbridge.frontend.read import LoadedModel, read_model
from tvmbridge.frontend.sequence_values import Lengths, spread_inputs, with_tensors
from tvmbridge.frontend.shapes import bind_shapes
from tvmbridge.frontend.simplify import simplify
from tvmbridge.frontend.sparse_weights import densify
from tvmbridge.frontend.walk import opset
from tvmbridge.frontend.weights import attach_weights, detach_weights
from tvmbridge.signature import ModelSignature

if TYPE_CHECKING:
    import tvm

__all__ = ["ImportedModel", "import_onnx"]


@dataclasses.dataclass(frozen=True)
class ImportedModel:
    """A model in Relax, before any target is known. Lowering copies `module`, never changes it.

    name: stem of the file, or name of the graph.
    module: Relax; "main" takes the inputs in the order of the signature; weights are constants; shapes are static.
    signature: names as in the ONNX model.
    opset: of the model as it was given.
    sha256: digest of the file and then of its external data files; of the serialized proto where there is no file.
    source: what a reference runs: the file's absolute path, or a copy of the proto, with the values bound.
    shapes, dims, values: the bindings that were given; values as arrays of the inputs' dtypes.
    """

    name: str
    module: tvm.IRModule = dataclasses.field(repr=False)
    signature: ModelSignature
    opset: int
    sha256: str
    source: Path | onnx.ModelProto = dataclasses.field(repr=False)
    shapes: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    dims: Mapping[str, int] = dataclasses.field(default_factory=dict)
    values: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


def import_onnx(
    model: str | os.PathLike[str] | onnx.ModelProto,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    dims: Mapping[str, int] | None = None,
    values: Mapping[str, ArrayLike] | None = None,
    lengths: Mapping[str, int | None] | None = None,
) -> ImportedModel:
    """Read an ONNX model, bind its shapes, simplify it and import it into TVM.

    shapes: input name → its shape; dims: symbolic dimension → its size. Every dimension must end up bound.
    values: input name → its value, for inputs that decide shapes: a bound input is a constant, and no input any more.
    lengths: input that is a sequence or an optional → how many tensors it has, None for an optional without a value;
    they are inputs of their own then, "x[0]", "x[1]", as are the tensors of sequences among the outputs.
    Raises ModelFileError, ShapeError, UnsupportedOperatorError, or ModelError for anything else wrong with the model.
    """
    loaded = read_model(model)
    try:
        return _import(loaded, shapes or {}, dims or {}, values or {}, lengths or {})
    except ShapeError as exc:
        raise ShapeError(f"{loaded.name}: {exc.message}", dimensions=exc.dimensions, hint=exc.hint) from exc.__cause__
    except UnsupportedOperatorError as exc:
        message = f"{loaded.name}: {exc.message}"
        raise UnsupportedOperatorError(message, operators=exc.operators, hint=exc.hint) from exc.__cause__
    except UnboundValueError as exc:
        raise UnboundValueError(f"{loaded.name}: {exc.message}", inputs=exc.inputs, hint=exc.hint) from exc.__cause__
    except ModelError as exc:
        raise ModelError(f"{loaded.name}: {exc.message}", hint=exc.hint) from exc.__cause__


def _import(
    loaded: LoadedModel,
    shapes: Mapping[str, Sequence[int]],
    dims: Mapping[str, int],
    values: Mapping[str, ArrayLike],
    lengths: Lengths,
) -> ImportedModel:
    given_opset = opset(loaded.proto) or 1
    proto = densify(drop_input_defaults(loaded.proto))
    proto = spread_inputs(proto, lengths)
    proto = bind_values(proto, values)
    bound = {entry.name: numpy_helper.to_array(entry) for entry in proto.graph.initializer if entry.name in values}
    proto = bind_shapes(proto, shapes, dims)
    weights = detach_weights(proto)
    proto = inline_functions(proto)
    check_known_operators(proto)
    proto = upgrade_opset(proto)
    proto = attach_weights(proto, weights)
    proto = infer_shapes(proto)
    proto = spell_out_pads(proto)
    proto = simplify(proto)
    check_operators(proto)
    proto = infer_shapes(proto)

    from tvmbridge.frontend.trace import trace  # imports tvm: seconds, and for nothing where the model is bad

    module, signature = trace(proto)
    names = {spec.name for spec in signature.outputs}
    return ImportedModel(
        name=loaded.name,
        module=module,
        signature=signature,
        opset=given_opset,
        sha256=loaded.sha256,
        source=with_values(with_tensors(loaded.source, lengths, names), values),
        shapes={name: tuple(int(axis) for axis in shape) for name, shape in shapes.items()},
        dims={name: int(size) for name, size in dims.items()},
        values=bound,
    )
