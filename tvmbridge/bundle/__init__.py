"""The `.tvmb` format: one file that holds a model's compiled variants, weights, runtime libraries and facts.

write_bundle makes one, open_bundle checks one and gives out its members, sign_bundle and verify_signature say who made
it. docs/bundle-format.md is the specification. What makes or signs bundles is imported when it is first used: a machine
that runs them starts without it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tvmbridge.bundle.bound import BoundValue, describe_values, read_values
from tvmbridge.bundle.manifest import (
    Accuracy,
    Manifest,
    MemberEntry,
    ModelFacts,
    Requires,
    VariantEntry,
    WeightEntry,
)
from tvmbridge.bundle.reader import Bundle, open_bundle

if TYPE_CHECKING:
    from tvmbridge.bundle.signing import make_key, sign_bundle, verify_signature
    from tvmbridge.bundle.variant import BuiltVariant
    from tvmbridge.bundle.writer import write_bundle

__all__ = [
    "Accuracy",
    "BoundValue",
    "BuiltVariant",
    "Bundle",
    "Manifest",
    "MemberEntry",
    "ModelFacts",
    "Requires",
    "VariantEntry",
    "WeightEntry",
    "describe_values",
    "make_key",
    "open_bundle",
    "read_values",
    "sign_bundle",
    "verify_signature",
    "write_bundle",
]

_HOMES = {
    "BuiltVariant": "variant",
    "make_key": "signing",
    "sign_bundle": "signing",
    "verify_signature": "signing",
    "write_bundle": "writer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tvmbridge.bundle' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"tvmbridge.bundle.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
