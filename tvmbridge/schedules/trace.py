"""What a trace of schedule primitives may say: those that MetaSchedule's rules use, with operands of the right kinds.

A trace comes from a log, and a log from anywhere. TVM checks what a primitive does, but neither its operands' kinds (a
null crashes it), nor that each sampled value is given (it would draw another at every replay), nor what an annotation
asks for: others than these can drop a part of a kernel (`pragma_debug_skip_region`) or put foreign code into the
library (`pragma_import_llvm`).
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from typing import Any

from tvmbridge.schedules.index_maps import render_index_map
from tvmbridge.schedules.tensor_intrinsics import tvm_name

_MAX_UNROLL = 1024  # MetaSchedule's highest; the code grows with it
_MAX_NUMBER = 1 << 31

# A step's operands as text, a letter each: block, loop, p(lace to compute at: a loop, or a mark that is none, which
# crashes what wants one), v(alue sampled), i(nteger above zero), z(ero or below: extents divided by it crash), float,
# string, n(othing), (list).
_BLOCK, _LOOP, _PLACE, _VALUE = "b", "l", "p", "v"


@dataclasses.dataclass(frozen=True)
class _Form:
    """What one primitive takes, as patterns over the letters, and the kind of all its results."""

    inputs: str = ""
    attributes: str = ""
    results: str = ""
    decision: str = ""


_PRIMITIVES = {
    "GetSBlock": _Form("", "ss", _BLOCK),
    "GetLoops": _Form("b", "", _LOOP),
    "GetChildBlocks": _Form("b", "", _BLOCK),
    "GetProducers": _Form("b", "", _BLOCK),
    "GetConsumers": _Form("b", "", _BLOCK),
    "SampleCategorical": _Form("", r"\([iz]+\)\(f+\)", _VALUE, "[iz]"),
    "SamplePerfectTile": _Form("l", "ii", _VALUE, r"\(i+\)"),
    "SampleComputeLocation": _Form("b", "", _PLACE, "[iz]"),
    "Split": _Form("l[vin]+", "[iz][iz]", _LOOP),
    "Fuse": _Form("l+", "[iz]", _LOOP),
    "Reorder": _Form("l+"),
    "AddUnitLoop": _Form("[bl]", "", _LOOP),
    "Parallel": _Form("l"),
    "Vectorize": _Form("l"),
    "ComputeInline": _Form("b"),
    "ReverseComputeInline": _Form("b"),
    "ComputeAt": _Form("b[lp]", "[iz][iz]"),
    "ReverseComputeAt": _Form("b[lp]", "[iz][iz]"),
    "CacheRead": _Form(r"b\(b*\)", "[iz]s", _BLOCK),
    "CacheWrite": _Form(r"b\(b*\)", "[iz]s", _BLOCK),
    "RFactor": _Form("l", "[iz]", _BLOCK),
    "DecomposeReduction": _Form("bl", "", _BLOCK),
    "Annotate": _Form(r"[bl]([vizs]|\([iz]+\))", "s"),
    "Unannotate": _Form("[bl]", "s"),
    "EnterPostproc": _Form(),
}
_GPU_PRIMITIVES = {**_PRIMITIVES, "Bind": _Form("l", "s"), "SetScope": _Form("b", "[iz]s")}
_ANNOTATIONS = r"meta_schedule\.\w+|pragma_auto_unroll_max_step|pragma_unroll_explicit"
_GPU_ANNOTATIONS = rf"{_ANNOTATIONS}|software_pipeline_\w+"


def render_trace(trace: object) -> str:
    """The JSON text of a trace of plain values or of TVM's, the same text for the same trace."""
    return json.dumps(_plain(trace), separators=(",", ":"))


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    value = getattr(value, "value", value)  # of TVM's numbers
    if isinstance(value, str):
        return render_index_map(value) if value.startswith("{") else tvm_name(value)
    return int(value) if isinstance(value, bool) else value  # TVM writes either for a flag


