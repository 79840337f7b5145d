"""The search: bisection over the topological order, then the smallest part that is wrong on ONNX Runtime's values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import onnx

from tvmbridge.bisect.check import Check, Run, check_model, compare, differing
from tvmbridge.bisect.cut import Graph, Lookup, Part, cut, missing, needed, reads
from tvmbridge.bisect.values import ReferenceValues
from tvmbridge.errors import ModelError, TvmBridgeError
from tvmbridge.signature import TensorSpec
from tvmbridge.verify.reference import ReferenceSession

Kind = Literal["node", "together", "rounding"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """The smallest part of a model that goes wrong.

    kind: "node": one node (or few, where what lies between is no tensor) that is wrong although it is given right
    values; "together": nodes that are right one by one and wrong when they are compiled together; "rounding": every
    node is right on what it is given, and what they round adds up.
    tensors: the outputs that differ, in order; all of them where the part fails. inputs: of the nodes, weights too.
    check: of this part.
    """

    kind: Kind
    part: Part
    tensors: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    check: Check


class Search:
    """One search in a graph; `values` are the reference's for the inputs that it is searched with.

    on_check: told the part and how it did, of each that was tried.
    """

    def __init__(
        self,
        graph: Graph,
        values: ReferenceValues,
        *,
        tolerance: float | None,
        run: Run,
        on_check: Callable[[Part, Check], None],
    ) -> None:
        self._graph, self._nodes, self._values = graph, graph.nodes, values
        self._tolerance, self._run, self._on_check = tolerance, run, on_check
        self._index = {name: i for i, node in enumerate(graph.nodes) for name in node.output if name}

    def check_whole(self) -> Check:
        """The graph with its own outputs; ModelError where NumPy holds none of them."""
        outputs = [name for name in self._graph.outputs if name in self._values]
        if not outputs:
            raise ModelError("no output of the model is a tensor that can be compared")
        return self._check(self._part(self._nodes, outputs, self._values.get))

    def find(self, whole: Check) -> Finding:
        """What is wrong in a graph of which `whole` says that something is."""
        start, end, bad = self._bisect(whole)
        names = self._bad_names(bad)
        here = tuple(name for name in names if self._index[name] >= start) or names
        part, check = self._grow(end, here, bad)
        kind: Kind = "node" if list(part.nodes) == self._from(end - 1, end, here) else "together"
        if kind == "together" and check.status == "differs":
            kind, part, check = self._explain(part, check)
        return Finding(kind, part, self._bad_names(check), self._inputs(part), check)

    def _bisect(self, whole: Check) -> tuple[int, int, Check]:
        """Two places in the order: what lives at the first is right, at the second bad; and how bad that is."""
        start, end, bad = 0, len(self._nodes), whole
        places = [place for place in range(1, end) if self._is_place(place)]
        while between := [place for place in places if start < place < end]:
            middle = between[len(between) // 2]
            names = self._living(middle)
            check = self._check(self._part(needed(self._nodes[:middle], names), names, self._values.get))
            if check.status == "right":
                start = middle
            elif check.status == "differs" or check.status == bad.status:
                end, bad = middle, check
            else:
                places.remove(middle)  # it fails only because of where it was cut
        return start, end, bad

    def _grow(self, end: int, outputs: Sequence[str], bad: Check) -> tuple[Part, Check]:
        """The nodes before `end` that `outputs` need, from as late a place as still makes them bad."""
        tried: dict[int, tuple[Part, Check]] = {}

        def is_bad(place: int) -> bool:
            part = self._part(self._from(place, end, outputs), outputs, self._values.get)
            same = next((known for known in tried.values() if known[0].nodes == part.nodes), None)
            tried[place] = same or (part, self._check(part))
            return tried[place][1].is_bad if bad.status == "fails" else tried[place][1].status == "differs"

        right, step, place = end, 1, end - 1
        while not is_bad(place):
            if place == 0:  # only as long as all that lives at `end` is kept
                names = tuple(bad.expected)
                return self._part(needed(self._nodes[:end], names), names, self._values.get), bad
            right, place, step = place, max(0, end - 1 - step), 2 * step
        while right - place > 1:
            middle = (place + right) // 2
            if is_bad(middle):
                place = middle
            else:
                right = middle
        return tried[place]

    def _explain(self, part: Part, check: Check) -> tuple[Kind, Part, Check]:
        """Why nodes differ together: show all that lies between, and see whether one is wrong on what it was given."""
        for node in part.nodes:
            if all(name in self._graph.known for name in filter(None, node.output)):
                alone = self._part([node], [name for name in node.output if name in self._values], self._values.get)
                if (found := self._check(alone)).status == "differs":
                    return "node", alone, found
        made = [name for node in part.nodes for name in node.output if name]
        shown = [name for name in made if name in self._values and name not in self._graph.known]
        whole = self._part(part.nodes, shown, self._values.get)
        try:
            ours = self._run(whole.model, whole.feeds)
        except TvmBridgeError:
            return "together", part, check
        expected = {name: self._need(name) for name in shown}
        if not differing(compare(expected, ours, self._tolerance), expected, self._tolerance):
            return "together", part, check

        def given(name: str) -> np.ndarray | None:
            return ours[name] if name in ours else self._values.get(name)

        for node in part.nodes:
            outputs = [name for name in node.output if name in ours]
            if not outputs or missing(self._graph, [node], given):
                continue
            alone = self._part([node], outputs, given)
            try:
                right = ReferenceSession(alone.model).run(alone.feeds)
            except ModelError:
                continue
            if differing(compare(right, ours, self._tolerance), right, self._tolerance):
                found = self._check(alone)
                return ("node", alone, found) if found.status == "differs" else ("together", part, check)
        return "rounding", part, check

    def _check(self, part: Part) -> Check:
        check = check_model(part.model, part.feeds, self._tolerance, self._run)
        self._on_check(part, check)
        return check

    def _bad_names(self, check: Check) -> tuple[str, ...]:
        return differing(check.outputs, check.expected, self._tolerance) or tuple(check.expected)

    def _part(self, nodes: Sequence[onnx.NodeProto], outputs: Sequence[str], lookup: Lookup) -> Part:
        return cut(self._graph, nodes, {name: self._need(name) for name in outputs}, lookup)

    def _need(self, name: str) -> np.ndarray:
        value = self._values.get(name)
        assert value is not None, name
        return value

    def _living(self, place: int) -> tuple[str, ...]:
        """What nodes before the place make for nodes from there on, or as an output; without what is known anyway."""
        later = {name for node in self._nodes[place:] for name in reads(node)} | set(self._graph.outputs)
        made = (name for node in self._nodes[:place] for name in node.output if name)
        return tuple(name for name in made if name in later and name not in self._graph.known)

    def _is_place(self, place: int) -> bool:
        names = self._living(place)
        return bool(names) and all(name in self._values for name in names)

    def _from(self, place: int, end: int, outputs: Sequence[str]) -> list[onnx.NodeProto]:
        """What makes `outputs` between two places, and whatever of before has to come with it: no tensor in between."""
        chosen = {self._index[next(filter(None, node.output))] for node in needed(self._nodes[place:end], outputs)}
        if not chosen:
            chosen = {self._index[name] for name in outputs}
        while lacking := missing(self._graph, [self._nodes[i] for i in sorted(chosen)], self._values.get):
            chosen |= {self._index[name] for name in lacking}
        return [self._nodes[i] for i in sorted(chosen)]

    def _inputs(self, part: Part) -> tuple[TensorSpec, ...]:
        made = {name for node in part.nodes for name in node.output}
        specs = [TensorSpec(name, value.shape, value.dtype.name) for name, value in part.feeds.items()]
        for tensor in part.model.graph.initializer:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).name
            specs.append(TensorSpec(tensor.name, tuple(tensor.dims), dtype))
        order = {name: i for i, name in enumerate(n for node in part.nodes for n in reads(node) if n not in made)}
        return tuple(sorted(specs, key=lambda spec: order.get(spec.name, len(order))))
