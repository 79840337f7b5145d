"""build(): real models through every stage, and what becomes of targets that fail."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest

import tests.onnx_models as models
import tvmbridge
from tvmbridge import pipeline
from tvmbridge.bundle import open_bundle
from tvmbridge.verify.reference import ReferenceUnavailable

pytestmark = pytest.mark.compiler


def imported(proto, tmp_path, **bindings):
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    return tvmbridge.import_onnx(path, **bindings)


@pytest.mark.parametrize("name", ["conv_bn_relu", "mlp", "embedding", "two_outputs", "with_function", "old_opset"])
def test_a_model_is_built_verified_and_gives_onnx_runtimes_outputs_on_fresh_data(tmp_path, name):
    model = imported(getattr(models, name)(), tmp_path)
    output = tmp_path / "model.tvmb"
    report = tvmbridge.build(model, [tvmbridge.parse_preset("native")], output)
    (outcome,) = report.outcomes
    assert outcome.error is None and outcome.variant.accuracy.max_relative < 1e-4
    assert outcome.check.latency.calls > 0 and outcome.check.latency.reference_us > 0
    reference = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    with tvmbridge.load(output) as session:
        assert [spec.name for spec in session.inputs] == [entry.name for entry in reference.get_inputs()]
        generator = np.random.default_rng(123)
        feeds = {
            spec.name: generator.integers(0, 3, spec.shape).astype(spec.dtype)
            if spec.dtype.startswith("int")
            else generator.normal(size=spec.shape).astype(spec.dtype)
            for spec in session.inputs
        }
        outputs = session.run(feeds)
    for entry, expected in zip(reference.get_outputs(), reference.run(None, feeds), strict=True):
        np.testing.assert_allclose(outputs[entry.name], expected, rtol=1e-4, atol=1e-5)


def test_a_target_without_its_toolchain_fails_alone_and_says_what_to_install(tmp_path, monkeypatch):
    found = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name, **_: None if "nvcc" in name else found(name))
    model = imported(models.mlp(), tmp_path)
    targets = [tvmbridge.parse_preset("native"), tvmbridge.parse_preset("cuda:sm_90")]
    report = tvmbridge.build(model, targets, tmp_path / "model.tvmb")
    assert [outcome.error is None for outcome in report.outcomes] == [True, False]
    assert [outcome.target.name for outcome in report.failed] == ["cuda-sm_90"]
    error = report.failed[0].error
    assert isinstance(error, tvmbridge.ToolchainError) and "nvcc" in error.message and "install" in error.hint
    with open_bundle(tmp_path / "model.tvmb") as bundle:
        assert [variant.name for variant in bundle.manifest.variants] == ["native"]


def test_nothing_is_written_where_every_target_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    model = imported(models.mlp(), tmp_path)
    report = tvmbridge.build(model, [tvmbridge.parse_preset("cuda:sm_90")], tmp_path / "model.tvmb")
    assert report.output is None and len(report.failed) == 1
    assert not (tmp_path / "model.tvmb").exists()


@pytest.fixture
def wrong_results(monkeypatch):
    """The verifier finds the outputs too far off, as it would with a kernel that computes something else."""
    verify = pipeline.verify_variant

    def judge(*arguments, **options):
        check = verify(*arguments, **options)
        return dataclasses.replace(check, problem="output 'y' differs by 0.5 relative")

    monkeypatch.setattr(pipeline, "verify_variant", judge)


def test_a_variant_out_of_tolerance_is_not_written(tmp_path, wrong_results):
    model = imported(models.mlp(), tmp_path)
    report = tvmbridge.build(model, [tvmbridge.parse_preset("native")], tmp_path / "model.tvmb")
    assert isinstance(report.failed[0].error, tvmbridge.AccuracyError)
    assert "--accept-inaccurate native" in report.failed[0].error.hint
    assert not (tmp_path / "model.tvmb").exists()


def test_a_variant_out_of_tolerance_is_written_when_asked_for_by_name(tmp_path, wrong_results):
    model = imported(models.mlp(), tmp_path)
    targets = [tvmbridge.parse_preset("native")]
    report = tvmbridge.build(model, targets, tmp_path / "model.tvmb", accept_inaccurate=["native"])
    assert report.failed == () and (tmp_path / "model.tvmb").exists()


def test_a_tolerance_that_no_float_meets_fails_the_target(tmp_path):
    model = imported(models.conv_bn_relu(), tmp_path)
    report = tvmbridge.build(model, ["native"], tmp_path / "model.tvmb", tolerance=0.0)
    assert isinstance(report.outcomes[0].error, tvmbridge.AccuracyError)
    assert "tolerance 0" in report.outcomes[0].error.message and report.output is None


def test_a_log_decides_the_schedules_of_the_kernels_it_knows_and_travels_in_the_bundle(tmp_path):
    model = imported(models.mlp(), tmp_path)
    target, log = tvmbridge.parse_preset("native"), tmp_path / "model.tune.jsonl"
    tuned = tvmbridge.build(model, [target], tmp_path / "a.tvmb", budget=tvmbridge.Budget(trials=6), log=log)
    assert tuned.outcomes[0].tuning.trials == 6 and tuned.outcomes[0].variant.tuned_kernels > 0
    again = tvmbridge.build(model, [target], tmp_path / "b.tvmb", tune=False, log=log)
    assert again.outcomes[0].tuning is None
    assert again.outcomes[0].variant.tuned_kernels == tuned.outcomes[0].variant.tuned_kernels
    with open_bundle(tmp_path / "b.tvmb") as bundle:
        records = bundle.read_member(bundle.manifest.log).splitlines()
    assert len(records) == 1 + len({plan.kernel.key for plan in again.outcomes[0].kernels if plan.record})


def test_a_bundle_for_another_machine_is_built_and_says_why_it_was_not_run(tmp_path):
    model = imported(models.conv_bn_relu(), tmp_path)
    report = tvmbridge.build(model, [tvmbridge.parse_preset("arm:cortex-a72")], tmp_path / "model.tvmb")
    (outcome,) = report.outcomes
    assert outcome.error is None and outcome.variant.accuracy is None
    assert "aarch64" in outcome.variant.unverified_because
    with open_bundle(tmp_path / "model.tvmb") as bundle:
        library = bundle.read_member(bundle.manifest.variants[0].library)
    assert library[:4] == b"\x7fELF" and int.from_bytes(library[18:20], "little") == 183  # EM_AARCH64
    with pytest.raises(tvmbridge.NoVariantError, match="aarch64"):
        tvmbridge.load(tmp_path / "model.tvmb")


def test_two_untuned_builds_give_the_same_library_and_weights(tmp_path):
    model = imported(models.conv_bn_relu(), tmp_path)
    members = []
    for name in ("a.tvmb", "b.tvmb"):
        tvmbridge.build(model, [tvmbridge.parse_preset("native")], tmp_path / name)
        with open_bundle(tmp_path / name) as bundle:
            members.append(bundle.manifest.members)
    assert members[0] == members[1]


def test_a_model_that_onnx_runtime_does_not_take_is_built_unverified(tmp_path, monkeypatch):
    def refuse(*_arguments, **_options):
        raise ReferenceUnavailable("reference unavailable: it does not take the model")

    monkeypatch.setattr("tvmbridge.verify.variant.ReferenceSession", refuse)
    model = imported(models.mlp(), tmp_path)
    report = tvmbridge.build(model, [tvmbridge.parse_preset("native")], tmp_path / "model.tvmb")
    assert report.outcomes[0].variant.unverified_because == "reference unavailable: it does not take the model"


def test_a_model_given_as_a_proto_is_built_like_a_file(tmp_path):
    model = tvmbridge.import_onnx(models.mlp())
    report = tvmbridge.build(model, [tvmbridge.parse_preset("native")], tmp_path / "model.tvmb")
    assert report.outcomes[0].variant.accuracy.max_relative < 1e-4


def test_a_target_may_be_a_preset_by_name_and_no_name_twice(tmp_path):
    model = tvmbridge.import_onnx(models.mlp())
    assert tvmbridge.build(model, ["native"], tmp_path / "model.tvmb").failed == ()
    with pytest.raises(tvmbridge.TargetError, match="native"):
        tvmbridge.build(model, ["native", "native"], tmp_path / "model.tvmb")
    with pytest.raises(tvmbridge.TargetError, match="no targets"):
        tvmbridge.build(model, [], tmp_path / "model.tvmb")


def test_what_goes_wrong_unforeseen_for_one_target_leaves_the_others(tmp_path, monkeypatch):
    lower = pipeline.lower

    def fail(model, target):
        if target.kind == "arm":
            raise OSError(28, "No space left on device")
        return lower(model, target)

    monkeypatch.setattr(pipeline, "lower", fail)
    model = tvmbridge.import_onnx(models.mlp())
    report = tvmbridge.build(model, ["arm", "native"], tmp_path / "model.tvmb")
    assert [outcome.target.name for outcome in report.failed] == ["arm"] and report.output is not None
    assert "No space left" in report.failed[0].error.message


def test_inputs_that_onnx_runtime_rejects_fail_the_target_and_do_not_leave_it_unverified(tmp_path, monkeypatch):
    model = tvmbridge.import_onnx(models.mlp())

    def refuse(*_arguments, **_options):
        raise tvmbridge.ModelError("it failed on the inputs")

    monkeypatch.setattr("tvmbridge.verify.variant.ReferenceSession.run", refuse)
    report = tvmbridge.build(model, ["native"], tmp_path / "model.tvmb")
    assert report.output is None and "failed on the inputs" in report.failed[0].error.message


def test_a_model_that_sorts_carries_the_library_that_it_needs(tmp_path):
    node = onnx.helper.make_node("TopK", ["x", "k"], ["values", "indices"], axis=-1)
    outputs = [models.value("values", [3, 5]), models.value("indices", [3, 5], models.INT64)]
    proto = models.model([node], [models.value("x", [3, 17])], outputs, {"k": np.array([5], np.int64)})
    report = tvmbridge.build(tvmbridge.import_onnx(proto), ["native"], tmp_path / "model.tvmb")
    assert report.failed == () and report.outcomes[0].variant.accuracy.max_relative < 1e-6


def test_a_package_of_another_name_is_left_out_of_the_provenance_and_does_not_fail_the_build(tmp_path, monkeypatch):
    version = importlib.metadata.version

    def find(name):
        if name == "onnxscript":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", find)
    bundle = tmp_path / "m.tvmb"
    assert tvmbridge.build(tvmbridge.import_onnx(models.mlp(5)), ["native"], bundle, seconds=0.1).output == bundle
    with open_bundle(bundle) as opened:
        provenance = opened.read_member("attachments/provenance.json")
    assert b"pkg:pypi/onnx@" in provenance and b"onnxscript" not in provenance


def test_every_stage_is_announced(tmp_path):
    events = []
    model = imported(models.mlp(), tmp_path)
    targets = [tvmbridge.parse_preset("native")]
    budget, log = tvmbridge.Budget(trials=2), tmp_path / "m.tune.jsonl"
    tvmbridge.build(model, targets, tmp_path / "m.tvmb", budget=budget, log=log, on_event=events.append)
    stages = list(dict.fromkeys(event.stage for event in events))
    assert stages == ["lower", "tune", "compile", "verify", "done", "write"]
    assert [event.tuning for event in events if event.tuning is not None][-1].ended == "2 trials spent"
