"""The `.tvmb` format: one file that holds a model's compiled variants, weights, runtime libraries and facts.

write_bundle makes one, open_bundle checks one and gives out its members. docs/bundle-format.md is the specification.
"""

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
from tvmbridge.bundle.variant import BuiltVariant
from tvmbridge.bundle.writer import write_bundle

__all__ = [
    "Accuracy",
    "BuiltVariant",
    "Bundle",
    "Manifest",
    "MemberEntry",
    "ModelFacts",
    "Requires",
    "VariantEntry",
    "WeightEntry",
    "open_bundle",
    "write_bundle",
]
