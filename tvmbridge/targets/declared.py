"""targets.yaml → Targets, every value checked: an error names file, key path, value and what is allowed."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, get_args

import msgspec

from tvmbridge.errors import TargetError
from tvmbridge.host import Host, detect_host
from tvmbridge.targets.llvm import close_matches, shown
from tvmbridge.targets.presets import (
    DEFAULT_CORES,
    DEFAULT_CPU,
    DEFAULT_CUDA_HOST,
    check_architectures,
    check_cpu_features,
    parse_cpu,
    target_of_preset,
)
from tvmbridge.targets.target import Kind, Measure, Precision, RpcMeasure, Target
from tvmbridge.targets.yaml_text import MAX_CHARACTERS, Value, parse_yaml
from tvmbridge.tuning.budget import Budget

FORMAT_VERSION = 1
MAX_CORES = 1024
MAX_TRIALS = 10**9
NAME_PATTERN = "[A-Za-z0-9_][A-Za-z0-9._-]{0,63}"
TRACKER_PATTERN = r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}"
RPC_KEY_PATTERN = r"[!-~]{1,100}"

_ANY_KIND = ("cores", "measure", "budget")
KEYS: dict[str, tuple[str, ...]] = {
    "preset": ("preset", "precision", "cuda_graphs", *_ANY_KIND),
    "x86": ("kind", "cpu", "features", *_ANY_KIND),
    "arm": ("kind", "cpu", "features", *_ANY_KIND),
    "cuda": ("kind", "architectures", "precision", "cuda_graphs", "host", "features", *_ANY_KIND),
}


class Place(NamedTuple):
    """A key path in a file, the start of every message: "targets.yaml: targets.edge.cpu"."""

    source: str
    path: str = ""

    def at(self, key: str | int) -> Place:
        """The place of one of this mapping's keys or this list's items."""
        step = f"[{key}]" if isinstance(key, int) else key if re.fullmatch(NAME_PATTERN, key) else f"[{shown(key)}]"
        return Place(self.source, f"{self.path}.{step}" if self.path and not step.startswith("[") else self.path + step)

    def error(self, problem: str, *, hint: str | None = None) -> TargetError:
        """The TargetError for a problem at this place."""
        return TargetError(f"{self.source}: {f'{self.path}: ' if self.path else ''}{problem}", hint=hint)


def load_targets(path: str | os.PathLike[str], *, host: Host | None = None) -> tuple[Target, ...]:
    """The targets that a file declares, in its order; raises TargetError for anything wrong with it."""
    source = os.fspath(path)
    try:
        with Path(path).open("rb") as file:
            # A character takes at most 4 bytes; a device file never ends.
            data = file.read(4 * MAX_CHARACTERS + 1)
    except FileNotFoundError as exc:
        hint = "make one (docs/targets-yaml.md), or name a preset: --target native"
        raise TargetError(f"{source}: no such file", hint=hint) from exc
    except (OSError, ValueError) as exc:
        raise TargetError(f"{source}: cannot be read: {getattr(exc, 'strerror', None) or exc}") from exc
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        if len(data) > 4 * MAX_CHARACTERS:
            raise TargetError(f"{source}: too large for a targets.yaml, and not text") from exc
        raise TargetError(f"{source}: not UTF-8 text (byte {data[exc.start]:#04x} at offset {exc.start})") from exc
    return parse_targets(text, source, host=host)


def parse_targets(text: str, source: str, *, host: Host | None = None) -> tuple[Target, ...]:
    """The targets that the text of a targets.yaml declares, in its order; raises TargetError.

    source: what the messages call the text. host: this machine, for `native` and `measure: local`; detected when a
    target needs it and it is not given.
    """
    place = Place(source)
    root = parse_yaml(text, source)
    if root is None:
        raise place.error("is empty", hint="version: 1, then targets: (docs/targets-yaml.md)")
    document = _mapping(root, place, ("version", "targets"))
    if "version" not in document:
        raise place.error("no version", hint=f"start with `version: {FORMAT_VERSION}`")
    version = _whole(document["version"], place.at("version"), 1, 10**6)
    if version != FORMAT_VERSION:
        raise place.at("version").error(f"{version} is newer than this tvmbridge reads", hint=f"{FORMAT_VERSION}")
    if "targets" not in document:
        raise place.error("declares no targets", hint="targets: {native: {preset: native}}")
    place = place.at("targets")
    declared = _mapping(document["targets"], place, None)
    if not declared:
        raise place.error("declares no target", hint="targets: {native: {preset: native}}")

    @functools.cache
    def this_host(gpus: bool) -> Host:
        return host or detect_host(gpus=gpus)

    return tuple(_target(name, value, place, this_host) for name, value in declared.items())


def _target(name: str, value: Value, parent: Place, this_host: Callable[[bool], Host]) -> Target:
    place = parent.at(name)
    if not re.fullmatch(NAME_PATTERN, name):
        raise parent.error(
            f"{shown(name)} cannot be the name of a target",
            hint="letters, digits, . _ - only; 64 at most; not first . or -",
        )
    entry = _mapping(value, place, None)
    form = _form(entry, place)
    if form in ("x86", "arm"):
        _refuse_cuda_keys(entry, place)
    _check_keys(entry, place, KEYS[form])
    if form == "preset":
        with _placed(place.at("preset")):
            preset = _text(entry["preset"], place.at("preset"))
            base = target_of_preset(preset, this_host(False) if preset.strip() == "native" else None)
    else:
        base = _target_of_kind(entry, place, this_host)
    if base.kind != "cuda":
        _refuse_cuda_keys(entry, place)
    precision = _precision(entry["precision"], place.at("precision")) if "precision" in entry else base.precision
    graphs = _truth(entry["cuda_graphs"], place.at("cuda_graphs")) if "cuda_graphs" in entry else base.cuda_graphs
    cores = _whole(entry["cores"], place.at("cores"), 1, MAX_CORES) if "cores" in entry else base.cores
    measure = _measure(entry["measure"], place.at("measure")) if "measure" in entry else base.measure
    budget = _budget(entry["budget"], place.at("budget")) if "budget" in entry else None
    hardware, emulated = _hardware(base, measure, this_host)
    return msgspec.structs.replace(
        base,
        name=name,
        cores=cores,
        precision=precision,
        cuda_graphs=graphs,
        measure=measure,
        budget=budget,
        hardware=hardware,
        emulated=emulated,
    )


def _form(entry: dict[str, Value], place: Place) -> str:
    """ "preset" or the kind: what says which other keys a target may have."""
    if "preset" in entry:
        if "kind" in entry:
            raise place.error("has both preset and kind", hint="keep one of them")
        return "preset"
    if "kind" not in entry:
        _check_keys(entry, place, tuple(dict.fromkeys(key for keys in KEYS.values() for key in keys)))
        raise place.error("has neither preset nor kind", hint="`preset: native`, or `kind:` x86, arm or cuda")
    kind = _text(entry["kind"], place.at("kind"))
    kinds = [form for form in KEYS if form != "preset"]
    if kind not in kinds:
        raise place.at("kind").error(f"no such kind {shown(kind)}{close_matches(kind, kinds)}", hint="x86, arm or cuda")
    return kind


def _target_of_kind(entry: dict[str, Value], place: Place, this_host: Callable[[bool], Host]) -> Target:
    kind = str(entry["kind"])
    architectures: tuple[str, ...] = ()
    if kind == "cuda":
        if "architectures" not in entry:
            raise place.error("a cuda target names its GPU architectures", hint="architectures: [sm_80, sm_90]")
        with _placed(place.at("architectures")):
            architectures = check_architectures(_texts(entry["architectures"], place.at("architectures")))
        text, key = _text(entry.get("host", DEFAULT_CUDA_HOST), place.at("host")), "host"
    else:
        machine = "x86_64" if kind == "x86" else "aarch64"
        text, key = f"{kind}:{_text(entry.get('cpu', DEFAULT_CPU[machine]), place.at('cpu'))}", "cpu"
    with _placed(place.at(key)):
        cpu = parse_cpu(text, this_host(False) if text == "native" else None)
    if "features" in entry:
        with _placed(place.at("features")):
            cpu = check_cpu_features(cpu, _texts(entry["features"], place.at("features")))
    checked: Kind = "cuda" if kind == "cuda" else cpu.kind
    return Target("", checked, cpu.triple, cpu.cpu, cpu.features, DEFAULT_CORES, architectures=architectures)


def _precision(value: Value, place: Place) -> Precision:
    text = _text(value, place)
    if text == "float32":
        return "float32"
    if text == "float16":
        return "float16"
    raise place.error(
        f"cannot be {shown(text)}{close_matches(text, get_args(Precision))}", hint=" or ".join(get_args(Precision))
    )


def _refuse_cuda_keys(entry: dict[str, Value], parent: Place) -> None:
    """Raise where a target for a CPU has what only one for GPUs may have."""
    if "precision" in entry:
        problem = "only a cuda target has one: code for CPUs computes in the types of the model"
        raise parent.at("precision").error(problem, hint="take it away")
    if "cuda_graphs" in entry:
        raise parent.at("cuda_graphs").error("only a cuda target has them", hint="take it away")


def _measure(value: Value, place: Place) -> Measure:
    if isinstance(value, dict):
        rpc_place = place.at("rpc")
        _check_keys(value, place, ("rpc",))
        if "rpc" not in value:
            raise place.error("is empty", hint="local, none, or {rpc: {tracker: HOST:PORT, key: KEY}}")
        rpc = _mapping(value["rpc"], rpc_place, ("tracker", "key", "emulated"))
        for key in ("tracker", "key"):
            if key not in rpc:
                raise rpc_place.error(f"no {key}", hint="{tracker: HOST:PORT, key: KEY}")
        tracker = _text(rpc["tracker"], rpc_place.at("tracker"))
        key = _text(rpc["key"], rpc_place.at("key"))
        if not re.fullmatch(TRACKER_PATTERN, tracker) or not 1 <= int(tracker.rpartition(":")[2]) <= 65535:
            raise rpc_place.at("tracker").error(f"{shown(tracker)} is not HOST:PORT", hint="for example 10.0.0.7:9190")
        if not re.fullmatch(RPC_KEY_PATTERN, key):
            raise rpc_place.at("key").error(
                f"{shown(key)} is no RPC key", hint="1 to 100 characters, none of them a space"
            )
        emulated = _truth(rpc.get("emulated", "false"), rpc_place.at("emulated"))
        return RpcMeasure(tracker=tracker, key=key, emulated=emulated)
    text = _text(value, place)
    if text == "local":
        return "local"
    if text == "none":
        return "none"
    raise place.error(f"cannot be {shown(text)}", hint="local, none, or {rpc: {tracker: HOST:PORT, key: KEY}}")


def _budget(value: Value, place: Place) -> Budget:
    limits = _mapping(value, place, ("minutes", "trials"))
    if not limits:
        raise place.error("limits nothing", hint="{minutes: 10}, {trials: 500} or both")
    trials = _whole(limits["trials"], place.at("trials"), 0, MAX_TRIALS) if "trials" in limits else None
    minutes = _number(limits["minutes"], place.at("minutes")) if "minutes" in limits else None
    return Budget(trials=trials, minutes=minutes)


def _hardware(target: Target, measure: Measure, this_host: Callable[[bool], Host]) -> tuple[str | None, bool]:
    """What `measure` times on, None too where this machine cannot, which tuning will say (`why_not_local`); and whether
    that is emulated."""
    if isinstance(measure, RpcMeasure):
        return measure.key, measure.emulated
    if measure == "none":
        return None, False
    host = this_host(target.kind == "cuda")
    if target.kind == "cuda":
        return (host.gpus[0].hardware, host.emulated or host.gpus[0].emulated) if host.gpus else (None, False)
    return (host.cpu_model, host.emulated) if host.machine == target.machine else (None, False)


@contextmanager
def _placed(place: Place) -> Iterator[None]:
    """Put the place before the message of a TargetError that does not start with the file's name yet."""
    try:
        yield
    except TargetError as exc:
        if exc.message.startswith(f"{place.source}: "):
            raise
        raise place.error(exc.message, hint=exc.hint) from exc


