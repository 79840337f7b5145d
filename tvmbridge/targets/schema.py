"""The JSON Schema of targets.yaml, from the same tables that the parser checks with; editors complete with it."""

from __future__ import annotations

from typing import Any, get_args

from tvmbridge.targets.declared import (
    FORMAT_VERSION,
    KEYS,
    MAX_CORES,
    MAX_TRIALS,
    NAME_PATTERN,
    RPC_KEY_PATTERN,
    TRACKER_PATTERN,
)
from tvmbridge.targets.llvm import cpu_aliases, llvm_cpus
from tvmbridge.targets.presets import CUDA_ARCHITECTURES, DEFAULT_CORES, DEFAULT_CPU, DEFAULT_CUDA_HOST, PRESET_FORMS
from tvmbridge.targets.target import Precision

_REQUIRED = {"preset": ["preset"], "x86": ["kind"], "arm": ["kind"], "cuda": ["kind", "architectures"]}


def targets_json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a targets.yaml; shipped as tvmbridge/targets.schema.json."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "tvmbridge targets.yaml",
        "description": "The targets that tvmbridge builds for. See docs/targets-yaml.md.",
        **_object(
            ["version", "targets"],
            version={"const": FORMAT_VERSION, "description": "Version of this format."},
            targets={
                "type": "object",
                "minProperties": 1,
                "propertyNames": {"pattern": f"^{NAME_PATTERN}$"},
                "additionalProperties": {"oneOf": [_entry(form) for form in KEYS]},
            },
        ),
    }


def _entry(form: str) -> dict[str, Any]:
    """The schema of one way to declare a target."""
    properties = {key: schema for key, schema in _properties(form).items() if key in KEYS[form]}
    return {"title": f"{form} target" if form != "preset" else "preset", **_object(_REQUIRED[form], **properties)}


def _properties(form: str) -> dict[str, Any]:
    machine = "aarch64" if form == "arm" else "x86_64"
    return {
        "preset": {
            "type": "string",
            "pattern": "^(native|(x86|arm)(:.+)?|x86-64(-v[234])?|cuda:.+)$",
            "description": f"One of: {PRESET_FORMS}.",
        },
        "kind": {"const": form},
        "cpu": {
            "enum": sorted([*llvm_cpus(machine), *cpu_aliases(machine)]),
            "default": DEFAULT_CPU[machine],
            "description": "The CPU by LLVM's name.",
        },
        "features": {
            "type": "array",
            "items": {"type": "string", "pattern": "^[+-].+$"},
            "uniqueItems": True,
            "description": "LLVM features on top of the CPU's: +name adds, -name takes away.",
        },
        "architectures": {
            "type": "array",
            "items": {"enum": list(CUDA_ARCHITECTURES)},
            "minItems": 1,
            "uniqueItems": True,
            "description": "GPU architectures that get machine code.",
        },
        "precision": {
            "enum": list(get_args(Precision)),
            "default": "float32",
            "description": "Of a cuda target. float16: products of float16, sums in float32.",
        },
        "cuda_graphs": {
            "type": "boolean",
            "default": False,
            "description": "Of a cuda target: whether kernels are launched in CUDA graphs.",
        },
        "host": {
            "type": "string",
            "pattern": "^(native|(x86|arm)(:.+)?|x86-64(-v[234])?)$",
            "default": DEFAULT_CUDA_HOST,
            "description": "The CPU beside the GPU: x86-64-v3, x86:CPU, arm, arm:CPU or native.",
        },
        "cores": {
            "type": "integer",
            "minimum": 1,
            "maximum": MAX_CORES,
            "description": f"Cores that parallel loops are split for; native: this machine's, others: {DEFAULT_CORES}.",
        },
        "measure": {
            "description": "Where candidates are timed while tuning; native: local, others: none.",
            "oneOf": [{"enum": ["local", "none"]}, _object(["rpc"], rpc=_rpc())],
        },
        "budget": {
            "description": "What tuning may spend; the limit reached first ends it.",
            "minProperties": 1,
            **_object(
                [],
                minutes={"type": "number", "minimum": 0},
                trials={"type": "integer", "minimum": 0, "maximum": MAX_TRIALS},
            ),
        },
    }


def _rpc() -> dict[str, Any]:
    return _object(
        ["tracker", "key"],
        tracker={
            "type": "string",
            "pattern": f"^{TRACKER_PATTERN}$",
            "description": "HOST:PORT of the TVM RPC tracker.",
        },
        key={"type": "string", "pattern": f"^{RPC_KEY_PATTERN}$", "description": "What the device is registered as."},
        emulated={
            "type": "boolean",
            "default": False,
            "description": "Whether the devices are emulated; their records never count for real hardware.",
        },
    )


def _object(required: list[str], **properties: dict[str, Any]) -> dict[str, Any]:
    """A mapping with these keys and no others."""
    return {"type": "object", "required": required, "properties": properties, "additionalProperties": False}
