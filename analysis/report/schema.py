"""The JSON schema of report.json: of `questions` made from their types, of the rest a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from analysis.questions.registry import QUESTIONS


def report_schema() -> dict[str, Any]:
    """Draft 2020-12, with every question of the registry."""
    schema: dict[str, Any] = json.loads((Path(__file__).parent / "schema.json").read_text())
    adapters = [(question.name, "serialization", question.adapter) for question in QUESTIONS]
    found, definitions = TypeAdapter.json_schemas(adapters)  # type: ignore[arg-type]
    names = [question.name for question in QUESTIONS]
    schema["properties"]["questions"] = {
        "type": "object",
        "description": "what each question found, by name",
        "properties": {name: found[name, "serialization"] for name in names},
        "required": names,
        "additionalProperties": False,
    }
    schema["required"] += ["questions"]
    schema["$defs"] |= definitions["$defs"]
    return schema
