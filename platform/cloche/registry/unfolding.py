"""How much work a schema is for a payload: its references may unfold to far more than is written.

Twenty definitions that each name the next one twice are a million schemas; one that names itself twice under ``anyOf`` doubles with each level
of the payload. A validator walks them all, in the web process. So the walk is counted first, which takes no longer than the schema is long.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

MOST = 50_000_000  # parts of a schema applied to parts of a payload; finding out whether it fits then takes a second or two
_IN_PLACE_LISTS = ("allOf", "anyOf", "oneOf")
_IN_PLACE = ("not", "if", "then", "else")
_REFERENCES = ("$ref", "$dynamicRef")
_ANCHORS = ("$anchor", "$dynamicAnchor")
_EACH_CHILD = ("additionalProperties", "unevaluatedProperties", "items", "contains", "unevaluatedItems")


class Endless(ValueError):
    """A reference leads back to itself without going deeper into the payload, or to nothing."""


def size(payload: Any) -> tuple[int, int]:
    """Its number of values, and how deep they are nested."""
    count, deepest = 0, 0
    stack = [(payload, 0)]
    while stack:
        item, depth = stack.pop()
        count, deepest = count + 1, max(deepest, depth)
        if isinstance(item, Mapping):
            stack.extend((part, depth + 1) for part in item.values())
        elif isinstance(item, (list, tuple)):
            stack.extend((part, depth + 1) for part in item)
    return count, deepest


class Unfolding:
    """``work`` is how many parts of the schema meet any one value of a payload, and its ancestors, at most."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._root = schema
        self._anchors = {name: part for part in _parts(schema) for name in _names(part)}
        self._known: dict[tuple[int, int], int] = {}
        self._open: set[tuple[int, int]] = set()

    def work(self, depth: int) -> int:
        """For a payload nested so deep; at most ``MOST`` + 1.

        Raises:
            Endless: see there.
        """
        return self._of(self._root, depth)

    def _of(self, part: Any, depth: int) -> int:
        if not isinstance(part, Mapping):
            return 1
        key = (id(part), depth)
        if key in self._open:
            raise Endless("refers to itself without going deeper into the payload")
        if key not in self._known:
            self._open.add(key)
            self._known[key] = min(MOST + 1, 1 + len(part) + self._here(part, depth) + self._below(part, depth))
            self._open.discard(key)
        return self._known[key]

    def _here(self, part: Mapping[str, Any], depth: int) -> int:
        """What is applied to the same value."""
        total = len(part["enum"]) if isinstance(part.get("enum"), Sequence) else 0
        for target in (self._target(part[name]) for name in _REFERENCES if name in part):
            total += self._of(target, depth)
        inner = [part[name] for name in _IN_PLACE if name in part]
        inner += [item for name in _IN_PLACE_LISTS for item in _list(part.get(name))]
        inner += _map(part.get("dependentSchemas"))
        for item in inner:
            total = min(MOST + 1, total + self._of(item, depth))
        return total

    def _below(self, part: Mapping[str, Any], depth: int) -> int:
        """What is applied to one child; of named properties and numbered items only one can be its."""
        total = self._of(part.get("propertyNames"), 0)
        if depth == 0:
            return total
        for choice in (_map(part.get("properties")), _list(part.get("prefixItems"))):
            total += max((self._of(item, depth - 1) for item in choice), default=0)
        for item in (*(part.get(name) for name in _EACH_CHILD), *_map(part.get("patternProperties"))):
            total = min(MOST + 1, total + self._of(item, depth - 1))
        return total

    def _target(self, reference: Any) -> Any:
        found: Any = self._root
        name = str(reference).removeprefix("#")
        if name and not name.startswith("/"):
            if name not in self._anchors:
                raise Endless(f"refers to '{name[:60]}', which is not in it")
            return self._anchors[name]
        for step in name.split("/")[1:]:
            step = _plain(step)
            try:
                found = found[int(step)] if isinstance(found, (list, tuple)) else found[step]
            except (KeyError, IndexError, TypeError, ValueError):
                raise Endless(f"refers to '{str(reference)[:60]}', which is not in it") from None
        return found


def _plain(step: str) -> str:
    return unquote(step).replace("~1", "/").replace("~0", "~")


def _map(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, Mapping) else []


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else []


def _names(part: Mapping[str, Any]) -> Iterator[str]:
    for name in _ANCHORS:
        if isinstance(part.get(name), str):
            yield part[name]


def _parts(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every object in it, schema or not."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, Mapping):
            yield item
            stack.extend(item.values())
        elif isinstance(item, (list, tuple)):
            stack.extend(item)
