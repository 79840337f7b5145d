"""Models that are broken on purpose: what a damaged file, a bad exporter or somebody malicious may make of a valid one.

Each mutation is a function of a model, which it may change, and a random generator, and gives the model's bytes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import onnx
from onnx import AttributeProto, TensorProto, helper

HUGE = (2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1)
ODD = (-1, -7, 0, *HUGE)

Mutation = Callable[[onnx.ModelProto, random.Random], bytes]


def flip_bytes(model: onnx.ModelProto, draw: random.Random) -> bytes:
    data = bytearray(model.SerializeToString())
    for _ in range(draw.randint(1, 4)):
        data[draw.randrange(len(data))] = draw.randrange(256)
    return bytes(data)


def flip_structure(model: onnx.ModelProto, draw: random.Random) -> bytes:
    """As `flip_bytes`, and mostly in what is no weight."""
    kept = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in model.graph.initializer]
    del model.graph.initializer[:]
    data = bytearray(model.SerializeToString())
    for _ in range(draw.randint(1, 3)):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    try:
        changed = onnx.ModelProto.FromString(bytes(data))
        changed.graph.initializer.extend(kept)
        return changed.SerializeToString()
    except Exception:
        return bytes(data)


def splice(model: onnx.ModelProto, draw: random.Random) -> bytes:
    """Repeat, drop or move a stretch of the file."""
    data = model.SerializeToString()
    start, end = sorted(draw.sample(range(len(data)), 2))
    end = min(end, start + 64)
    to = draw.randrange(len(data))
    return draw.choice([data[:start] + data[end:], data[:end] + data[start:], data[:to] + data[start:end] + data[to:]])


def truncate(model: onnx.ModelProto, draw: random.Random) -> bytes:
    data = model.SerializeToString()
    return data[: draw.randrange(len(data))]


def change_weight_dims(model: onnx.ModelProto, draw: random.Random) -> bytes:
    tensor = _some(model.graph.initializer, draw)
    if tensor is not None:
        if draw.random() < 0.5 and tensor.dims:
            tensor.dims[draw.randrange(len(tensor.dims))] = draw.choice(ODD)
        else:
            tensor.dims.append(draw.choice(ODD))
        if draw.random() < 0.3:
            tensor.ClearField("raw_data")
    return model.SerializeToString()


def change_weight_type(model: onnx.ModelProto, draw: random.Random) -> bytes:
    tensor = _some(model.graph.initializer, draw)
    if tensor is not None:
        tensor.data_type = draw.choice([0, *range(1, 24), 99, -1, 2**31 - 1])
    return model.SerializeToString()


def move_weight_elsewhere(model: onnx.ModelProto, draw: random.Random) -> bytes:
    """Typed fields in the place of raw bytes, too few or too many, or data in a file that there is none of."""
    tensor = _some(model.graph.initializer, draw)
    if tensor is not None:
        tensor.ClearField("raw_data")
        where = draw.randrange(4)
        if where == 0:
            tensor.float_data.extend([1.0] * draw.randint(0, 5))
        elif where == 1:
            tensor.int64_data.extend([1] * draw.randint(0, 5))
        elif where == 2:
            tensor.string_data.append(b"text")
        else:
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=draw.choice(["none.bin", "/etc/passwd", "", "../up"]))
    return model.SerializeToString()


def change_value_shape(model: onnx.ModelProto, draw: random.Random) -> bytes:
    value = _some([*model.graph.input, *model.graph.output, *model.graph.value_info], draw)
    if value is not None:
        shape = value.type.tensor_type.shape
        if shape.dim and draw.random() < 0.6:
            shape.dim[draw.randrange(len(shape.dim))].dim_value = draw.choice(ODD)
        elif draw.random() < 0.5:
            shape.dim.add().dim_value = draw.choice([1, 2, *ODD])
        else:
            value.type.tensor_type.ClearField("shape")
    return model.SerializeToString()


def change_value_type(model: onnx.ModelProto, draw: random.Random) -> bytes:
    value = _some([*model.graph.input, *model.graph.output], draw)
    if value is not None:
        how = draw.randrange(4)
        if how == 0:
            value.type.sequence_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT
        elif how == 1:
            value.ClearField("type")
        else:
            value.type.tensor_type.elem_type = draw.choice([0, *range(1, 24), 99, 2**31 - 1])
    return model.SerializeToString()


def rewire(model: onnx.ModelProto, draw: random.Random) -> bytes:
    """A node reads something else: a later value (a cycle), its own, nothing, or what nobody makes."""
    node = _some(model.graph.node, draw)
    if node is not None and node.input:
        made = [name for other in model.graph.node for name in other.output]
        wanted = draw.choice([*made, *node.output, "", "nobody makes this"])
        node.input[draw.randrange(len(node.input))] = wanted
    return model.SerializeToString()


def change_arity(model: onnx.ModelProto, draw: random.Random) -> bytes:
    node = _some(model.graph.node, draw)
    if node is not None:
        how = draw.randrange(5)
        if how == 0 and node.input:
            del node.input[draw.randrange(len(node.input)) :]
        elif how == 1:
            node.input.extend([draw.choice(["", *node.input])] * draw.randint(1, 3))
        elif how == 2 and node.output:
            del node.output[:]
        elif how == 3:
            node.output.extend(f"more{i}" for i in range(draw.randint(1, 4)))
        else:
            node.input.insert(0, "")
    return model.SerializeToString()


def duplicate_names(model: onnx.ModelProto, draw: random.Random) -> bytes:
    graph, how = model.graph, draw.randrange(5)
    if how == 0 and graph.initializer:
        graph.initializer.append(_some(graph.initializer, draw))
    elif how == 1 and graph.node:
        graph.node.append(_some(graph.node, draw))
    elif how == 2 and graph.input:
        graph.input.append(_some(graph.input, draw))
    elif how == 3 and graph.input and graph.node:
        graph.input[0].name = _some(graph.node, draw).output[0]
    elif graph.initializer and graph.node:
        graph.initializer[0].name = _some(graph.node, draw).output[0]
    return model.SerializeToString()


def change_attribute(model: onnx.ModelProto, draw: random.Random) -> bytes:
    """Another kind, another value, twice, or none."""
    nodes = [node for node in model.graph.node if node.attribute]
    node = _some(nodes, draw)
    if node is None:
        return model.SerializeToString()
    position = draw.randrange(len(node.attribute))
    attribute, how = node.attribute[position], draw.randrange(6)
    if how == 0:
        del node.attribute[position]
    elif how == 1:
        node.attribute.append(attribute)
    elif how == 2:
        attribute.type = draw.randrange(15)
    elif how == 3:
        attribute.CopyFrom(
            helper.make_attribute(attribute.name, draw.choice(["text", 1.5, float("nan"), [1.0], [3], 3]))
        )
    elif attribute.type == AttributeProto.INTS and attribute.ints:
        if how == 4:
            attribute.ints[draw.randrange(len(attribute.ints))] = draw.choice(ODD)
        else:
            del attribute.ints[draw.randrange(len(attribute.ints)) :]
    elif attribute.type == AttributeProto.INT:
        attribute.i = draw.choice(ODD)
    elif attribute.type == AttributeProto.FLOAT:
        attribute.f = draw.choice([float("nan"), float("inf"), -1.0, 1e38])
    else:
        attribute.s = b"\xff\xfe"
    return model.SerializeToString()


def change_operator(model: onnx.ModelProto, draw: random.Random) -> bytes:
    node = _some(model.graph.node, draw)
    if node is not None:
        schemas = sorted({schema.name for schema in onnx.defs.get_all_schemas()})
        node.op_type = draw.choice([*schemas, "", "NoSuchThing"])
    return model.SerializeToString()


def change_opset(model: onnx.ModelProto, draw: random.Random) -> bytes:
    how = draw.randrange(4)
    if how == 0:
        model.opset_import[0].version = draw.choice([1, 6, 8, 9, 11, 12, 13, 18, 21, *ODD])
    elif how == 1:
        del model.opset_import[:]
    elif how == 2:
        model.opset_import.append(helper.make_opsetid("", draw.choice([1, 7, 22])))
    else:
        model.ir_version = draw.choice([1, 3, 4, 99, -1])
    return model.SerializeToString()


def change_values(model: onnx.ModelProto, draw: random.Random) -> bytes:
    """Integers that decide shapes become absurd: axes, pads, sizes, slices, repeats."""
    tensors = [tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.INT64]
    tensor = _some(tensors, draw)
    if tensor is not None:
        array = onnx.numpy_helper.to_array(tensor).copy()
        if array.size:
            array.reshape(-1)[draw.randrange(array.size)] = draw.choice([1, 2, -3, *ODD])
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return model.SerializeToString()


def change_numbers(model: onnx.ModelProto, draw: random.Random) -> bytes:
    """Weights of NaN, infinity, zero and the least integer."""
    tensor = _some(model.graph.initializer, draw)
    if tensor is not None and tensor.data_type in (TensorProto.FLOAT, TensorProto.INT32, TensorProto.DOUBLE):
        array = onnx.numpy_helper.to_array(tensor).copy()
        odd = [0, -1, 1e30, float("nan"), float("inf")] if array.dtype.kind == "f" else [0, -1, -(2**31), 2**31 - 1]
        if array.size:
            array.reshape(-1)[:: draw.randint(1, 3)] = draw.choice(odd)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return model.SerializeToString()


def retype(model: onnx.ModelProto, draw: random.Random) -> bytes:
    """All values of one element type become of another, wherever that type is written."""
    entries = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    types = sorted({entry.type.tensor_type.elem_type for entry in entries} - {0})
    if types:
        old, new = draw.choice(types), draw.choice([1, 2, 3, 5, 6, 7, 9, 10, 11, 12, 13, 16])
        for entry in entries:
            if entry.type.tensor_type.elem_type == old:
                entry.type.tensor_type.elem_type = new
        for tensor in model.graph.initializer:
            if tensor.data_type == old and new != TensorProto.BFLOAT16:
                array = onnx.numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(new))
                tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return model.SerializeToString()


def resize(model: onnx.ModelProto, draw: random.Random) -> bytes:
    """An axis of an input, and those of its length in the others, become 0, 1 or some other length."""
    axes = [axis for entry in model.graph.input for axis in entry.type.tensor_type.shape.dim]
    if axes:
        old, new = draw.choice(axes).dim_value, draw.choice([0, 1, 2, 3, 7, 64, 257, 4099])
        for axis in axes:
            if axis.dim_value == old and draw.random() < 0.8:
                axis.dim_value = new
    return _without_shapes(model)


def replace_operator(model: onnx.ModelProto, draw: random.Random) -> bytes:
    """Another operator of as many inputs and without attributes, or with those that it has by the same name."""
    node, version = _some(model.graph.node, draw), onnx.defs.onnx_opset_version()
    if node is not None:
        schemas = [
            schema
            for schema in onnx.defs.get_all_schemas()
            if not schema.domain and schema.min_input <= len(node.input) <= schema.max_input and not schema.deprecated
        ]
        schema = draw.choice(sorted(schemas, key=lambda schema: schema.name))
        node.op_type = schema.name
        kept = [entry for entry in node.attribute if entry.name in schema.attributes]
        del node.attribute[:]
        node.attribute.extend(kept)
        del model.opset_import[:]
        model.opset_import.append(helper.make_opsetid("", version))
    return _without_shapes(model)


def make_attribute_up(model: onnx.ModelProto, draw: random.Random) -> bytes:
    """An attribute that the operator has, with some value of the right kind."""
    node = _some(model.graph.node, draw)
    version = max((entry.version for entry in model.opset_import if not entry.domain), default=1)
    if node is None or not onnx.defs.has(node.op_type, version, node.domain):
        return model.SerializeToString()
    attributes = onnx.defs.get_schema(node.op_type, version, node.domain).attributes
    named = _some(sorted(attributes), draw)
    number, few = draw.choice([0, 1, -1, 2, 3, 7, *ODD]), draw.randint(0, 4)
    values = {
        AttributeProto.INT: number,
        AttributeProto.INTS: [draw.choice([0, 1, 2, 3, -1, number]) for _ in range(few)],
        AttributeProto.FLOAT: draw.choice([0.0, -1.0, 0.5, 1e38, float("nan"), float("inf")]),
        AttributeProto.FLOATS: [0.5] * few,
        AttributeProto.STRING: draw.choice(["", "SAME_UPPER", "VALID", "linear", "nearest", "reflect", "tanh"]),
    }
    kind = attributes[named].type.value if named else None
    if kind in values and (values[kind] or kind not in (AttributeProto.INTS, AttributeProto.FLOATS)):
        kept = [entry for entry in node.attribute if entry.name != named]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(named, values[kind], attr_type=kind)])
    return _without_shapes(model)


def put_into_a_body(model: onnx.ModelProto, draw: random.Random) -> bytes:
    """All nodes move into the branches of an If, the body of a Loop, or a function; sometimes more than once."""
    for level in range(draw.choice([1, 1, 2, 60])):
        if model.graph.input:
            _wrap(model, draw.choice(["branch", "loop"]), f"_{level}", draw)
    return model.SerializeToString()


def _wrap(model: onnx.ModelProto, kind: str, suffix: str, draw: random.Random) -> None:
    graph = model.graph
    nodes, outputs = list(graph.node), list(graph.output)
    made = [onnx.ValueInfoProto.FromString(entry.SerializeToString()) for entry in outputs]
    if kind == "branch":
        condition, known = f"flag{suffix}", draw.random() < 0.5
        if known:
            graph.initializer.append(helper.make_tensor(condition, TensorProto.BOOL, [], [True]))
        else:
            graph.input.append(helper.make_tensor_value_info(condition, TensorProto.BOOL, []))
        body = helper.make_graph(nodes, f"body{suffix}", [], made)
        names = [entry.name for entry in outputs]
        other = _same_types(graph.input, made, f"other{suffix}")
        node = helper.make_node("If", [condition], names, then_branch=body, else_branch=other)
    else:
        trips, on = f"trips{suffix}", f"on{suffix}"
        graph.initializer.append(helper.make_tensor(trips, TensorProto.INT64, [], [draw.choice([0, 1, 3, 2**40])]))
        takes = [
            helper.make_tensor_value_info(f"i{suffix}", TensorProto.INT64, []),
            helper.make_tensor_value_info(on, TensorProto.BOOL, []),
        ]
        going = helper.make_tensor_value_info(f"more{suffix}", TensorProto.BOOL, [])
        inside = [helper.make_node("Identity", [on], [f"more{suffix}"]), *nodes]
        body = helper.make_graph(inside, f"body{suffix}", takes, [going, *made])
        node = helper.make_node("Loop", [trips, ""], [f"all{suffix}{i}" for i in range(len(outputs))], body=body)
        for position, entry in enumerate(outputs):
            entry.name = f"all{suffix}{position}"
            entry.type.tensor_type.ClearField("shape")
    del graph.node[:]
    graph.node.append(node)


def _same_types(
    inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto], name: str
) -> onnx.GraphProto:
    """A graph that gives zeros for each output, of the shape of the first input."""
    nodes = [helper.make_node("Shape", [inputs[0].name], [f"{name}_shape"])]
    for entry in outputs:
        zero = helper.make_tensor("zero", entry.type.tensor_type.elem_type or TensorProto.FLOAT, [1], [0])
        nodes.append(helper.make_node("ConstantOfShape", [f"{name}_shape"], [f"{name}_{entry.name}"], value=zero))
    results = [onnx.ValueInfoProto(name=f"{name}_{entry.name}", type=entry.type) for entry in outputs]
    return helper.make_graph(nodes, name, [], results)


def _without_shapes(model: onnx.ModelProto) -> bytes:
    """What follows from other shapes would only contradict them."""
    del model.graph.value_info[:]
    for entry in model.graph.output:
        entry.type.tensor_type.ClearField("shape")
    return model.SerializeToString()


MUTATIONS: tuple[Mutation, ...] = (
    flip_bytes,
    flip_structure,
    splice,
    truncate,
    change_weight_dims,
    change_weight_type,
    move_weight_elsewhere,
    change_value_shape,
    change_value_type,
    rewire,
    change_arity,
    duplicate_names,
    change_attribute,
    change_operator,
    change_opset,
    change_values,
    change_values,
    change_numbers,
    retype,
    resize,
    resize,
    replace_operator,
    replace_operator,
    make_attribute_up,
    make_attribute_up,
    make_attribute_up,
    put_into_a_body,
)


def _some(entries, draw):  # type: ignore[no-untyped-def]
    return draw.choice(list(entries)) if len(entries) else None
