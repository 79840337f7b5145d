"""YAML text → nested text: mappings, lists and strings only, with nothing of YAML that can surprise.

Every scalar stays the text that was written, so that a target may be called `no` and 10:22 is no number; whoever wants
a number parses one. Refused: duplicate keys, anchors and aliases, tags, several documents, depth, size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvmbridge.errors import TargetError
from tvmbridge.targets.llvm import shown

if TYPE_CHECKING:
    from collections.abc import Iterable

Value = str | list["Value"] | dict[str, "Value"]

MAX_CHARACTERS = 65_536
MAX_DEPTH = 10


def parse_yaml(text: str, source: str) -> Value | None:
    """The one document of the text; None if there is none. Raises TargetError naming the source and the line."""
    # A deploy machine imports Target and has no PyYAML.
    import yaml

    if len(text) > MAX_CHARACTERS:
        raise TargetError(f"{source}: larger than the {MAX_CHARACTERS} characters that a targets.yaml may have")
    try:
        _check_events(yaml.parse(text, Loader=yaml.BaseLoader), source)
        root = yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        raise TargetError(f"{source}{f':{mark.line + 1}' if mark else ''}: not YAML: {exc.problem}") from exc
    except yaml.reader.ReaderError as exc:
        line = text.count("\n", 0, exc.position) + 1
        raise TargetError(f"{source}:{line}: not YAML: the character U+{exc.character:04X} is not allowed") from exc
    except (ValueError, OverflowError) as exc:
        # PyYAML lets the errors of int() and chr() through: "\UFFFFFFFF", a %YAML directive of 5000 digits.
        raise TargetError(f"{source}: not YAML: {exc}") from exc
    return None if root is None else _value(root, source)


def _check_events(events: Iterable[Any], source: str) -> None:
    """Read the text as events, which costs no recursion, and refuse what must not reach the composer."""
    depth = 0
    for event in events:
        line = event.start_mark.line + 1
        if getattr(event, "anchor", None) is not None:
            raise TargetError(
                f"{source}:{line}: anchors and aliases (&, *) are not allowed", hint="write the values out"
            )
        if getattr(event, "tag", None) is not None:
            raise TargetError(f"{source}:{line}: YAML tags (!) are not allowed", hint=f"leave out {shown(event.tag)}")
        # CollectionStartEvent and CollectionEndEvent, told apart by name: the classes need PyYAML at import.
        name = type(event).__name__
        depth += name in ("MappingStartEvent", "SequenceStartEvent")
        depth -= name in ("MappingEndEvent", "SequenceEndEvent")
        if depth > MAX_DEPTH:
            raise TargetError(f"{source}:{line}: nested more than {MAX_DEPTH} levels deep")


def _value(node: Any, source: str) -> Value:
    if node.id == "scalar":
        return str(node.value)
    if node.id == "sequence":
        return [_value(item, source) for item in node.value]
    mapping: dict[str, Value] = {}
    lines: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if key_node.id != "scalar":
            raise TargetError(f"{source}:{line}: a key must be plain text, not a {key_node.id}")
        key = str(key_node.value)
        if key in mapping:
            raise TargetError(f"{source}:{line}: the key {shown(key)} is there already, in line {lines[key]}")
        mapping[key], lines[key] = _value(value_node, source), line
    return mapping
