"""What a plugin's JSON Schema says to somebody who fills in a payload. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_EMPTY: dict[str, Any] = {
    "string": "",
    "integer": 0,
    "number": 0,
    "boolean": False,
    "array": [],
    "object": {},
    "null": None,
}
_DEEPEST = 6


@dataclass(frozen=True)
class Field:
    """One property of the payload, in words."""

    name: str
    kind: str
    required: bool
    default: str | None
    description: str
    rules: tuple[str, ...]


def skeleton(schema: Mapping[str, Any]) -> str:
    """A payload to start from: every default, and an empty value of the right type for what is required."""
    value = _value(schema, 0)
    return json.dumps(value if isinstance(value, dict) else {}, indent=2, ensure_ascii=False)


def _value(schema: Mapping[str, Any], depth: int) -> Any:
    if "default" in schema:
        return schema["default"]
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    kind = _first_type(schema)
    if kind == "object" and depth < _DEEPEST:
        required = schema.get("required", ())
        return {
            name: _value(part, depth + 1)
            for name, part in schema.get("properties", {}).items()
            if isinstance(part, Mapping) and ("default" in part or name in required)
        }
    if kind in ("integer", "number"):
        return schema.get("minimum", 0)
    return _EMPTY[kind]


def _first_type(schema: Mapping[str, Any]) -> str:
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = kind[0] if kind else None
    if kind not in _EMPTY:
        kind = "object" if "properties" in schema else "null"
    return str(kind)


def fields(schema: Mapping[str, Any]) -> list[Field]:
    """The schema's properties in its own order."""
    required = schema.get("required", ())
    return [
        Field(
            name=name,
            kind=_kind(part),
            required=name in required,
            default=json.dumps(part["default"], ensure_ascii=False) if "default" in part else None,
            description=str(part.get("description") or part.get("title") or ""),
            rules=tuple(_rules(part)),
        )
        for name, part in schema.get("properties", {}).items()
        if isinstance(part, Mapping)
    ]


def _kind(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return "one of " + ", ".join(json.dumps(item, ensure_ascii=False) for item in schema["enum"])
    kind = schema.get("type", "any")
    name = " or ".join(kind) if isinstance(kind, list) else str(kind)
    items = schema.get("items")
    return f"array of {_kind(items)}" if name == "array" and isinstance(items, Mapping) else name


_RULES = {
    "minimum": "at least {}",
    "exclusiveMinimum": "more than {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "less than {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
    "pattern": "matches {}",
    "format": "{}",
}


def _rules(schema: Mapping[str, Any]) -> list[str]:
    return [text.format(schema[name]) for name, text in _RULES.items() if name in schema]
