"""Writes what a search has found as files that show it again: a model, its inputs, what they should give."""

from __future__ import annotations

from pathlib import Path

import onnx

from tvmbridge.atomic_file import replacing
from tvmbridge.bisect.check import write_model
from tvmbridge.bisect.search import Finding
from tvmbridge.errors import OutputError
from tvmbridge.frontend.walk import label, opset
from tvmbridge.verify.inputs import write_arrays

MODEL, INPUTS, EXPECTED, NOTE = "model.onnx", "inputs.npz", "expected.npz", "finding.txt"

_SAID = {
    "node": "wrong by itself: on ONNX Runtime's values it gives others, or fails",
    "together": "right one by one, and wrong when they are compiled together",
    "rounding": "all right on what they are given: what they round adds up",
}


def require_folder(folder: Path) -> None:
    """OutputError where the folder holds something else than an earlier reproduction, before minutes of work."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} exists and is no folder", hint="name another with -o")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / NOTE).exists():
        raise OutputError(f"{folder} holds other files", hint="name another folder with -o")


def write_reproduction(finding: Finding, folder: Path, command: str) -> None:
    """Write model, inputs, expected outputs and a note into the folder; raises OutputError."""
    require_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / NOTE) as stream:
            stream.write(f"{describe(finding)}\n\nAgain:\n{command}\n".encode("utf-8", "replace"))
        write_model(finding.part.model, folder / MODEL)
    except OSError as exc:
        raise OutputError(f"cannot write {folder}: {exc.strerror or exc}") from exc
    write_arrays(folder / INPUTS, dict(finding.part.feeds))
    write_arrays(folder / EXPECTED, dict(finding.check.expected))


def describe(finding: Finding) -> str:
    """The finding in words: which nodes, what they read, how far off."""
    names = [name_node(node, finding.part.model) for node in finding.part.nodes]
    lines = [f"{', '.join(_shorten(names))}: {_SAID[finding.kind]}"]
    lines += [f"  reads {each}" for each in _shorten([str(spec) for spec in finding.inputs])]
    if finding.check.problem is not None:
        lines.append(f"  {finding.check.problem}")
    for output in finding.check.outputs:
        how = output.mismatch or f"{output.max_relative:.2e} relative, {output.max_absolute:.2e} absolute"
        lines.append(f"  {output.name}: {how}")
    return "\n".join(lines)


def _shorten(names: list[str]) -> list[str]:
    return names if len(names) <= 8 else [*names[:4], f"{len(names) - 7} more", *names[-3:]]


def name_node(node: onnx.NodeProto, model: onnx.ModelProto) -> str:
    """ "Conv 'conv1' (op-set 17)"."""
    kind = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    return f"{kind} {label(node)!r} (op-set {opset(model, node.domain)})"
