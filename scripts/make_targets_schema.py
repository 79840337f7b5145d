"""Write tvmbridge/targets.schema.json, the JSON Schema of targets.yaml for editors.

Run it after the format or the LLVM table changes: `python scripts/make_targets_schema.py`.
"""

from __future__ import annotations

import json
from pathlib import Path

from tvmbridge.targets import targets_json_schema

SCHEMA_PATH = Path(__file__).resolve().parents[1] / "tvmbridge" / "targets.schema.json"

if __name__ == "__main__":
    SCHEMA_PATH.write_text(json.dumps(targets_json_schema(), indent=1) + "\n", encoding="utf-8")
