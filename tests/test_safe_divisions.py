"""Integers divided by zero and the least integer by -1 give numbers, and all others what ONNX Runtime gives."""

from __future__ import annotations

import numpy as np
import pytest
from kernels import run_lowered
from onnx import helper
from onnx_models import model, value

from tvmbridge.frontend import import_onnx
from tvmbridge.lowering import lower
from tvmbridge.targets import parse_preset
from tvmbridge.verify import ReferenceSession

pytestmark = pytest.mark.compiler

NATIVE = parse_preset("native")
TYPES = ("int32", "int64", "int8", "uint8", "uint64")
FORMS = {"Div": {}, "Mod": {}, "Mod as C": {"fmod": 1}}


def compiled(form: str, dtype: str, a: np.ndarray, b: np.ndarray):
    number = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    node = helper.make_node(form.partition(" ")[0], ["a", "b"], ["y"], **FORMS[form])
    graph = model([node], [value(name, a.shape, number) for name in "ab"], [value("y", None, number)])
    return graph, run_lowered(lower(import_onnx(graph), NATIVE), NATIVE, [a, b])[0]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", TYPES)
def test_what_has_no_quotient_gives_zero_or_wraps_and_nothing_traps(form, dtype):
    least = np.iinfo(dtype).min
    a = np.array([7, least, 0, least, 7, 9], dtype)
    b = np.array([0, 0, 0, -1 if least else 0, 1, 4], np.int64).astype(dtype)
    _, found = compiled(form, dtype, a, b)
    assert list(found) == ([0, 0, 0, least, 7, 2] if form == "Div" else [0, 0, 0, 0, 0, 1])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_quotients_and_remainders_of_all_signs_are_the_reference_s(form, dtype):
    numbers = np.array([-9, -7, -2, -1, 1, 2, 3, 7, 8], dtype)
    a, b = (part.reshape(-1) for part in np.meshgrid(numbers, numbers))
    graph, found = compiled(form, dtype, a, b)
    np.testing.assert_array_equal(found, ReferenceSession(graph).run({"a": a, "b": b})["y"])
