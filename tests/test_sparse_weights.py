"""Sparse weights become dense ones, and absurd ones errors."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_models import FLOAT, INT64, model, value

from tvmbridge.errors import ModelError
from tvmbridge.frontend.sparse_weights import densify


def sparse_weight(dims, indices):
    made = model([helper.make_node("Add", ["x", "w"], ["y"])], [value("x", dims)], [value("y", None)])
    values = helper.make_tensor("w", FLOAT, [len(indices)], [1.5, 2.5][: len(indices)])
    positions = helper.make_tensor("i", INT64, np.shape(indices), np.ravel(indices))
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, positions, dims))
    return made


@pytest.mark.parametrize(("dims", "indices"), [((7,), [1, 4]), ((3, 5), [4, 11]), ((3, 5), [[0, 4], [2, 1]])])
def test_a_sparse_initializer_becomes_a_dense_one(dims, indices):
    made = densify(sparse_weight(dims, indices))
    wanted = np.zeros(dims, np.float32)
    flat = [np.ravel_multi_index(i, dims) if np.ndim(i) else i for i in indices]
    wanted.reshape(-1)[flat] = [1.5, 2.5]
    assert not made.graph.sparse_initializer and made.graph.initializer[0].name == "w"
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(made.graph.initializer[0]), wanted)


def test_one_that_would_take_gigabytes_or_lies_outside_is_refused():
    with pytest.raises(ModelError, match=r"'w' of shape .* would take 4 GiB"):
        densify(sparse_weight((1 << 30,), [1, 4]))
    with pytest.raises(ModelError, match="'w' has indices outside"):
        densify(sparse_weight((3, 5), [4, 15]))


@pytest.mark.compiler
def test_a_model_with_a_sparse_weight_runs():
    from tvmbridge.backend import run_model

    (found,) = run_model(sparse_weight((3, 5), [[0, 4], [2, 1]]), [np.zeros((3, 5), np.float32)])
    assert found[0, 4] == 1.5 and found[2, 1] == 2.5 and found.sum() == 4
