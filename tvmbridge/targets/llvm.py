"""What LLVM knows of CPUs and their features, from a table shipped with the package.

The table is written by scripts/make_llvm_cpus.py from the LLVM inside the pinned TVM.
"""

from __future__ import annotations

import difflib
import functools
import importlib.resources
from collections.abc import Iterable, Sequence

import msgspec

from tvmbridge.errors import TargetError

# Without these LLVM has no calling convention for floats and ends the process.
_REQUIRED = {"x86_64": frozenset({"sse", "sse2"}), "aarch64": frozenset({"fp-armv8", "neon"})}
# Share of matching characters from which on a name is suggested: "navite" for "native" has 0.67.
_CLOSE = 0.65
_KINDS = {"x86_64": "x86", "aarch64": "arm"}
# Clang takes these names; what LLVM generates code for is called otherwise (llvm/TargetParser/AArch64TargetParser.h).
_ALIASES = {"aarch64": {"apple-m1": "apple-a14", "apple-m2": "apple-a15", "apple-m3": "apple-a16"}}


class _MachineTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """cpus: CPU → features that code for it may use. implies: feature → features that come with it. Space-separated."""

    cpus: dict[str, str]
    implies: dict[str, str]
    selected: str
    known: str


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: str
    version: int
    llvm: int
    machines: dict[str, _MachineTable]


@functools.cache
def _table() -> _Table:
    data = importlib.resources.files("tvmbridge").joinpath("llvm_cpus.json").read_bytes()
    return msgspec.json.decode(data, type=_Table)


def llvm_cpus(machine: str) -> tuple[str, ...]:
    """Every CPU name LLVM takes for a machine ("x86_64", "aarch64") in 64-bit mode, sorted."""
    return tuple(_table().machines[machine].cpus)


def cpu_aliases(machine: str) -> dict[str, str]:
    """Further names of CPUs: the name → LLVM's."""
    return _ALIASES.get(machine, {})


def check_cpu(machine: str, cpu: str) -> None:
    """Raise TargetError unless LLVM has a CPU of that name for the machine."""
    cpus = llvm_cpus(machine)
    if cpu in cpus:
        return
    if cpu == "native":
        raise TargetError("native is a preset, not a cpu", hint="preset: native")
    other = next(name for name in _KINDS if name != machine)
    if cpu in llvm_cpus(other):
        raise TargetError(
            f"{cpu!r} is an {_KINDS[other]} cpu ({other}), not a {machine} one", hint=f"kind: {_KINDS[other]}"
        )
    raise TargetError(
        f"LLVM knows no {machine} cpu {shown(cpu)}{close_matches(cpu, cpus)}",
        hint=f"one of: {', '.join(cpus)}" if not difflib.get_close_matches(cpu[:64], cpus, cutoff=_CLOSE) else None,
    )


def check_features(machine: str, cpu: str, features: Iterable[str]) -> None:
    """Raise TargetError unless each is "+name" or "-name" of a known feature, named once, and floats still work."""
    known = _table().machines[machine].known.split()
    signs: dict[str, str] = {}
    for feature in features:
        sign, name = feature[:1], feature[1:]
        if sign not in ("+", "-"):
            hint = f"'+{feature}' adds it, '-{feature}' takes it away" if feature in known else "for example '+avx2'"
            raise TargetError(f"a feature starts with + or -, {shown(feature)} does not", hint=hint)
        if name not in known:
            raise TargetError(f"LLVM knows no {machine} feature {shown(name)}{close_matches(name, known)}")
        if name in signs:
            raise TargetError(f"the feature {name!r} is given twice ('{signs[name]}{name}' and '{feature}')")
        signs[name] = sign
    lost = _REQUIRED[machine] - usable_features(machine, cpu, tuple(sorted(features)))
    if lost:
        raise TargetError(f"code for {machine} cannot do without {', '.join(sorted(lost))}")


@functools.cache
def usable_features(machine: str, cpu: str, features: tuple[str, ...]) -> frozenset[str]:
    """Instruction-set features that code for this cpu with these "+name", "-name" on top may use.

    As LLVM reads them, in order: "+" brings what the feature implies, "-" takes away what implies it.
    """
    table = _table().machines[machine]
    if cpu not in table.cpus:
        check_cpu(machine, cpu)
    usable = set(table.cpus[cpu].split())
    for feature in features:
        sign, name = feature[0], feature[1:]
        if sign == "+":
            usable |= {name, *implied_features(machine, name)}
        else:
            usable -= {other for other in usable if other == name or name in implied_features(machine, other)}
    return frozenset(usable & set(table.selected.split()))


def implied_features(machine: str, name: str) -> frozenset[str]:
    """The instruction-set features that "+name" turns on besides itself."""
    return frozenset(_table().machines[machine].implies.get(name, "").split())


def close_matches(text: str, allowed: Sequence[str]) -> str:
    """ "; close matches: a, b" for the end of a message; empty where nothing is close."""
    matches = difflib.get_close_matches(text[:64], allowed, n=3, cutoff=_CLOSE)
    return f"; close matches: {', '.join(matches)}" if matches else ""


def shown(value: object) -> str:
    """A user's value as a message shows it: quoted, on one line, at most about 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:56]} …"
