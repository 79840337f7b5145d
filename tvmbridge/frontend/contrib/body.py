"""How a body is written down: in ONNX's text format, from what is known of one node."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tvmbridge.frontend.operator import Operator

# The signature and the nodes of one operator, in ONNX's text format. Absent inputs may be read: they stay absent.
Writer = Callable[[Operator], str]


def body(inputs: str, outputs: str, *lines: str | None) -> str:
    """A function's text. inputs, outputs: names with commas between. lines: a node each; None is left out."""
    nodes = "\n".join(line for line in lines if line is not None)
    return f"({inputs}) => ({outputs})\n{{\n{nodes}\n}}"


def integers(name: str, values: Iterable[int]) -> str:
    """A node that makes a vector of int64."""
    return f"{name} = Constant <value_ints = [{', '.join(str(int(value)) for value in values)}]> ()"


def number(name: str, value: float) -> str:
    """A node that makes a float32 of rank 0."""
    return f"{name} = Constant <value_float = {float(value)!r}> ()"


def transposed(name: str, source: str, axes: Iterable[int]) -> str:
    """A node that permutes axes."""
    return f"{name} = Transpose <perm = [{', '.join(map(str, axes))}]> ({source})"


def activated(op: Operator, result: str, source: str, kind: str, alpha: float | None, beta: float | None) -> str:
    """A node of one of the activations that ONNX Runtime fuses into what comes before."""
    given = {"alpha": alpha, "beta": beta}
    takes = {"LeakyRelu": ("alpha",), "HardSigmoid": ("alpha", "beta"), "Elu": ("alpha",), "Clip": ()}.get(kind, ())
    if kind not in ("Relu", "Sigmoid", "Tanh", "Softplus", "Softsign", "LeakyRelu", "HardSigmoid", "Elu"):
        op.refuse(f"its activation {kind!r} is not known")
    set_ones = [f"{name}: float = {float(given[name])!r}" for name in takes if given[name] is not None]  # type: ignore[arg-type]
    return f"{result} = {kind} {'<' + ', '.join(set_ones) + '>' if set_ones else ''} ({source})"
