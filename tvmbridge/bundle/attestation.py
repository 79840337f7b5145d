"""What a bundle says of its making, in the formats that others read: SLSA provenance and a CycloneDX SBOM.

Both follow from the same facts as the manifest: no time, no machine, no user, so that equal builds give equal bytes.
Sources: https://slsa.dev/spec/v1.0/provenance, in-toto attestation framework v1, CycloneDX 1.6.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from tvmbridge.bundle.manifest import (
    ATTACHMENT_FOLDER,
    LOG_NAME,
    Manifest,
    MemberEntry,
    ModelFacts,
    VariantEntry,
)
from tvmbridge.version import __version__

PROVENANCE_NAME = f"{ATTACHMENT_FOLDER}provenance.json"
SBOM_NAME = f"{ATTACHMENT_FOLDER}sbom.cdx.json"
_LICENSES = {"apache-tvm": "Apache-2.0", "apache-tvm-ffi": "Apache-2.0"}


def render_provenance(manifest: Manifest, tools: Mapping[str, str]) -> bytes:
    """An in-toto statement with an SLSA provenance predicate. manifest: of the bundle without its attachments.

    tools: versions of what took part in the build, by the name of the package.
    """
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {"sha256": m.sha256}} for name, m in sorted(manifest.members.items())],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "urn:tvmbridge:build:v1",
                "externalParameters": {
                    "inputs": msgspec.to_builtins(manifest.signature.inputs),
                    "targets": [_describe_target(variant) for variant in manifest.variants],
                },
                "resolvedDependencies": _dependencies(
                    manifest.model, manifest.members.get(LOG_NAME), tools, _toolkits(manifest.variants)
                ),
            },
            "runDetails": {"builder": {"id": "urn:tvmbridge:builder", "version": {"tvmbridge": __version__}}},
        },
    }
    return _render(statement)


def render_sbom(manifest: Manifest, tools: Mapping[str, str]) -> bytes:
    """A CycloneDX bill of what is in the bundle, and of what was used to make it. Arguments as above."""
    needed = _needed_packages(manifest.variants)
    files = sorted({name for v in manifest.variants for name in (v.library, *v.runtime_libraries)})
    components = [{"bom-ref": _purl(name, version), **_package(name, version)} for name, version in needed]
    for name in files:
        component = {"type": "file", "bom-ref": name, "name": name, "hashes": _hashes(manifest.members[name].sha256)}
        components.append(component)
    model = {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": manifest.model.name,
        "hashes": _hashes(manifest.model.sha256),
    }
    used = {"tvmbridge": __version__, **tools}
    compilers = [
        {"type": "application", "name": name, "version": version} for name, version in _toolkits(manifest.variants)
    ]
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "tools": {"components": [_package(name, version) for name, version in sorted(used.items())] + compilers},
            "component": model,
        },
        "components": components,
        "dependencies": [{"ref": "model", "dependsOn": [component["bom-ref"] for component in components]}],
    }
    return _render(bill)


def _describe_target(variant: VariantEntry) -> dict[str, Any]:
    names = ("name", "kind", "triple", "cpu", "features", "cores", "architectures", "precision", "cuda_graphs")
    return {name: getattr(variant, name) for name in names}


def _dependencies(
    model: ModelFacts, log: MemberEntry | None, tools: Mapping[str, str], toolkits: Sequence[tuple[str, str]]
) -> list[dict[str, Any]]:
    files: list[dict[str, Any]] = [{"name": model.name, "digest": {"sha256": model.sha256}}]
    if log is not None:
        files.append({"name": LOG_NAME, "digest": {"sha256": log.sha256}})
    packages = [{"uri": _purl(name, version)} for name, version in sorted(tools.items())]
    return files + packages + [{"uri": f"pkg:generic/{name}@{version}"} for name, version in toolkits]


def _toolkits(variants: Sequence[VariantEntry]) -> list[tuple[str, str]]:
    """Name and version of the programs that compiled GPU code: ("nvcc", "13.0.88")."""
    named = {variant.gpu.toolkit for variant in variants if variant.gpu is not None}
    return [(name, version) for name, _, version in (toolkit.partition(" ") for toolkit in sorted(named))]


def _needed_packages(variants: Sequence[VariantEntry]) -> list[tuple[str, str]]:
    """What runs a bundle's variants: the runtime is in the bundle, or comes from the package of the same name."""
    return sorted({p for v in variants for p in (("apache-tvm", v.tvm), ("apache-tvm-ffi", v.tvm_ffi))})


def _package(name: str, version: str) -> dict[str, Any]:
    component: dict[str, Any] = {"type": "library", "name": name, "version": version, "purl": _purl(name, version)}
    if name in _LICENSES:
        component["licenses"] = [{"license": {"id": _LICENSES[name]}}]
    return component


def _purl(name: str, version: str) -> str:
    return f"pkg:pypi/{name}@{version}"


def _hashes(sha256: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": sha256}]


def _render(document: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(document, order="sorted"), indent=2) + b"\n"
