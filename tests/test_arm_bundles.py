"""Bundles built on this machine, on an ARM board that has Python, NumPy and tvm-ffi, against ONNX Runtime here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from arm_board import install_runtime, run_bundle
from onnx import TensorProto, helper
from onnx_models import model, random_weight, value

import tvmbridge
from networks import NETWORKS, make_network
from tvmbridge.bundle import open_bundle
from tvmbridge.verify.inputs import random_samples

pytestmark = [pytest.mark.arm, pytest.mark.usefixtures("arm_board")]

DIGITS = Path(__file__).parents[1] / "examples" / "digits" / "digits.onnx"
TOLERANCE = 1e-4  # of max|a-b| / max|reference|
A72 = "arm:cortex-a72"
QUICK = ("mlp", "shufflenet")  # the networks of make test-arm-quick


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install_runtime(tmp_path_factory.mktemp("runtime"))


def build(source: Path | onnx.ModelProto, targets: list[str], folder: Path, **dims: int) -> Path:
    path = source
    if isinstance(source, onnx.ModelProto):
        path = folder / "model.onnx"
        onnx.save(source, path)
    bundle = folder / "model.tvmb"
    report = tvmbridge.build(tvmbridge.import_onnx(path, dims=dims), targets, bundle, tune=False)
    assert [str(outcome.error) for outcome in report.failed] == []
    return bundle


def expected(source: Path, samples: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    session = onnxruntime.InferenceSession(str(source), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return [dict(zip(names, session.run(names, sample), strict=True)) for sample in samples]


def assert_agree(found: list[dict[str, np.ndarray]], wanted: list[dict[str, np.ndarray]]) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        assert set(ours) == set(theirs)
        for name, reference in theirs.items():
            assert (ours[name].shape, ours[name].dtype) == (reference.shape, reference.dtype)
            scale = np.abs(reference.astype("float64")).max()
            assert scale > 0
            assert np.abs(ours[name].astype("float64") - reference).max() <= TOLERANCE * scale


def test_the_digits_model_runs_on_a_board_without_a_compiler(site: Path, tmp_path: Path) -> None:
    bundle = build(DIGITS, [A72], tmp_path, batch=1)
    images = np.load(DIGITS.with_name("held_out.npz"))["image"][:16]
    samples = [{"image": image[None]} for image in images]
    board, found = run_bundle(site, bundle, samples)
    assert (board["machine"], board["compilers"]) == ("aarch64", [])
    assert board["verdicts"] == {"arm-cortex-a72": "optimal"}
    assert_agree(found, expected(DIGITS, samples))


def many_operators() -> onnx.ModelProto:
    """Calls of the C library in both widths, sorting (a runtime library of its own), a product and a convolution."""
    wide, integer = TensorProto.DOUBLE, TensorProto.INT64
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["image"], pads=[1, 1, 1, 1]),
        helper.make_node("Reshape", ["image", "flat"], ["rows"]),
        helper.make_node("MatMul", ["rows", "matrix"], ["product"]),
        helper.make_node("TopK", ["product", "k"], ["largest", "places"], axis=1),
        helper.make_node("Cast", ["product"], ["double"], to=wide),
        helper.make_node("Sin", ["double"], ["sine"]),
        helper.make_node("Exp", ["sine"], ["power"]),
        helper.make_node("Abs", ["product"], ["positive"]),
        helper.make_node("Pow", ["positive", "product"], ["raised"]),
    ]
    weights = {
        "kernel": random_weight((7, 3, 3, 3), 1),
        "flat": np.array([5, 91]),
        "matrix": random_weight((91, 13), 2),
        "k": np.array([3]),
    }
    outputs = [value("largest", (5, 3)), value("places", (5, 3), integer)]
    outputs += [value("power", (5, 13), wide), value("raised", (5, 13))]
    return model(nodes, [value("x", (1, 3, 5, 13))], outputs, weights)


def test_a_board_takes_the_variant_that_its_core_runs(site: Path, tmp_path: Path) -> None:
    bundle = build(many_operators(), ["arm:cortex-a76", A72, "arm:cortex-a53"], tmp_path)
    with open_bundle(bundle) as opened:
        carried = {tuple(Path(name).name for name in each.runtime_libraries) for each in opened.manifest.variants}
    assert carried == {("libtvm_runtime.so", "libtvm_runtime_extra.so")}
    samples = [{"x": np.random.default_rng(seed).standard_normal((1, 3, 5, 13)).astype("float32")} for seed in range(3)]
    wanted = expected(tmp_path / "model.onnx", samples)
    for cpu, level in (("cortex-a72", "unsupported"), ("cortex-a76", "optimal")):
        board, found = run_bundle(site, bundle, samples, cpu=cpu)
        assert board["verdicts"]["arm-cortex-a76"] == level
        assert_agree(found, wanted)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow, pytest.mark.timeout(3600)])
        for name in NETWORKS
    ],
)
def test_a_benchmark_network_agrees_with_onnx_runtime(name: str, site: Path, tmp_path: Path) -> None:
    bundle = build(make_network(name), [A72], tmp_path)
    source = tmp_path / "model.onnx"
    with open_bundle(bundle) as opened:
        samples = random_samples(source, opened.manifest.signature, seed=1, count=1)
    _, found = run_bundle(site, bundle, samples)
    assert_agree(found, expected(source, samples))
