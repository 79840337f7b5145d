"""ONNX's standard backend interface over the pipeline: what takes an `onnx.backend` takes `tvmbridge.backend`.

import tvmbridge.backend as backend

outputs = backend.prepare(model, device="CPU").run([x])
"""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.backend.base
from onnx import helper
from tvm import relax

from tvmbridge.bundle import ModelFacts, write_bundle
from tvmbridge.codegen import build_variant
from tvmbridge.errors import InputError, ModelError, ShapeError, TargetError, UnboundValueError
from tvmbridge.frontend import ImportedModel, import_onnx
from tvmbridge.frontend.sequence_values import element_name, elements_of, kind_of
from tvmbridge.lowering import LoweredModel, lower
from tvmbridge.runtime import Session, load
from tvmbridge.targets import parse_preset

__all__ = ["Backend", "Prepared", "is_compatible", "prepare", "run_model", "run_node", "supports_device"]


@dataclasses.dataclass(frozen=True)
class Specialisation:
    """A bundle compiled for the shapes of all inputs and the values of some, loaded.

    shapes: of every input, the tensors of sequences among them; lengths: of the inputs that are sequences or optionals.
    bound: the inputs whose values were bound at build time, because shapes follow from them.
    computes: whether an output still depends on an input that the session takes.
    """

    session: Session = dataclasses.field(repr=False)
    shapes: Mapping[str, tuple[int | None, ...]]
    bound: Mapping[str, np.ndarray[Any, Any]]
    computes: bool
    lengths: Mapping[str, int | None] = dataclasses.field(default_factory=dict)

    def fits(self, feeds: Mapping[str, np.ndarray[Any, Any]], lengths: Mapping[str, int | None]) -> bool:
        """Whether these arrays have the shapes and the bound values that it was compiled for."""
        return (
            self.lengths == lengths
            and all(feeds[name].shape == shape for name, shape in self.shapes.items())
            and all(
                feeds[name].dtype == value.dtype and feeds[name].tobytes() == value.tobytes()
                for name, value in self.bound.items()
            )
        )

    def run(self, feeds: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        """The outputs by name, the tensors of sequences among them."""
        return dict(self.session.run({spec.name: feeds[spec.name] for spec in self.session.inputs}))


class Prepared(onnx.backend.base.BackendRep):
    """A model to run again and again; made by prepare().

    A model whose shapes are all fixed is compiled at once. Any other is compiled on its first run(), for the shapes
    and, where shapes follow from an input's values, for the values given there; and again for others, once for each.

    used: the specialisation that the last run() used; None before there is one.
    """

    def __init__(self, model: onnx.ModelProto, threads: int | None = None) -> None:
        self._model = model
        self._threads = threads
        self._names = _input_names(model)
        self._folder = tempfile.TemporaryDirectory(prefix="tvmbridge-backend-")
        self._count = itertools.count()
        self._made: list[Specialisation] = []
        self.used: Specialisation | None = None
        self._kinds = {entry.name: kind_of(entry) for entry in model.graph.input}
        try:
            imported = import_onnx(model)
        except UnboundValueError:
            self._fixed = False
        except ShapeError as exc:
            if not exc.dimensions:
                raise
            self._fixed = False
        else:
            self._fixed = True
            self.used = self._compile(imported, {})

    @property
    def bound(self) -> tuple[str, ...]:
        """The inputs whose values were bound at build time for the last run()."""
        return tuple(self.used.bound) if self.used is not None else ()

    def run(self, inputs: Any, **_options: Any) -> tuple[Any, ...]:
        """The outputs, in the model's order, as NumPy arrays; sequences as lists of them.

        inputs: arrays in the order of the model's inputs that have no initializer, or a dict of them by name, or the
        array alone where there is one. Compiles where the model is not fixed; raises as `prepare` then, and InputError.
        """
        feeds, lengths = self._spread(self._feeds(inputs))
        if not self._fixed:
            found = next((made for made in self._made if made.fits(feeds, lengths)), None)
            self.used = found or self._specialise(feeds, lengths)
        assert self.used is not None
        results = self.used.run(feeds)
        return tuple(_gathered(entry, results) for entry in self._model.graph.output)

    def _spread(self, feeds: Mapping[str, Any]) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, int | None]]:
        """The arrays of all inputs, those of sequences and optionals each by itself; and how many these have."""
        arrays: dict[str, np.ndarray[Any, Any]] = {}
        lengths: dict[str, int | None] = {}
        for name, value in feeds.items():
            if self._kinds[name] not in ("sequence", "optional"):
                arrays[name] = np.asarray(value)
                continue
            items = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
            lengths[name] = None if value is None else len(items)
            arrays |= {element_name(name, position): np.asarray(item) for position, item in enumerate(items)}
        return arrays, lengths

    def _feeds(self, inputs: Any) -> dict[str, Any]:
        if isinstance(inputs, Mapping):
            given = dict(inputs)
        elif isinstance(inputs, (list, tuple)):
            if len(inputs) != len(self._names):
                raise InputError(f"{len(inputs)} arrays given for the inputs {', '.join(self._names) or '(none)'}")
            given = dict(zip(self._names, inputs, strict=True))
        else:
            return self._feeds([inputs])
        if given.keys() != set(self._names):
            raise InputError(
                f"arrays given for {', '.join(map(str, given)) or 'no input'}",
                hint=f"the model takes {', '.join(self._names) or 'no inputs'}",
            )
        return given

    def _specialise(
        self, feeds: Mapping[str, np.ndarray[Any, Any]], lengths: Mapping[str, int | None]
    ) -> Specialisation:
        shapes = {name: array.shape for name, array in feeds.items()}
        values: dict[str, np.ndarray[Any, Any]] = {}
        while True:
            open_shapes = {name: shape for name, shape in shapes.items() if name not in values}
            try:
                imported = import_onnx(self._model, shapes=open_shapes, values=values, lengths=lengths)
                break
            except UnboundValueError as exc:
                missing = [name for name in exc.inputs if name in feeds and name not in values]
                if not missing:
                    raise
                values |= {name: feeds[name].copy() for name in missing}
        self._made.append(self._compile(imported, values, shapes, lengths))
        return self._made[-1]

    def _compile(
        self,
        imported: ImportedModel,
        values: Mapping[str, np.ndarray[Any, Any]],
        shapes: Mapping[str, tuple[int | None, ...]] | None = None,
        lengths: Mapping[str, int | None] | None = None,
    ) -> Specialisation:
        folder = Path(self._folder.name, str(next(self._count)))
        folder.mkdir()
        target = parse_preset("native")
        lowered = lower(imported, target)
        variant, _ = build_variant(lowered, target, None, folder)
        variant = dataclasses.replace(variant, unverified_because="built by the ONNX backend, which does not verify")
        bundle = folder / "model.tvmb"
        facts = ModelFacts(imported.name, imported.sha256, imported.opset)
        write_bundle(bundle, model=facts, signature=imported.signature, variants=[variant])
        session = load(bundle, threads=self._threads)
        if shapes is None:
            shapes = {spec.name: spec.shape for spec in imported.signature.inputs}
        return Specialisation(session, shapes, values, _computes(lowered), lengths or {})


