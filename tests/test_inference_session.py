"""ONNX Runtime's InferenceSession over a bundle: the same calls give the same descriptions and the same results."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest

import tests.onnx_models as models
import tvmbridge
from tvmbridge.errors import InputError

pytestmark = pytest.mark.compiler


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("both")
    model, bundle = folder / "model.onnx", folder / "model.tvmb"
    onnx.save(models.mlp(5), model)
    report = tvmbridge.build(tvmbridge.import_onnx(model), ["native"], bundle, seconds=0.1)
    assert not report.failed
    theirs = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    return SimpleNamespace(path=bundle, ours=tvmbridge.InferenceSession(bundle, providers=["any"]), theirs=theirs)


def test_inputs_and_outputs_are_described_alike(both):
    for what in ("get_inputs", "get_outputs"):
        ours, theirs = ([(n.name, n.type, n.shape) for n in getattr(s, what)()] for s in (both.ours, both.theirs))
        assert ours == theirs
    assert both.ours.get_providers() == ["tvmbridge:native"]


def test_run_takes_names_or_none_and_gives_a_list(both):
    (spec,) = both.theirs.get_inputs()
    feeds = {spec.name: np.random.default_rng(0).normal(size=spec.shape).astype("float32")}
    names = [output.name for output in both.theirs.get_outputs()]
    for asked in (None, [], names, names[:1], [names[0], names[0]]):
        ours, theirs = both.ours.run(asked, feeds), both.theirs.run(asked, feeds)
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="no output 'none'"):
        both.ours.run(["none"], feeds)


def test_the_threads_of_its_options_are_taken(both):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    assert tvmbridge.InferenceSession(both.path, options)._session.threads == 1
