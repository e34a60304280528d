"""The JSON schema of report.json, made from the types of its parts and questions."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, create_model

from analysis.questions.registry import PARTS, QUESTIONS
from analysis.report.content import HEAD, TAIL

_DESCRIPTION = (
    "Every number on the report's pages is read from this file. Losses are validation losses of the synchronised model "
    "in nats per token; N parameters, D tokens, C = 6ND flops, B tokens a step over all workers. Lists follow the "
    "order of `series`. Intervals hold 95%. schema_version rises whenever a field changes its meaning, name or place."
)
_STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True)


def report_schema() -> dict[str, Any]:
    """Draft 2020-12, with every part and question of the registry."""
    questions = _object("Questions", {question.name: question.result for question in QUESTIONS})
    parts = {part.name: part.result for part in PARTS}
    report = _object("Report", {**HEAD, **parts, "questions": questions, **TAIL})
    schema: dict[str, Any] = _with_every_key(report.model_json_schema(mode="serialization"))
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "report.json of muloco-report"}
    return {**schema, **head, "description": _DESCRIPTION}


def _object(name: str, types: dict[str, Any]) -> Any:
    fields: dict[str, Any] = {key: (kind, ...) for key, kind in types.items()}
    return create_model(name, __config__=_STRICT, **fields)


def _with_every_key(node: Any) -> Any:
    """The schema, with every key of an object required, those with a default too: each is written."""
    if isinstance(node, list):
        return [_with_every_key(one) for one in node]
    if not isinstance(node, dict):
        return node
    out = {key: _with_every_key(value) for key, value in node.items()}
    if node.get("type") == "object" and isinstance(node.get("properties"), dict):
        out["required"] = list(node["properties"])
    return out