def _mapping(value: Value, place: Place, allowed: Sequence[str] | None) -> dict[str, Value]:
    if not isinstance(value, dict):
        raise place.error(f"expected keys and values, found {_described(value)}")
    if allowed is not None:
        _check_keys(value, place, allowed)
    return value


def _check_keys(mapping: dict[str, Value], place: Place, allowed: Sequence[str]) -> None:
    for key in mapping:
        if key not in allowed:
            raise place.error(
                f"no such key {shown(key)}{close_matches(key, allowed)}", hint=f"one of: {', '.join(allowed)}"
            )


def _text(value: Value, place: Place) -> str:
    if not isinstance(value, str) or not value:
        raise place.error(f"expected text, found {_described(value)}")
    return value


def _texts(value: Value, place: Place) -> list[str]:
    if not isinstance(value, list):
        raise place.error(f"expected a list, found {_described(value)}", hint="[…, …]")
    return [_text(item, place.at(index)) for index, item in enumerate(value)]


def _truth(value: Value, place: Place) -> bool:
    if value not in ("true", "false"):
        raise place.error(f"expected true or false, found {_described(value)}")
    return value == "true"


def _whole(value: Value, place: Place, least: int, most: int) -> int:
    """A whole number in decimal digits, least <= number <= most."""
    if not isinstance(value, str) or not re.fullmatch("-?[0-9]{1,18}", value):
        raise place.error(f"expected a whole number from {least} to {most}, found {_described(value)}")
    if not least <= int(value) <= most:
        raise place.error(f"expected {least} to {most}, found {value}")
    return int(value)


def _number(value: Value, place: Place) -> float:
    if not isinstance(value, str) or not re.fullmatch(r"([0-9]{1,9}(\.[0-9]{0,9})?|\.[0-9]{1,9})", value):
        raise place.error(f"expected a number that is not negative, found {_described(value)}")
    return float(value)


def _described(value: Value) -> str:
    if isinstance(value, str):
        return shown(value) if value else "nothing"
    return "a list" if isinstance(value, list) else "keys and values"
