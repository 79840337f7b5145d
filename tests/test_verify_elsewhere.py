"""Verifying and timing bundles on devices, whatever becomes of them."""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_models as models
import pytest
from kernels import runnable_targets
from rpc_farm import Farm, free_port, running_farm, wait_for

import tvmbridge
from tvmbridge.bundle import open_bundle
from tvmbridge.cli import main
from tvmbridge.device.tracker import borrow_device, list_devices
from tvmbridge.errors import DeviceError, NoVariantError
from tvmbridge.targets import RpcMeasure
from tvmbridge.verify import elsewhere, random_inputs
from tvmbridge.verify.elsewhere import time_elsewhere
from tvmbridge.verify.variant import check_variants

pytestmark = [pytest.mark.compiler, pytest.mark.slow, pytest.mark.timeout(240)]

NATIVE = runnable_targets()[0]
KEYS = (f"runs{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def module_farm() -> Iterator[Farm]:
    with running_farm() as farm:
        yield farm


@pytest.fixture
def farm(module_farm: Farm) -> Iterator[Farm]:
    yield module_farm
    module_farm.kill_all()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("elsewhere") / "model.onnx"
    onnx.save(models.mlp(5), path)
    return path


@pytest.fixture(scope="module")
def bundle(model: Path) -> Path:
    imported = tvmbridge.import_onnx(model)
    report = tvmbridge.build(imported, [NATIVE, "arm:cortex-a72"], model.with_suffix(".tvmb"), tune=False, seconds=0.1)
    assert not report.failed
    return model.with_suffix(".tvmb")


def feeds_of(bundle: Path) -> dict[str, np.ndarray]:
    with open_bundle(bundle) as opened:
        return random_inputs(None, opened.manifest.signature)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def call(*arguments: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        return ended.value.code, capsys.readouterr().out  # type: ignore[return-value]

    return call


def test_verify_and_bench_run_a_bundle_on_a_device(
    bundle: Path, model: Path, farm: Farm, run, tmp_path, monkeypatch
) -> None:  # type: ignore[no-untyped-def]
    key = next(KEYS)
    farm.start_devices(key, 1, NATIVE.cores, "--emulated")
    code, out = run("verify", bundle, model, "--rpc", f"{farm.address}/{key}", "--json")
    assert "error" not in json.loads(out), out
    native, arm = json.loads(out)["variants"]
    assert code == 0 and native["accuracy"]["max_relative"] < 1e-3 and native["latency"]["emulated"]
    assert native["latency"]["reference_us"] is None and native["kernel_us"]
    assert "is for aarch64" in arm["unverified_because"]
    measure = f"{{rpc: {{tracker: '{farm.address}', key: {key}}}}}"
    (tmp_path / "targets.yaml").write_text(f"version: 1\ntargets: {{board: {{kind: x86, measure: {measure}}}}}")
    monkeypatch.chdir(tmp_path)
    code, out = run("bench", bundle, "--rpc", "board", "--seconds", "0.5", "--json")
    timed = json.loads(out)
    assert code == 0 and timed["variant"] == NATIVE.name and timed["median_us"] > 0 and timed["emulated"]
    assert timed["rpc"] == {"tracker": farm.address, "key": key}
    code, out = run("bench", model, "--target", "board", "--seconds", "0.5", "--json")
    built = json.loads(out)
    assert code == 0 and built["variant"] == "board" and built["emulated"] and built["reference_us"] is None


@pytest.mark.parametrize(
    "arguments",
    [
        ["verify", "m.tvmb", "m.onnx", "--rpc", "127.0.0.1/rpi4"],
        ["verify", "m.tvmb", "m.onnx", "--rpc", "127.0.0.1:9190/two words"],
        ["verify", "m.tvmb", "m.onnx", "--rpc", "127.0.0.1:9190/k", "--bisect"],
        ["bench", "m.tvmb", "--rpc", "127.0.0.1:9190/k", "--against", "m.onnx"],
        ["bench", "m.onnx", "--rpc", "127.0.0.1:9190/k"],
    ],
    ids=" ".join,
)
def test_what_cannot_be_done_over_rpc_is_wrong_usage(arguments: list[str], run, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    assert run(*arguments)[0] == 2


def test_a_target_that_is_measured_over_rpc_is_verified_on_its_device(model: Path, farm: Farm, tmp_path: Path) -> None:
    key = next(KEYS)
    farm.start_devices(key, 1, NATIVE.cores)
    target = farm.target(NATIVE, key)
    (outcome,) = tvmbridge.build(tvmbridge.import_onnx(model), [target], tmp_path / "m.tvmb", tune=False).outcomes
    assert outcome.check is not None and outcome.check.accuracy is not None and outcome.check.latency is not None
    assert outcome.check.latency.reference_us is None
    farm.kill_all()
    (outcome,) = tvmbridge.build(tvmbridge.import_onnx(model), [farm.target(NATIVE, "nobody")], tmp_path / "n.tvmb",
                                 tune=False).outcomes  # fmt: skip
    assert outcome.variant is not None and "no device" in str(outcome.check and outcome.check.unverified_because)


def borrowed(farm: Farm, key: str) -> bool:
    return any(d.key == key and d.details is not None and d.details["busy"] for d in list_devices(farm.address))


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP], ids=["lost", "hung"])
def test_a_device_that_is_lost_or_falls_silent_is_left_for_another(
    sent: signal.Signals, bundle: Path, farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elsewhere, "SILENT_S", 8.0)
    key = next(KEYS)
    (first,) = farm.start_devices(key, 1, NATIVE.cores)
    results: list[object] = []
    place = farm.place(key)
    job = threading.Thread(target=lambda: results.append(time_elsewhere(place, bundle, feeds_of(bundle), seconds=6.0)))
    job.start()
    wait_for(lambda: borrowed(farm, key))
    farm.start_devices(key, 1, NATIVE.cores)
    os.killpg(first, sent)
    job.join()
    ((variant, threads, latency),) = results  # type: ignore[misc]
    assert (variant, threads) == (NATIVE.name, NATIVE.cores) and latency.calls > 0


def test_a_device_that_cannot_run_it_says_why(bundle: Path, farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    key = next(KEYS)
    farm.start_devices(key, 1, NATIVE.cores)
    with pytest.raises(NoVariantError, match="is for aarch64"):
        time_elsewhere(farm.place(key), bundle, feeds_of(bundle), variant="arm-cortex-a72")
    with pytest.raises(DeviceError, match="no device is registered under the key 'nobody'"):
        time_elsewhere(farm.place("nobody"), bundle, feeds_of(bundle))
    monkeypatch.setattr(elsewhere, "NO_DEVICE_S", 1.0)
    borrow_device(farm.place(key), timeout_s=30)
    with pytest.raises(DeviceError, match=f"the tracker {farm.address}, key '{key}': no device could be had"):
        time_elsewhere(farm.place(key), bundle, feeds_of(bundle))
    nowhere = RpcMeasure(tracker=f"127.0.0.1:{free_port()}", key="k")
    with pytest.raises(DeviceError, match="no TVM RPC tracker answers"):
        check_variants(bundle, models.mlp(5), place=nowhere)
