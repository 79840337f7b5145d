"""Targets: what hardware to build for, how many cores, where to measure, and how much tuning may spend.

A `Target` is a plain value. It comes from a targets.yaml (`load_targets`) or from a preset (`parse_preset`); both are
checked against the CPUs and features that LLVM knows, without a compiler installed. Every error is a TargetError.
"""

from __future__ import annotations

from tvmbridge.targets.declared import load_targets, parse_targets
from tvmbridge.targets.presets import parse_preset
from tvmbridge.targets.schema import targets_json_schema
from tvmbridge.targets.target import RpcMeasure, Target, why_not_local

__all__ = [
    "RpcMeasure",
    "Target",
    "load_targets",
    "parse_preset",
    "parse_targets",
    "targets_json_schema",
    "why_not_local",
]
