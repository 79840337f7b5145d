"""The commands around an artifact: sign, verify-signature, keygen, diff, unpack, and the gates of bench and verify."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
import zipfile

import onnx
import pytest

from tests.test_cli import built, run  # noqa: F401 -- fixtures

pytestmark = pytest.mark.compiler


def test_a_bundle_is_signed_and_its_signature_verified(built, tmp_path, run):  # noqa: F811
    key, signed = tmp_path / "key.pem", tmp_path / "signed.tvmb"
    code, out, _ = run("keygen", key, "--json")
    made = json.loads(out)
    assert code == 0 and made["public"] == f"{key}.pub"
    assert run("verify-signature", built / "model.tvmb", "--key", f"{key}.pub")[0] == 1
    assert run("sign", built / "model.tvmb", "--key", key, "-o", signed)[0] == 0
    assert json.loads(run("inspect", signed, "--json")[1])["signers"] == [made["key"]]
    assert f"signed by key {made['key']}" in run("inspect", signed)[1]
    code, out, _ = run("verify-signature", signed, "--key", f"{key}.pub", "--json")
    assert code == 0 and json.loads(out)["key"] == made["key"]
    assert run("verify", signed, built / "model.onnx", "--variant", "native")[0] == 0
    data = bytearray(signed.read_bytes())
    data[len(data) // 2] ^= 1
    signed.write_bytes(data)
    code, _, err = run("verify-signature", signed, "--key", f"{key}.pub")
    assert code == 1 and "not those that the manifest promises" in err


def test_what_a_command_reads_is_not_replaced_by_what_it_writes(built, tmp_path, run):  # noqa: F811
    key, bundle = tmp_path / "key.pem", built / "model.tvmb"
    run("keygen", key)
    before = key.read_bytes(), bundle.read_bytes()
    for command in (
        ("sign", bundle, "--key", key, "-o", key),
        ("verify", bundle, built / "model.onnx", "--junit", bundle),
        ("bench", bundle, "--junit", bundle),
    ):
        code, _, err = run(*command)
        assert code == 1 and "is an input of this command" in err
    assert (key.read_bytes(), bundle.read_bytes()) == before


def test_a_passphrase_comes_from_the_environment(built, tmp_path, run, monkeypatch):  # noqa: F811
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = tmp_path / "locked.pem"
    locked = serialization.BestAvailableEncryption(b"open sesame")
    pem = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked
    )
    key.write_bytes(pem)
    command = ("sign", built / "model.tvmb", "--key", key, "-o", tmp_path / "signed.tvmb")
    assert run(*command)[0] == 1
    monkeypatch.setenv("TVMBRIDGE_KEY_PASSPHRASE", "open sesame")
    assert run(*command)[0] == 0


def test_diff_says_what_two_bundles_differ_in(built, tmp_path, run):  # noqa: F811
    code, out, _ = run("diff", built / "model.tvmb", built / "model.tvmb")
    assert (code, out.strip()) == (0, "no difference")
    other = tmp_path / "other.tvmb"
    run("build", built / "model.onnx", "--dim", "batch=2", "--target", "native", "--no-tune", "-o", other)
    code, out, _ = run("diff", built / "model.tvmb", other, "--json")
    found = {each["what"]: each for each in json.loads(out)["differences"]}
    assert code == 0 and found["input x"]["new"] == "x: float32[2, 17]"
    assert any(what.startswith("variant arm") and each["new"] is None for what, each in found.items())
    code, out, _ = run("diff", built / "model.tvmb", other, "--exit-code")
    assert code == 1 and "variant native: library" in out


def test_unpack_writes_a_variant_as_files_for_this_machine_or_another(built, tmp_path, run):  # noqa: F811
    code, _, _ = run("unpack", built / "model.tvmb", "-o", tmp_path / "here")
    assert code == 0
    lines = (tmp_path / "here" / "variant.txt").read_text().splitlines()
    assert lines[0].startswith("runtime libtvm_runtime") and "input float32 5x17 x" in lines
    assert lines[-1] == "output float32 5x10 logits"
    names = {path.name for path in (tmp_path / "here").iterdir()}
    assert {"model.so", "weights.bin", "libtvm_runtime.so"} <= names
    arm = json.loads(run("inspect", built / "model.tvmb", "--json")[1])["variants"][1]["name"]
    assert run("unpack", built / "model.tvmb", "--variant", arm, "-o", tmp_path / "board")[0] == 0
    assert (tmp_path / "board" / "model.so").read_bytes()[18] == 0xB7  # EM_AARCH64
    code, _, err = run("unpack", built / "model.tvmb", "-o", tmp_path / "here")
    assert code == 1 and "there already" in err
    code, _, err = run("unpack", built / "model.tvmb", "--variant", "none", "-o", tmp_path / "x")
    assert code == 1 and "no variant 'none'" in err and not (tmp_path / "x").exists()


def test_bench_against_another_bundle_is_a_gate(built, tmp_path, run):  # noqa: F811
    bundle, report = built / "model.tvmb", tmp_path / "bench.xml"
    options = ("--against", bundle, "--seconds", "0.5", "--junit", report, "--json")
    code, out, _ = run("bench", bundle, *options, "--max-regression", "400%")
    result = json.loads(out)
    assert code == 0 and result["passed"] and result["against"] == "model.tvmb" and result["ratio"] > 0
    assert ET.parse(report).getroot()[0].get("failures") == "0"


def test_bench_fails_where_the_time_exceeds_the_limit(built, tmp_path, run, monkeypatch):  # noqa: F811
    from tvmbridge.verify import latency

    slow = latency.Latency(10, 130.0, 140.0, 150.0, 100.0, 1.3)
    monkeypatch.setattr(latency, "measure_latency", lambda *_arguments, **_options: slow)
    bundle, report = built / "model.tvmb", tmp_path / "bench.xml"
    code, _, err = run("bench", bundle, "--against", bundle, "--max-regression", "25%", "--junit", report)
    assert code == 1 and "takes 30.0% longer than model.tvmb; 25.0% is allowed" in err
    assert ET.parse(report).getroot()[0].get("failures") == "1"
    assert run("bench", bundle, "--against", bundle, "--max-regression", "0.35")[0] == 0


def test_bench_refuses_bundles_of_other_inputs_and_a_limit_without_a_rival(built, tmp_path, run):  # noqa: F811
    other = tmp_path / "other.tvmb"
    run("build", built / "model.onnx", "--dim", "batch=2", "--target", "native", "--no-tune", "-o", other)
    code, _, err = run("bench", built / "model.tvmb", "--against", other, "--seconds", "0.2")
    assert code == 1 and "takes or gives other arrays" in err
    code, _, err = run("bench", built / "model.tvmb", "--max-regression", "5%")
    assert code == 2 and "longer than what?" in err


def test_verify_writes_a_case_for_each_variant(built, tmp_path, run):  # noqa: F811
    report = tmp_path / "verify.xml"
    assert run("verify", built / "model.tvmb", built / "model.onnx", "--junit", report)[0] == 0
    (suite,) = ET.parse(report).getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("2", "0", "1")
    other = onnx.load(built / "model.onnx")
    (weight,) = (tensor for tensor in other.graph.initializer if tensor.name == "w2")
    weight.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(weight), "w2"))
    onnx.save(other, tmp_path / "other.onnx")
    code, _, _ = run("verify", built / "model.tvmb", tmp_path / "other.onnx", "--junit", report)
    (suite,) = ET.parse(report).getroot()
    assert code == 1 and suite.get("failures") == "1"


def test_the_attachments_of_a_real_build_name_the_tools(built):  # noqa: F811
    with zipfile.ZipFile(built / "model.tvmb") as archive:
        bill = json.loads(archive.read("attachments/sbom.cdx.json"))
    tools = {component["name"]: component["version"] for component in bill["metadata"]["tools"]["components"]}
    assert {"tvmbridge", "apache-tvm", "onnx"} <= tools.keys()
    assert all(tools.values())