def parse_trace(text: str, *, gpu: bool) -> list[Any]:
    """The trace of a JSON text, as plain values that TVM can be given; ValueError says what is wrong with it."""
    steps, decisions = _load(text)
    named = [(str(name), inputs, attributes, results) for name, inputs, attributes, results in steps]
    decided = dict(decisions)
    primitives, annotations = (_GPU_PRIMITIVES, _GPU_ANNOTATIONS) if gpu else (_PRIMITIVES, _ANNOTATIONS)
    kinds: dict[str, str] = {}
    for index, (name, inputs, attributes, results) in enumerate(named):
        form = primitives.get(name)
        if form is None:
            raise ValueError(f"step {index} of the trace: the primitive {name} is not replayed")
        decision = [decided.pop(index)] if index in decided else []
        if not (
            _matches(form.inputs, inputs, kinds)
            and _matches(form.attributes, attributes, None)
            and _matches(form.decision, decision, None)
            and _are_names(results, form.results)
        ):
            raise ValueError(f"step {index} of the trace: {name} does not take these operands")
        if name == "Annotate":
            _check_annotation(attributes[0], inputs[1], annotations)
        kinds.update((result, form.results) for result in results)
    if decided:
        raise ValueError("not a trace: decisions of no step")
    return [steps, decisions]


def is_for_tensor_cores(text: str) -> bool:
    """Whether the trace multiplies on tensor cores, and so is `parse_decisions`' to read."""
    return any(name == "Tensorize" for name, *_ in _load(text)[0])


def parse_decisions(text: str) -> tuple[list[Any], dict[int, Any]]:
    """Of a trace for tensor cores, the steps up to EnterPostproc, and what was sampled at each of them that samples.

    The steps may be any: only what was sampled is checked, here and as `parse_trace` does.
    """
    steps, decisions = _load(text)
    steps = list(itertools.takewhile(lambda step: step[0] != "EnterPostproc", steps))
    decided = {index: value for index, value in decisions if 0 <= index < len(steps)}
    for index, (name, *_) in enumerate(steps):
        form = _PRIMITIVES.get(str(name), _Form())
        if not _matches(form.decision, [decided[index]] if index in decided else [], None):
            raise ValueError(f"step {index} of the trace: {name} does not sample this")
    return steps, decided


def _load(text: str) -> tuple[list[list[Any]], list[tuple[int, Any]]]:
    """Steps of four parts, and decisions by the number of their step."""
    try:
        steps, decisions = json.loads(text)
        parts = [[name, inputs, attributes, results] for name, inputs, attributes, results in steps]
        return parts, [(int(index), value) for index, value in decisions]
    except (ValueError, TypeError, RecursionError) as exc:
        raise ValueError(f"not a trace: {exc}") from exc


def _matches(pattern: str, operands: object, kinds: dict[str, str] | None) -> bool:
    return isinstance(operands, list) and re.fullmatch(pattern, _letters(operands, kinds)) is not None


def _letters(operands: list[Any], kinds: dict[str, str] | None) -> str:
    return "".join(_letter(operand, kinds) for operand in operands)


def _letter(operand: object, kinds: dict[str, str] | None) -> str:
    """One operand's kind; "?" where it is of none. kinds: of the results so far; None where no result can stand."""
    if isinstance(operand, int):
        return "?" if abs(operand) >= _MAX_NUMBER else "i" if operand > 0 else "z"
    if isinstance(operand, float):
        return "f" if 0 <= operand <= 1 else "?"  # all of them are probabilities
    if isinstance(operand, list):
        return f"({_letters(operand, kinds)})"
    if not isinstance(operand, str):
        return "?"
    if kinds is None:
        return "s"
    if operand == "None":
        return "n"
    return "s" if re.fullmatch(r'"[^"\\]*"', operand) else kinds.get(operand, "?")  # a literal has quotes of its own


def _are_names(results: object, kind: str) -> bool:
    if not isinstance(results, list) or (results and not kind):
        return False
    return all(isinstance(result, str) and re.fullmatch(r"[a-z]\d+", result) for result in results)


def _check_annotation(key: str, value: object, annotations: str) -> None:
    if not re.fullmatch(annotations, key):
        raise ValueError(f"the annotation {key} is not replayed")
    if key.startswith("pragma_") and not (isinstance(value, int) and value <= _MAX_UNROLL):
        raise ValueError(f"{key} is not a number up to {_MAX_UNROLL}")
