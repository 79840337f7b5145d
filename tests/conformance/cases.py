"""The cases of the ONNX project's backend suite that are scored, each with the official runner's own test function."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner

# "real" are the nine light networks: real topologies with constant weights.
SUITES = {
    "node": ("node", "NodeModel"),
    "simple": ("simple", "SimpleModel"),
    "light": ("real", "RealModel"),
    "pytorch-converted": ("pytorch-converted", "PyTorchConvertedModel"),
    "pytorch-operator": ("pytorch-operator", "PyTorchOperatorModel"),
}
UNSCORED_DOMAINS = frozenset({"ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training"})
LIGHT_URL = "onnx/backend/test/data/light/"


@dataclasses.dataclass(frozen=True)
class Case:
    """One case. suite: of SUITES. model: reads or gives its model; it is not to be changed."""

    name: str
    suite: str
    model: Callable[[], onnx.ModelProto] = dataclasses.field(repr=False)


class StrictRunner(Runner):
    """The official runner, which besides compares the lengths of sequences, and counts what it has compared."""

    compared = 0
    last: tuple[Any, Any] = (None, None)  # expected and given, of the last comparison

    @classmethod
    def assert_similar_outputs(cls, ref_outputs: Any, outputs: Any, *rest: Any, **options: Any) -> None:
        """Compare as the official runner does, with the case's own tolerances."""
        StrictRunner.last = (ref_outputs, outputs)
        _assert_same_lengths(ref_outputs, outputs)
        StrictRunner.compared += 1
        super().assert_similar_outputs(ref_outputs, outputs, *rest, **options)


class _NoBackend:
    """In the place of a backend until a case is run."""

    @classmethod
    def supports_device(cls, device: str) -> bool:
        return device == "CPU"


def scored_cases() -> dict[str, Case]:
    """All cases by name, without those of the training and ai.onnx.ml domains, in a fixed order."""
    return dict(_all_cases())


def run_case(case: Case, backend: Any) -> None:
    """Run one case's official test function on a backend; raises what the backend raises, AssertionError where wrong.

    backend: an object with `prepare` and `supports_device`; without `is_compatible`, by which a case would be skipped.
    """
    runner = _runner()
    runner.backend, StrictRunner.compared = backend, 0
    runner._test_items[SUITES[case.suite][1]][f"{case.name}_cpu"].func(None)
    if not StrictRunner.compared:
        raise RuntimeError("the official runner compared nothing")


@functools.cache
def _all_cases() -> dict[str, Case]:
    _runner()  # its own reading of the suite comes first: that of the nodes draws from a seeded generator
    found = {}
    for suite, (kind, _) in SUITES.items():
        for test in sorted(load_model_tests(kind=kind), key=lambda test: test.name):
            model = functools.partial(_model, test)
            if not UNSCORED_DOMAINS & {entry.domain for entry in model().opset_import}:
                found[test.name] = Case(test.name, suite, model)
    return found


@functools.cache
def _runner() -> StrictRunner:
    with _quiet():
        return StrictRunner(_NoBackend)


def _model(test: Any) -> onnx.ModelProto:
    if test.model is not None:
        return test.model
    if test.model_dir is not None:
        return onnx.load(Path(test.model_dir, "model.onnx"), load_external_data=False)
    assert test.url.startswith(LIGHT_URL), test.url
    return onnx.load(Path(onnx.__file__).parent.parent / test.url, load_external_data=False)


def _assert_same_lengths(expected: Any, given: Any) -> None:
    if isinstance(expected, (list, tuple)):
        assert isinstance(given, (list, tuple)), f"{type(given).__name__} given, a sequence expected"
        assert len(given) == len(expected), f"{len(given)} elements given, {len(expected)} expected"
        for one, other in zip(expected, given, strict=True):
            _assert_same_lengths(one, other)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the suite's own reference computations overflow on purpose
        yield
