"""Provenance and bill of materials: in every bundle, in the shapes that other tools read, and free of the machine."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from pathlib import Path

import pytest

from tests.test_bundle import MODEL, SIGNATURE, draw_weights, make_variant
from tvmbridge.bundle import open_bundle, write_bundle
from tvmbridge.bundle.gpu_code import GpuBuild, GpuFunction, MachineCode

TOOLS = {"apache-tvm": "0.27.0.post1", "onnx": "1.23.2"}


@pytest.fixture
def bundle_path(tmp_path: Path) -> Path:
    variants = [make_variant(tmp_path, name, draw_weights()) for name in ("native", "edge")]
    path = tmp_path / "model.tvmb"
    write_bundle(path, model=MODEL, signature=SIGNATURE, variants=variants, log=b"{}\n", tools=TOOLS)
    return path


def read(path: Path, name: str) -> dict:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(name))


def test_provenance_names_every_member_the_model_the_log_and_the_tools(bundle_path):
    statement = read(bundle_path, "attachments/provenance.json")
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    subjects = {subject["name"]: subject["digest"]["sha256"] for subject in statement["subject"]}
    with open_bundle(bundle_path) as bundle:
        members = {n: m.sha256 for n, m in bundle.manifest.members.items() if not n.startswith("attachments/")}
    assert subjects == members and len(members) >= 5
    definition = statement["predicate"]["buildDefinition"]
    assert [target["name"] for target in definition["externalParameters"]["targets"]] == ["native", "edge"]
    used = definition["resolvedDependencies"]
    assert used[0] == {"name": "digits", "digest": {"sha256": MODEL.sha256}}
    assert used[1] == {"name": "tuning.jsonl", "digest": {"sha256": hashlib.sha256(b"{}\n").hexdigest()}}
    assert [each["uri"] for each in used[2:]] == ["pkg:pypi/apache-tvm@0.27.0.post1", "pkg:pypi/onnx@1.23.2"]


def test_the_bill_of_materials_names_packages_and_libraries_with_their_digests(bundle_path):
    bill = read(bundle_path, "attachments/sbom.cdx.json")
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert bill["metadata"]["component"]["hashes"] == [{"alg": "SHA-256", "content": MODEL.sha256}]
    references = {component["bom-ref"]: component for component in bill["components"]}
    assert references["pkg:pypi/apache-tvm@0.27.0.post1"]["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    with open_bundle(bundle_path) as bundle:
        for variant in bundle.manifest.variants:
            for name in (variant.library, *variant.runtime_libraries):
                digest = bundle.manifest.members[name].sha256
                assert references[name]["hashes"] == [{"alg": "SHA-256", "content": digest}]
    assert sorted(bill["dependencies"][0]["dependsOn"]) == sorted(references)
    assert len(references) == len(bill["components"])
    # The standard wants every reference once in the whole bill; a tool of the build may be a component, too.
    texts = re.findall(r'"bom-ref": "([^"]*)"', json.dumps(bill))
    assert len(texts) == len(set(texts)) == len(references) + 1


def test_neither_says_when_and_where_it_was_made(bundle_path):
    with zipfile.ZipFile(bundle_path) as archive:
        texts = [archive.read(name).decode() for name in archive.namelist() if name.startswith("attachments/")]
    assert len(texts) == 2
    for text in texts:
        assert str(bundle_path.parent) not in text
        assert re.search(r"20[0-9]{2}-[01][0-9]-[0-3][0-9]", text) is None


def test_the_compiler_of_gpu_code_is_named_in_both(tmp_path):
    function = GpuFunction("k", "k", (1, 1, 1), (32, 1, 1), 0, (MachineCode("sm_90", 40, 0, 0, 0, 0),))
    built = make_variant(tmp_path, "gpu", draw_weights(), gpu=GpuBuild("nvcc 13.0.88", (function,)))
    write_bundle(tmp_path / "m.tvmb", model=MODEL, signature=SIGNATURE, variants=[built], tools=TOOLS)
    used = read(tmp_path / "m.tvmb", "attachments/provenance.json")["predicate"]["buildDefinition"]
    assert used["resolvedDependencies"][-1] == {"uri": "pkg:generic/nvcc@13.0.88"}
    tools = read(tmp_path / "m.tvmb", "attachments/sbom.cdx.json")["metadata"]["tools"]["components"]
    assert tools[-1] == {"type": "application", "name": "nvcc", "version": "13.0.88"}