class Backend(onnx.backend.base.Backend):
    """tvmbridge as an ONNX backend. device is "CPU": models are compiled for this machine, untuned and unverified."""

    @classmethod
    def is_compatible(cls, model: onnx.ModelProto, device: str = "CPU", **_options: Any) -> bool:
        """Whether the model can be imported for this device; inputs may still need shapes or values from the run."""
        if not cls.supports_device(device):
            return False
        try:
            import_onnx(model)
        except UnboundValueError:
            return True
        except ShapeError as exc:
            return bool(exc.dimensions)
        except ModelError:
            return False
        return True

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **options: Any) -> Prepared:
        """Compile a model, or check it for the compiling that its first run() does: see Prepared.

        options: `threads`, how many a call may use; others are ignored. Raises TargetError for another device,
        ModelError for a model that cannot be imported, CompileError or ToolchainError where it cannot be compiled.
        """
        if not cls.supports_device(device):
            raise TargetError(f"the ONNX backend does not run on {device!r}", hint='give device="CPU"')
        return Prepared(model, options.get("threads"))

    @classmethod
    def run_model(
        cls, model: onnx.ModelProto, inputs: Any, device: str = "CPU", **options: Any
    ) -> tuple[np.ndarray[Any, Any], ...]:
        """The outputs of one run; raises as `prepare` and Prepared.run."""
        return cls.prepare(model, device, **options).run(inputs)

    @classmethod
    def run_node(
        cls,
        node: onnx.NodeProto,
        inputs: Any,
        device: str = "CPU",
        outputs_info: Sequence[tuple[Any, tuple[int, ...]]] | None = None,
        **options: Any,
    ) -> tuple[np.ndarray[Any, Any], ...]:
        """The outputs of one node for arrays in the order of its inputs, each named once, absent ones left out.

        outputs_info: element type and shape of each output; inferred where not given.
        options: `opset_version` of the node, the newest where not given; and those of `prepare`.
        """
        opset = options.pop("opset_version", onnx.defs.onnx_opset_version())
        return cls.run_model(_model_of_node(node, list(inputs), outputs_info, opset), inputs, device, **options)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether models run on "CPU", "CUDA", "CUDA:1": the CPU alone."""
        return device.partition(":")[0] == "CPU"


is_compatible = Backend.is_compatible
prepare = Backend.prepare
run_model = Backend.run_model
run_node = Backend.run_node
supports_device = Backend.supports_device


def _input_names(model: onnx.ModelProto) -> list[str]:
    """The inputs that a run must give: those without an initializer, which old exporters list as inputs too."""
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    return [entry.name for entry in model.graph.input if entry.name not in constants]


def _gathered(entry: onnx.ValueInfoProto, results: Mapping[str, np.ndarray[Any, Any]]) -> Any:
    """One output of the model: an array, or of a sequence a list of them."""
    if kind_of(entry) not in ("sequence", "optional"):
        return results[entry.name]
    items = [results[name] for name in elements_of(entry.name, results)]
    holds_tensor = kind_of(entry) == "optional" and entry.type.optional_type.elem_type.HasField("tensor_type")
    return items[0] if holds_tensor else items


def _model_of_node(
    node: onnx.NodeProto,
    inputs: Sequence[Any],
    outputs_info: Sequence[tuple[Any, tuple[int, ...]]] | None,
    opset: int,
) -> onnx.ModelProto:
    names = list(dict.fromkeys(name for name in node.input if name))
    if len(names) != len(inputs):
        raise InputError(f"{len(inputs)} arrays given for the inputs {', '.join(names)} of {node.op_type}")
    arrays = [np.asarray(value) for value in inputs]
    entries = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in zip(names, arrays, strict=True)
    ]
    outputs = [name for name in node.output if name]
    if outputs_info is None:
        results = [onnx.ValueInfoProto(name=name) for name in outputs]
    else:
        results = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
            for name, (dtype, shape) in zip(outputs, outputs_info, strict=True)
        ]
    graph = helper.make_graph([node], node.op_type, entries, results)
    model = helper.make_model(graph, opset_imports=[helper.make_operatorsetid(node.domain, opset)])
    return onnx.shape_inference.infer_shapes(model)


def _computes(lowered: LoweredModel) -> bool:
    """Whether an output depends on a parameter: what nothing depends on has been removed."""
    main = lowered.module["main"]
    parameters = set(main.params)
    used: list[relax.Var] = []
    relax.analysis.post_order_visit(
        main.body, lambda expr: used.append(expr) if isinstance(expr, relax.Var) and expr in parameters else None
    )
    return bool(used)
