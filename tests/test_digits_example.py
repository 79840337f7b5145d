"""The digits example: the checked-in model is small and accurate, and its script makes what is checked in."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest

FOLDER = Path(__file__).parent.parent / "examples" / "digits"


@pytest.fixture(scope="module")
def training() -> ModuleType:
    spec = importlib.util.spec_from_file_location("digits_train", FOLDER / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reference() -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(FOLDER / "digits.onnx", providers=["CPUExecutionProvider"])


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(logits.argmax(1) == labels))


def test_the_checked_in_model_reads_the_held_out_digits(reference):
    held_out = np.load(FOLDER / "held_out.npz")
    (logits,) = reference.run(["logits"], {"image": held_out["image"]})
    assert logits.shape == (360, 10)
    assert accuracy(logits, held_out["label"]) >= 0.97


def test_the_checked_in_model_is_small_and_names_its_batch():
    model = onnx.load(FOLDER / "digits.onnx")
    axes = [axis.dim_param or axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim]
    assert (FOLDER / "digits.onnx").stat().st_size < 300_000
    assert [value.name for value in [*model.graph.input, *model.graph.output]] == ["image", "logits"]
    assert axes == ["batch", 1, 8, 8]
    assert model.opset_import[0].version >= 17


def test_the_held_out_images_are_those_that_training_leaves_out(training):
    images, labels, held_out_images, held_out_labels = training.split_digits()
    held_out = np.load(FOLDER / "held_out.npz")
    np.testing.assert_array_equal(held_out["image"], held_out_images)
    np.testing.assert_array_equal(held_out["label"], held_out_labels)
    assert held_out["image"].dtype == np.float32
    assert (held_out["image"].min(), held_out["image"].max()) == (0, 1)
    assert len(images) == len(labels) == 1797 - 360
    assert not {image.tobytes() for image in images} & {image.tobytes() for image in held_out_images}


def test_four_epochs_of_training_learn_most_digits_and_export_what_numpy_computes(training):
    images, labels, held_out_images, held_out_labels = training.split_digits()
    weights = training.train(images, labels, epochs=4)
    logits, _ = training.logits_and_gradients(weights, held_out_images)
    assert accuracy(logits, held_out_labels) > 0.8
    session = onnxruntime.InferenceSession(
        training.export(weights).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (exported,) = session.run(["logits"], {"image": held_out_images})
    np.testing.assert_allclose(exported, logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 7, 8, 360, 512])
def test_the_classifier_counts_every_image_once_whatever_the_batch(monkeypatch, capsys, reference, batch):
    def run(inputs):
        assert inputs["image"].shape == (batch, 1, 8, 8)
        return {"logits": reference.run(["logits"], inputs)[0]}

    held_out = np.load(FOLDER / "held_out.npz")
    (logits,) = reference.run(["logits"], {"image": held_out["image"]})
    correct = int(np.sum(logits.argmax(1) == held_out["label"]))
    session = SimpleNamespace(inputs=[SimpleNamespace(shape=(batch, 1, 8, 8))], run=run)
    monkeypatch.setitem(sys.modules, "tvmbridge", SimpleNamespace(load=lambda path: session))
    monkeypatch.setattr(sys, "argv", ["classify.py", "digits.tvmb"])
    source = FOLDER / "classify.py"
    exec(compile(source.read_text(), source, "exec"), {"__file__": str(source), "__name__": "__main__"})
    assert capsys.readouterr().out == f"held-out accuracy {correct / 360:.2%} ({correct} of 360 images)\n"
