"""What two bundles differ in, from their manifests: for a review before one replaces the other."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import msgspec

from tvmbridge.bundle.manifest import Manifest, VariantEntry


@dataclass(frozen=True)
class Difference:
    """One thing that is not the same. what: "model.sha256", "variant native: latency_us". None: not there."""

    what: str
    old: Any
    new: Any


def find_differences(old: Manifest, new: Manifest) -> tuple[Difference, ...]:
    """All of them, the model's first, then those of each variant in the order of their names."""
    found = _compare("", _describe(old), _describe(new))
    olds, news = ({variant.name: variant for variant in manifest.variants} for manifest in (old, new))
    for name in sorted(olds.keys() | news.keys()):
        before, after = olds.get(name), news.get(name)
        if before is None or after is None:
            found.append(Difference(f"variant {name}", before and _summary(before), after and _summary(after)))
        else:
            found += _compare(f"variant {name}: ", _describe_variant(old, before), _describe_variant(new, after))
    return tuple(found)


def _compare(prefix: str, old: dict[str, Any], new: dict[str, Any]) -> list[Difference]:
    names = [*old, *(name for name in new if name not in old)]
    return [Difference(prefix + n, old.get(n), new.get(n)) for n in names if old.get(n) != new.get(n)]


def _describe(manifest: Manifest) -> dict[str, Any]:
    facts = {f"model.{name}": value for name, value in msgspec.structs.asdict(manifest.model).items()}
    for what, specs in (("input", manifest.signature.inputs), ("output", manifest.signature.outputs)):
        facts |= {f"{what} {spec.name}": str(spec) for spec in specs}
        facts[f"order of {what}s"] = [spec.name for spec in specs]
    log = manifest.members[manifest.log].sha256 if manifest.log is not None else None
    return {**facts, "format version": manifest.version, "created_by": manifest.created_by, "log": log}


def _describe_variant(manifest: Manifest, variant: VariantEntry) -> dict[str, Any]:
    """Every field, with members by their content: a name that changed alone is no difference."""
    facts = msgspec.to_builtins(variant)
    accuracy = facts.pop("accuracy") or {}
    facts |= {f"accuracy.{name}": value for name, value in accuracy.items()}
    facts["library"] = manifest.members[variant.library].sha256
    facts["runtime_libraries"] = [manifest.members[name].sha256 for name in variant.runtime_libraries]
    digests = [(w.dtype, w.shape, manifest.members[w.member].sha256) for w in variant.weights]
    facts["weights"] = f"{len(digests)} weights, digest {_digest(digests)}"
    return facts


def _summary(variant: VariantEntry) -> str:
    return f"{variant.kind} {variant.cpu} {' '.join(variant.architectures)}".strip()


def _digest(value: object) -> str:
    return hashlib.sha256(msgspec.json.encode(value)).hexdigest()[:16]
