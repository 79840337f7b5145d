"""Walks the ONNX graph with every shape static, as one run would, and writes down in Relax what it computes.

What is known is evaluated on the way, branches and loops are decided, sequences are lists: Relax sees tensors only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
import tvm
from tvm import relax

from tvmbridge.errors import ModelError, UnboundValueError, UnsupportedOperatorError, is_interrupt, reason
from tvmbridge.frontend.converters import find_converter
from tvmbridge.frontend.narrow_types import is_exact, rounded
from tvmbridge.frontend.operator import CARRIERS, Operator, Tensor, Value, carrier, static_shape
from tvmbridge.frontend.trace import control_flow, sequences, tvm_importer
from tvmbridge.frontend.trace.bodies import Bodies, Surroundings
from tvmbridge.frontend.trace.boundary import input_specs, output_spec, output_tensors, storage, stored, traced_input
from tvmbridge.frontend.trace.fold import Folder
from tvmbridge.frontend.trace.function_bodies import bind_attributes, find_body, without_absent
from tvmbridge.frontend.trace.inference import infer_results
from tvmbridge.frontend.trace.node_values import (
    collect_reads,
    default_attribute,
    read_array,
    read_attribute,
    read_constant,
    reads_of_graphs,
)
from tvmbridge.frontend.walk import STANDARD_DOMAINS, label
from tvmbridge.signature import ModelSignature, TensorSpec

_MOST_IN_BODIES = 50_000  # nodes of branches and loops, as often as they are traced, and what they are written out to
Scope = dict[str, Value]


def trace(model: onnx.ModelProto) -> tuple[tvm.IRModule, ModelSignature]:
    """A Relax module whose "main" takes the graph's inputs in order, and the signature with the ONNX names.

    model: its inputs with static shapes. Raises UnsupportedOperatorError with every node that cannot be converted,
    UnboundValueError where an input that decides a shape is not bound, ModelError where the graph contradicts itself.
    """
    graph = model.graph
    inputs = input_specs(graph)
    builder = relax.BlockBuilder()
    params = [
        relax.Var(f"input{index}", relax.TensorType(spec.shape, storage(spec.dtype)))
        for index, spec in enumerate(inputs)
    ]
    try:
        with builder.function("main", params=params):
            with builder.dataflow():
                results = _trace_graph(builder, model, dict(zip(inputs, params, strict=True)))
                outputs = tuple(output_spec(entry, tensor) for entry, tensor in results)
                exprs = [stored(builder, tensor) for _, tensor in results]
                made = builder.emit_output(exprs[0] if len(exprs) == 1 else relax.Tuple(exprs))
            builder.emit_func_output(made)
    except BaseException:
        builder._end_block()  # the function's scope leaves its last block open, of which TVM warns on stderr
        raise
    return builder.get(), ModelSignature(inputs, outputs)


def _trace_graph(
    builder: relax.BlockBuilder, model: onnx.ModelProto, params: Mapping[TensorSpec, relax.Var]
) -> list[tuple[onnx.ValueInfoProto, Tensor]]:
    """The graph's outputs, each tensor of a sequence by itself."""
    tracer = _Tracer(builder, model.graph)
    scope = tracer.constants(model.graph)
    scope.update({spec.name: traced_input(builder, spec, param) for spec, param in params.items()})
    opsets = {("" if e.domain in STANDARD_DOMAINS else e.domain): e.version for e in model.opset_import}
    tracer.run(model.graph.node, scope, opsets)
    tracer.raise_refused()
    results = [result for entry in model.graph.output for result in output_tensors(entry, scope)]
    if not results:
        raise ModelError("its outputs are empty sequences: nothing is left to compute")
    return results


