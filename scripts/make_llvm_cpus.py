"""Write tvmbridge/llvm_cpus.json: what the LLVM inside the installed TVM says about CPUs and their features.

Run it after the pinned TVM changes: `python scripts/make_llvm_cpus.py`. A test asserts that the shipped table is what
this prints. The table lets targets.yaml be checked, and a bundle's needs be known, where no compiler is installed.
"""

from __future__ import annotations

import json
from pathlib import Path

import tvm
from tvm.target import codegen

TABLE_PATH = Path(__file__).resolve().parents[1] / "tvmbridge" / "llvm_cpus.json"
BASELINE_CPU = {"x86_64": "x86-64", "aarch64": "generic"}

# The features that code made from ordinary arithmetic may use without being asked, and those that a schedule may use
# on purpose (amx-*). Left out: privileged and cache instructions, cryptography and random numbers, which LLVM selects
# for their own intrinsics only. LLVM gives Cortex-A72 `aes` and the Raspberry Pi 4's has none: listing it would
# refuse a bundle that runs there. Left out as well: prfchw, a no-op where it is missing; avx10.1, a name for AVX-512
# features that are listed; sme*, which works in a mode that compiled kernels never enter.
SELECTED = {
    "x86_64": """
        sse sse2 sse3 ssse3 sse4.1 sse4.2 sse4a avx avx2 fma fma4 xop f16c bmi bmi2 tbm lzcnt popcnt movbe cx16 gfni
        avx512f avx512cd avx512dq avx512bw avx512vl avx512ifma avx512vbmi avx512vbmi2 avx512vnni avx512bitalg
        avx512vpopcntdq avx512bf16 avx512fp16 avx10.2 avxvnni avxvnniint8 avxvnniint16 avxifma avxneconvert
        amx-tile amx-int8 amx-bf16 amx-fp16 amx-complex amx-avx512 amx-fp8 amx-tf32 amx-movrs
        cmpccxadd egpr ndd nf ccmp ppx push2pop2 zu""",
    "aarch64": """
        fp-armv8 neon lse lse2 lse128 rdm fullfp16 fp16fml dotprod i8mm bf16 complxnum jsconv rcpc rcpc-immo rcpc3
        fptoint flagm altnzcv sha3 mops cssc hbc sve sve2 sve2p1 sve-bitperm sve-b16b16 faminmax lut
        fp8 fp8fma fp8dot2 fp8dot4""",
}
# Features that LLVM knows though no CPU of its list has them, so that the union over the CPUs misses them.
WITHOUT_CPU = {"x86_64": ["rtm"], "aarch64": ["lse128", "sve2p1"]}
# Not instruction sets but the mode of the processor: switching them breaks code generation.
MODES = {"64bit", "64bit-mode"}


def llvm_features(machine: str, cpu: str, *extra: str) -> set[str]:
    """The features LLVM turns on for a cpu with the `extra` ones ("+avx512bf16") applied to it."""
    kind = {"kind": "llvm", "mtriple": f"{machine}-linux-gnu", "mcpu": cpu}
    return {str(name) for name in codegen.llvm_get_cpu_features(tvm.target.Target(kind | {"mattr": list(extra)}))}


def make_machine(machine: str) -> dict[str, object]:
    """The part of the table for one machine: cpus, implied features, every feature name."""
    selected = set(SELECTED[machine].split())
    archlist = codegen.llvm_get_cpu_archlist(tvm.target.Target({"kind": "llvm", "mtriple": f"{machine}-linux-gnu"}))
    cpus = {str(cpu): llvm_features(machine, str(cpu)) for cpu in archlist}
    if machine == "x86_64":
        cpus = {cpu: features for cpu, features in cpus.items() if "64bit" in features}
    known = set().union(*cpus.values(), WITHOUT_CPU[machine]) - MODES
    baseline = BASELINE_CPU[machine]
    implied = {
        name: (llvm_features(machine, baseline, f"+{name}") - llvm_features(machine, baseline)) & selected - {name}
        for name in sorted(known)
    }
    return {
        "cpus": {cpu: " ".join(sorted(cpus[cpu] & selected)) for cpu in sorted(cpus)},
        "implies": {name: " ".join(sorted(features)) for name, features in implied.items() if features},
        "selected": " ".join(sorted(selected & known)),
        "known": " ".join(sorted(known)),
    }


def render_table() -> str:
    """The whole table as JSON text, one line a CPU so that a change of LLVM reads well in a diff."""
    machines = {machine: make_machine(machine) for machine in sorted(SELECTED)}
    table = {"format": "tvmbridge-llvm-cpus", "version": 1, "llvm": int(codegen.llvm_version_major())}
    return json.dumps(table | {"machines": machines}, indent=1) + "\n"


if __name__ == "__main__":
    TABLE_PATH.write_text(render_table(), encoding="utf-8")
