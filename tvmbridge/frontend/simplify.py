"""Folds constants and batch norms, drops dead nodes and merges equal ones, with onnxscript's optimizer."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import numpy as np
import onnx

from tvmbridge.errors import reason
from tvmbridge.frontend.sizes import makes_large_constants
from tvmbridge.frontend.walk import graphs, nodes, opset

_ALLOWZERO = 14  # the op-set from which on Reshape has that attribute
_logger = logging.getLogger(__name__)


def simplify(model: onnx.ModelProto) -> onnx.ModelProto:
    """Before: static inputs, no local functions. After: an equal model, same inputs and outputs, usually far smaller.

    The model stays as it is where the optimizer fails, of which a warning is logged, and where it would compute large
    constants: the importer may still take it.
    """
    from onnxscript import optimizer  # a second to import: only when a model is there to simplify

    if any(_is_misread(node) for node in nodes(model)) or makes_large_constants(model):
        return model
    names = [entry.name for entry in (*model.graph.input, *model.graph.output)]
    try:
        with np.errstate(all="ignore"), _quiet_optimizer():  # weights that overflow do so in every program
            simplified = optimizer.optimize(model)
    except Exception as exc:  # a rewrite rule or the reference evaluator may raise anything on an odd graph
        _logger.warning("%s is not simplified: %s", model.graph.name or "the model", reason(exc))
        return model
    if names != [entry.name for entry in (*simplified.graph.input, *simplified.graph.output)]:
        _logger.warning("%s is not simplified: its inputs or outputs would change", model.graph.name or "the model")
        return model
    if not _is_whole(simplified):
        _logger.info("%s is not simplified: the optimizer loses a value", model.graph.name or "the model")
        return model
    for node in nodes(simplified):
        if node.op_type == "Loop" and len(node.input) == 1:
            node.input.append("")  # the optimizer cuts absent inputs off at the end, and onnx's inference counts on two
        if node.op_type == "Reshape" and not node.domain and (opset(simplified) or 1) < _ALLOWZERO:
            del node.attribute[:]  # the optimizer writes the attribute down for any op-set
    return simplified


def _is_whole(model: onnx.ModelProto) -> bool:
    """Whether something makes whatever is read: of two equal constants that it makes, the optimizer may lose both."""
    made = {""}
    for graph in graphs(model):
        made.update(entry.name for entry in (*graph.input, *graph.initializer))
        made.update(entry.values.name for entry in graph.sparse_initializer)
    made.update(name for node in nodes(model) for name in node.output)
    return all(name in made for node in nodes(model) for name in node.input)


@contextlib.contextmanager
def _quiet_optimizer() -> Iterator[None]:
    """Without the optimizer's warnings of what it leaves as it is, which nobody can act on."""
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _is_misread(node: onnx.NodeProto) -> bool:
    """Whether the optimizer drops an attribute (a batch norm's mode, how a CastLike rounds), or draws once for all.

    Of a ScatterND to all places it takes the updates, also where they are to be added or multiplied.
    """
    if node.op_type == "Bernoulli":
        return True
    if node.op_type == "ScatterND":
        return any(entry.name == "reduction" and entry.s != b"none" for entry in node.attribute)
    if node.op_type == "CastLike":
        return any(entry.name in ("saturate", "round_mode") for entry in node.attribute)
    return node.op_type == "BatchNormalization" and (
        any(entry.name == "training_mode" and entry.i for entry in node.attribute) or any(node.output[1:])
    )