class _Tracer:
    """The state of one trace: where expressions are written to, and what was refused so far."""

    def __init__(self, builder: relax.BlockBuilder, graph: onnx.GraphProto) -> None:
        self._builder = builder
        self._refused: list[UnsupportedOperatorError] = []
        self._read = {entry.name for entry in graph.output}
        collect_reads(graph.node, self._read)
        self._folder = Folder(sum(len(tensor.raw_data) for tensor in graph.initializer))
        self._around = Surroundings()
        self._depth, self._in_bodies = 0, 0  # of the bodies around the node that is traced; nodes traced in any so far

    def constants(self, graph: onnx.GraphProto) -> Scope:
        """The graph's own initializers."""
        return {tensor.name: Tensor.known(read_array(tensor)) for tensor in graph.initializer}

    def run(self, nodes: Sequence[onnx.NodeProto], scope: Scope, opsets: dict[str, int]) -> None:
        """Trace nodes in order; their results enter the scope."""
        for node in nodes:
            self._in_bodies += self._depth > 0
            for name, value in zip(node.output, self._trace(node, scope, opsets), strict=False):
                if name and value is not None:
                    scope[name] = value

    def raise_refused(self) -> None:
        """Raise one UnsupportedOperatorError for all that were met."""
        if len(self._refused) == 1:
            raise self._refused[0]
        if self._refused:
            operators = tuple(line for error in self._refused for line in error.operators)
            raise UnsupportedOperatorError(
                f"{len(operators)} operators are not supported:\n" + "\n".join(f"  {line}" for line in operators),
                operators=operators,
                hint=self._refused[0].hint,
            )

    def _trace(self, node: onnx.NodeProto, scope: Scope, opsets: dict[str, int]) -> Sequence[Value | None]:
        op = self._operator(node, scope, opsets)
        try:
            return self._guarded(op, scope, opsets)
        except UnsupportedOperatorError as exc:
            self._refused.append(exc)
            stand_ins = self._stand_ins(op)
            if stand_ins is None:
                self.raise_refused()
            return stand_ins or ()

    def _guarded(self, op: Operator, scope: Scope, opsets: dict[str, int]) -> Sequence[Value | None]:
        try:
            return self._values(op, scope, opsets)
        except (ModelError, KeyboardInterrupt):
            raise
        except Exception as exc:  # what TVM's operators and NumPy raise where a rule did not foresee the model
            if is_interrupt(exc):
                raise KeyboardInterrupt from exc
            op.refuse(f"the import fails on it: {reason(exc)}")

    def _stand_ins(self, op: Operator) -> list[Value | None] | None:
        """Zeros of the right types, so that the trace goes on and finds all that is refused."""
        found: list[Value | None] = []
        for position, result in enumerate(op.results):
            shape = static_shape(result)
            if shape is None:
                return None
            dtype = op.result_type(position)
            found.append(Tensor(self._builder.emit(relax.op.zeros(shape, carrier(dtype))), dtype))
        return found

    def _operator(self, node: onnx.NodeProto, scope: Scope, opsets: dict[str, int]) -> Operator:
        domain = "" if node.domain in STANDARD_DOMAINS else node.domain
        operands = tuple(_operand(name, node, scope) for name in node.input)
        version = opsets.get(domain, 1)
        attributes, results, since = {}, (None,) * len(node.output), version
        if onnx.defs.has(node.op_type, version, domain):
            schema = onnx.defs.get_schema(node.op_type, version, domain)
            since = schema.since_version
            for name, attribute in schema.attributes.items():
                if attribute.default_value.name:
                    attributes[name] = read_attribute(attribute.default_value)
            results = infer_results(schema, node, operands, scope, opsets)
        attributes.update({entry.name: read_attribute(entry) for entry in node.attribute})
        used = tuple(bool(name) and name in self._read for name in node.output)
        return Operator(
            node.op_type, domain, since, label(node), self._builder, operands, attributes, results, used, node, version
        )

    def _values(self, op: Operator, scope: Scope, opsets: dict[str, int]) -> Sequence[Value | None]:
        if op.op_type == "Identity" and not op.domain:
            return op.operands
        if op.op_type == "Constant" and not op.domain:
            return (read_constant(op),)

        def trace_body(body: onnx.GraphProto, given: Mapping[str, Value], around: Surroundings) -> list[Value]:
            self._in_bodies += 1
            if self._in_bodies > _MOST_IN_BODIES:
                op.refuse(f"branches and loops would unroll into more than {_MOST_IN_BODIES} nodes")
            inner = {**scope, **self.constants(body), **given}
            collect_reads(body.node, self._read)
            self._read.update(entry.name for entry in body.output)
            before, self._around = self._around, around
            self._depth += 1
            try:
                self.run(body.node, inner, opsets)
            finally:
                self._depth -= 1
                self._around = before
            return [inner[entry.name] for entry in body.output]

        outer = {name: scope[name] for name in sorted(reads_of_graphs(op.node)) if name in scope}
        return (
            control_flow.resolve(op, Bodies(trace_body, outer, self._around))
            or sequences.resolve(op)
            or self._folder.fold(op, opsets)
            or self._converted(op, scope, opsets)
        )

    def _converted(self, op: Operator, scope: Scope, opsets: dict[str, int]) -> Sequence[Value | None]:
        converter = find_converter(op.op_type, op.domain)
        made = converter(op) if converter is not None else None
        refusal: UnsupportedOperatorError | None = None
        if made is None:
            try:
                made = tvm_importer.convert(op)
            except UnsupportedOperatorError as exc:
                refusal = exc
        if made is not None:
            exprs = [made] if isinstance(made, relax.Expr) else list(made)
            return [self._value(op, position, expr) for position, expr in enumerate(exprs[: len(op.node.output)])]
        body = find_body(op)
        if body is not None:
            return self._body(op, body, scope, opsets)
        if refusal is not None:
            raise refusal
        op.refuse("it has no converter")

    def _body(
        self, op: Operator, body: onnx.FunctionProto, outer: Scope, outer_opsets: dict[str, int]
    ) -> list[Value | None]:
        """The results of the nodes that ONNX defines the operator by, with the graphs among its attributes in them.

        outer: what those graphs may read. outer_opsets: of domains whose version the body does not name.
        """
        given = {entry.name: entry for entry in op.node.attribute}
        for name in op.attributes:
            if name not in given and name in {*body.attribute, *(entry.name for entry in body.attribute_proto)}:
                given[name] = default_attribute(name, op)
        for entry in body.attribute_proto:
            given.setdefault(entry.name, entry)
        operands = {name: value for name, value in zip(body.input, op.operands, strict=False) if value is not None}
        scope = {name: outer[name] for name in reads_of_graphs(op.node) if name in outer} | operands
        named = {("" if e.domain in STANDARD_DOMAINS else e.domain): e.version for e in body.opset_import}
        opsets = {**outer_opsets, **named}
        absent = set(body.input) - operands.keys()
        nodes = [without_absent(bind_attributes(node, given), absent) for node in body.node]
        read = self._read
        self._read = {name for name, used in zip(body.output, op.used, strict=False) if used}
        collect_reads(nodes, self._read)
        try:
            self.run(nodes, scope, opsets)
        finally:
            self._read = read
        return [scope.get(name) for name in body.output]

    def _value(self, op: Operator, position: int, expr: relax.Expr | None) -> Tensor | None:
        """A converter's result, held against what ONNX says of it."""
        if expr is None:
            return None
        expr = self._builder.normalize(expr)
        if not isinstance(expr, (relax.Var, relax.Tuple)) and not isinstance(expr, tvm.ir.GenericConst):
            expr = self._builder.emit(expr)
        result = op.results[position] if position < len(op.results) else None
        known = result is not None and result.HasField("tensor_type") and result.tensor_type.elem_type
        dtype = op.result_type(position) if known else str(getattr(expr.ty, "dtype", "?"))
        shape = _shape(expr)
        if shape is None:
            raise UnboundValueError(
                f"the shape that {op.op_type} {op.name!r} gives is known only at run time",
                inputs=tuple(sorted(_inputs(op))),
                hint="export the model so that every shape follows from the shapes of the inputs",
            )
        wanted = static_shape(result)
        if str(expr.ty.dtype) != carrier(dtype) or (wanted is not None and wanted != shape):
            op.refuse(f"it would be {expr.ty.dtype}{list(shape)}, and in ONNX is {dtype}{list(wanted or ())}")
        if isinstance(expr, tvm.ir.GenericConst) and dtype not in CARRIERS:
            return Tensor.known(expr.value.numpy())
        if dtype in CARRIERS and not is_exact(op.op_type):
            expr = rounded(self._builder, expr, dtype)
        return Tensor(expr, dtype, inputs=_inputs(op))


def _inputs(op: Operator) -> frozenset[str]:
    return frozenset().union(*(value.inputs for value in op.operands if isinstance(value, Tensor)))


def _shape(expr: relax.Expr) -> tuple[int, ...] | None:
    shape = expr.ty.shape if isinstance(expr.ty, relax.TensorType) else None
    if not isinstance(shape, relax.ShapeExpr) or not all(isinstance(axis, tvm.tirx.IntImm) for axis in shape.values):
        return None
    return tuple(int(axis) for axis in shape.values)


def _operand(name: str, node: onnx.NodeProto, scope: Scope) -> Value | None:
    if not name:
        return None
    if name not in scope:
        if node.op_type in ("Optional", "OptionalHasElement"):
            return None
        raise ModelError(f"{node.op_type} {label(node)!r} reads {name!r}, which nothing makes")
    return scope[name]
