"""CUDA source → C++ for the emulated device: one unit for each kernel, with its shared arrays in a struct of its own.

The headers in include/ make the rest of the language C++. What a unit defines is in kernel.h.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_KERNEL = re.compile(
    r'(?:extern\s+"C"\s+)?__global__\s+void\s+(?:__launch_bounds__\s*\(\s*(?P<threads>\d+)[^)]*\)\s*)?(?P<name>\w+)\s*\('
)
_SHARED = re.compile(
    r"(?P<extern>extern\s+)?__shared__\s+(?P<align>(?:alignas|__align__)\s*\(\s*\d+\s*\)\s*)?"
    r"(?P<type>\w[\w:<>, ]*?)\s+(?P<name>\w+)\s*(?P<extents>(?:\[[^\]]*\]\s*)*);"
)
# A kernel that calls any of these waits for other threads; the others run thread after thread.
_WAITS = re.compile(r"\b(?:__sync\w+|__shfl\w*|__ballot_sync|__any_sync|__all_sync|__activemask|wmma)\b")
_QUIET = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\])*"', re.DOTALL)
_DIRECTIVE = re.compile(r"^[ \t]*#(?:\\\n|[^\n])*", re.MULTILINE)


@dataclass(frozen=True)
class Unit:
    """One kernel as C++. source: with all that the kernel may call, and without the other kernels."""

    kernel: str
    source: str


class TranslationError(ValueError):
    """The source is not of the CUDA that is emulated."""


def translate(source: str) -> tuple[Unit, ...]:
    """Split a CUDA source into units. TranslationError where it has no kernels, or forms that are not emulated."""
    quiet = _blank(source)
    kernels, shared_code, last = [], [], 0
    for match in _KERNEL.finditer(quiet):
        if match.start() < last:
            continue
        end_of_head = _closing(quiet, match.end() - 1, "()")
        following = re.compile(r"\s*([;{])").match(quiet, end_of_head)
        if following is None:
            raise TranslationError(f"error: the kernel {match['name']} has neither a body nor a semicolon")
        shared_code.append(source[last : match.start()])
        if following[1] == ";":
            last = following.end()
            continue
        last = _closing(quiet, following.start(1), "{}")
        head, body = source[match.start() : following.start(1)], source[following.start(1) : last]
        kernels.append((match["name"], int(match["threads"] or 1024), head, body))
    shared_code.append(source[last:])
    around = "".join(shared_code)
    if "__shared__" in _blank(around):
        raise TranslationError("error: shared arrays outside kernels are not emulated")
    if not kernels:
        raise TranslationError("error: no kernels")
    functions_wait = bool(_WAITS.search(_DIRECTIVE.sub("", _blank(around))))
    return tuple(
        Unit(name, around + _unit(name, threads, head, body, functions_wait)) for name, threads, head, body in kernels
    )


def _unit(name: str, threads: int, head: str, body: str, functions_wait: bool) -> str:
    arrays: list[tuple[str, str, str, str]] = []

    def declare(match: re.Match[str]) -> str:
        align, type_, array, extents = (match[group] or "" for group in ("align", "type", "name", "extents"))
        if match["extern"]:
            return f"{type_}* const {array} = static_cast<{type_}*>(cuda_emulation_dynamic_shared());"
        member = f"{array}__{len(arrays)}"
        arrays.append((f"{align}{type_}", member, extents, array))
        return f"auto& {array} = static_cast<{name}__shared*>(cuda_emulation_static_shared())->{member};"

    body = _SHARED.sub(declare, body)
    if "__shared__" in _blank(body):
        raise TranslationError(f"error: a shared array of {name} is declared in a form that is not emulated")
    declared = "".join(f"  {type_} {member}{extents};\n" for type_, member, extents, _ in arrays)
    spaced = "".join(
        f"  {type_} {member}{extents};\n  char {member}__red_zone[kCudaEmulationRedZoneBytes];\n"
        for type_, member, extents, _ in arrays
    )
    zones = "".join(f'{{offsetof({name}__shared, {member}__red_zone), "{array}"}}, ' for _, member, _, array in arrays)
    waits = bool(_WAITS.search(_blank(body))) or functions_wait
    return (
        f"\nstruct {name}__declared {{\n{declared}}};\nstruct {name}__shared {{\n{spaced}}};\n"
        f"static const CudaEmulationRedZone {name}__red_zones[] = {{{zones}{{0, nullptr}}}};\n"
        f"static constexpr unsigned {name}__shared_count = {len(arrays)};\n"
        f'{head}{body}\n#include "kernel_table.h"\n'
        f"CUDA_EMULATION_KERNEL({name}, {threads}, {'true' if waits else 'false'})\n"
    )


def render_table(kernels: list[str]) -> str:
    """The source that lists the kernels of all units."""
    names = [f"cuda_emulation_kernel_{kernel}" for kernel in kernels]
    declared = "".join(f'extern "C" const CudaEmulationKernel {name};\n' for name in names)
    listed = ", ".join(f"&{name}" for name in names)
    return (
        f'#include "kernel.h"\n{declared}'
        f"const CudaEmulationKernel* const cuda_emulation_kernels[] = {{{listed}}};\n"
        f"const unsigned cuda_emulation_kernel_count = {len(names)};\n"
    )


def _blank(source: str) -> str:
    """The source with comments and strings of the same length that say nothing."""
    return _QUIET.sub(lambda match: match[0] if match[0] == '"C"' else re.sub(r"[^\n]", " ", match[0]), source)


def _closing(source: str, start: int, pair: str) -> int:
    """The position behind what closes the bracket at `start`."""
    depth = 0
    for match in re.compile(f"[{re.escape(pair)}]").finditer(source, start):
        depth += 1 if match[0] == pair[0] else -1
        if not depth:
            return match.end()
    raise TranslationError(f"error: a bracket {pair[0]!r} is not closed")
