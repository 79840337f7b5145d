"""Splits a file into parts below a size and joins them again: for machines to which little goes at a time.

The parts lie beside a list of them with their digests, so that a part that is missing or damaged is named.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

LIST_NAME = "parts.json"
FORMAT = "tvmbridge.parts"
_CHUNK_BYTES = 1 << 20


class PartsError(Exception):
    """Parts that do not make the file; the message says which."""


def split_file(path: Path, folder: Path, part_bytes: int) -> list[Path]:
    """Write the file's parts and their list into `folder`; each holds at most `part_bytes`."""
    if part_bytes < 1:
        raise ValueError(f"part_bytes={part_bytes}: a part holds at least one byte")
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    with path.open("rb") as whole:
        while (first := whole.read(min(_CHUNK_BYTES, part_bytes))) or not written:
            written.append(folder / f"{path.name}.part{len(written):03}")
            with written[-1].open("wb") as part:
                left = part_bytes
                while first:
                    part.write(first)
                    left -= len(first)
                    first = whole.read(min(_CHUNK_BYTES, left))
    listed = {
        "format": FORMAT,
        "name": path.name,
        "parts": [{"name": part.name, "size_bytes": part.stat().st_size, "sha256": _digest(part)} for part in written],
    }
    (folder / LIST_NAME).write_text(json.dumps(listed, indent=2) + "\n")
    return written


def join_parts(folder: Path, output_folder: Path) -> Path:
    """Write the file that the parts in `folder` make into `output_folder`; PartsError where they do not."""
    listed = _read_list(folder)
    missing = [part["name"] for part in listed["parts"] if not (folder / part["name"]).is_file()]
    if missing:
        raise PartsError(f"{folder} lacks {', '.join(missing)} of {len(listed['parts'])} parts: copy them there too")
    for part in listed["parts"]:
        if _digest(folder / part["name"]) != part["sha256"]:
            raise PartsError(f"{folder / part['name']} is not as it was written: copy it again")
    output_folder.mkdir(parents=True, exist_ok=True)
    output = output_folder / listed["name"]
    with output.open("wb") as whole:
        for part in listed["parts"]:
            with (folder / part["name"]).open("rb") as file:
                while chunk := file.read(_CHUNK_BYTES):
                    whole.write(chunk)
    return output


def _read_list(folder: Path) -> dict:
    path = folder / LIST_NAME
    try:
        listed = json.loads(path.read_text())
        if listed["format"] != FORMAT or not all(Path(p["name"]).name == p["name"] for p in [listed, *listed["parts"]]):
            raise ValueError
    except OSError as exc:
        raise PartsError(f"{path} cannot be read: {exc.strerror}") from exc
    except (ValueError, KeyError, TypeError) as exc:
        raise PartsError(f"{path} is no list of parts") from exc
    return listed


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
