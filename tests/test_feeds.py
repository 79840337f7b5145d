"""The inputs of run() against the signature: everything wrong is refused by name, nothing is cast."""

from __future__ import annotations

import numpy as np
import pytest

from tvmbridge.errors import InputError
from tvmbridge.runtime.feeds import FeedChecker, ResultChecker
from tvmbridge.signature import TensorSpec

SPECS = (TensorSpec("x", (2, 3), "float32"), TensorSpec("mask", (2,), "bool"))
X, MASK = np.zeros((2, 3), "float32"), np.ones(2, bool)


@pytest.mark.parametrize(
    ("feeds", "message", "hint"),
    [
        ([X, MASK], "takes a dict", "session.run({'x': ..., 'mask': ...})"),
        ({"x": X}, "input missing: mask: bool[2]", "'mask': ..."),
        ({"x": X, "masks": MASK}, "no input 'masks'", "did you mean 'mask'?"),
        ({"x": X, "mask": MASK, "zzz": X}, "no input 'zzz'; it takes 'x', 'mask'", "session.run"),
        ({"x": X, "mask": MASK, 3: X}, "no input 3", "session.run"),
        ({"x": X.astype("float64"), "mask": MASK}, "dtype float64 given, float32 expected", ".astype('float32')"),
        ({"x": X.astype(">f4"), "mask": MASK}, "dtype >f4 given", ".astype('float32')"),
        ({"x": [[1.0] * 3] * 2, "mask": MASK}, "dtype float64 given", "never converted silently"),
        ({"x": X, "mask": [1, 0]}, "dtype int64 given, bool expected", ".astype('bool')"),
        ({"x": X[:, :2], "mask": MASK}, "shape [2, 2] given, [2, 3] expected", "fixed when a model is built"),
        ({"x": np.zeros((5, 3), "float32"), "mask": MASK}, "shape [5, 3] given", "batch of 2"),
        ({"x": "text", "mask": MASK}, "dtype <U4 given", ".astype"),
        ({"x": None, "mask": MASK}, "dtype object given", ".astype"),
        ({"x": [[1], [1, 2]], "mask": MASK}, "a list is no array", None),
    ],
)
def test_wrong_inputs_are_refused_by_name_with_a_hint(feeds, message, hint):
    with pytest.raises(InputError) as caught:
        FeedChecker(SPECS).order(feeds)
    assert message in caught.value.message
    assert hint in caught.value.hint if hint else caught.value.hint is None


class OnlyDlpack:
    """An array of another library, which NumPy can read by DLPack alone."""

    def __init__(self, array):
        self._array = array

    def __dlpack__(self, **keywords):
        return self._array.__dlpack__(**keywords)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


def test_an_array_by_dlpack_is_read_where_it_lies():
    x = X + 2
    (taken, _) = FeedChecker(SPECS).order({"x": OnlyDlpack(x), "mask": MASK})
    assert np.shares_memory(taken, x)
    np.testing.assert_array_equal(taken, x)
    with pytest.raises(InputError, match="dtype float64 given"):
        FeedChecker(SPECS).order({"x": OnlyDlpack(x.astype("float64")), "mask": MASK})


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ([X], "out as a dict"),
        ({"z": X}, "no output 'z'; it gives 'x', 'mask'"),
        ({"x": X.astype("float64")}, "float64[2, 3] given as out, x: float32[2, 3] expected"),
        ({"x": X[:1]}, "float32[1, 3] given as out"),
        ({"x": X[0]}, "float32[3] given as out"),
        ({"x": [[0.0] * 3] * 2}, "a list given as out"),
        ({"x": np.broadcast_to(np.float32(1), (2, 3))}, "is read-only"),
    ],
)
def test_a_place_for_an_output_that_does_not_fit_is_refused(out, message):
    with pytest.raises(InputError) as caught:
        ResultChecker(SPECS).order(out)
    assert message in caught.value.message


def test_one_place_for_two_outputs_is_refused_and_two_halves_of_an_array_are_not():
    specs = (TensorSpec("a", (2, 3), "float32"), TensorSpec("b", (2, 3), "float32"))
    wide = np.zeros((2, 6), "float32")
    with pytest.raises(InputError, match="share memory"):
        ResultChecker(specs).order({"a": wide[:, :3], "b": wide[:, 2:5]})
    assert len(ResultChecker(specs).order({"a": wide[:, ::2], "b": wide[:, 1::2]})) == 2


def test_places_come_in_the_order_of_the_outputs_with_none_where_none_was_given():
    assert ResultChecker(SPECS).order({}) == [None, None]
    (first, second) = ResultChecker((TensorSpec("y", (None, 3), "float32"), *SPECS[1:])).order({"y": X})
    assert first is X and second is None


def test_a_missing_batch_axis_is_pointed_out():
    with pytest.raises(InputError) as caught:
        FeedChecker((TensorSpec("x", (1, 3), "float32"),)).order({"x": np.zeros(3, "float32")})
    assert "x[np.newaxis]" in caught.value.hint


def test_what_numpy_reads_as_the_exact_dtype_is_taken():
    class Wrapped:
        def __array__(self, dtype=None, copy=None):
            return X + 1

    arrays = FeedChecker(SPECS).order({"mask": [True, False], "x": Wrapped()})
    np.testing.assert_array_equal(arrays[0], X + 1)
    assert arrays[1].tolist() == [True, False]


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "int8"])
def test_an_index_out_of_range_is_refused_with_its_value_and_the_range(dtype):
    checker = FeedChecker((TensorSpec("ids", (3,), dtype, 100),))
    lowest = 0 if dtype == "uint8" else -100
    (array,) = checker.order({"ids": np.array([lowest, 99, 5], dtype)})
    assert array.tolist() == [lowest, 99, 5]
    for wrong in (100, -101, 10**10):
        if np.iinfo(dtype).min <= wrong <= np.iinfo(dtype).max:
            with pytest.raises(InputError) as caught:
                checker.order({"ids": np.array([1, wrong, 2], dtype)})
            assert caught.value.message == f"input 'ids': {wrong} is no index of 100 elements"
            assert "between -100 and 99" in caught.value.hint


def test_an_empty_array_of_indices_is_taken():
    (array,) = FeedChecker((TensorSpec("ids", (0, 3), "int64", 4),)).order({"ids": np.zeros((0, 3), "int64")})
    assert array.shape == (0, 3)
