"""How much work a schema is for a payload: its references may unfold to far more than is written.

Twenty definitions that each name the next one twice are a million schemas; one that names itself twice under ``anyOf`` doubles with each level
of the payload. A validator walks them all, in the web process. So the walk is counted first, which takes no longer than the schema is long.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

MOST = 50_000_000  # parts of a schema applied to parts of a payload; finding out whether it fits then takes a second or two
_MOST_LOOKS = 20_000  # parts at depths: more take too long to count, and count as too much
_IN_PLACE_LISTS = ("allOf", "anyOf", "oneOf")
_IN_PLACE = ("not", "if", "then", "else")
_REFERENCES = ("$ref", "$dynamicRef")
_ANCHORS = ("$anchor", "$dynamicAnchor")
_EACH_CHILD = ("additionalProperties", "unevaluatedProperties", "items", "contains", "unevaluatedItems")


_Group = tuple[bool, list[tuple[Any, int]]]  # whether only one of them is met; parts, each with the depth left below it


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

    def _of(self, first: Any, deepest: int) -> int:
        """Without recursion: a chain of references may be longer than Python's stack."""
        waiting: list[tuple[Any, int, list[_Group] | None]] = [(first, deepest, None)]
        while waiting:
            part, depth, groups = waiting.pop()
            key = (id(part), depth)
            if groups is not None:
                self._known[key] = min(MOST + 1, self._own(part) + sum(self._total(group) for group in groups))
                self._open.discard(key)
            elif isinstance(part, Mapping) and key not in self._known:
                if key in self._open:
                    raise Endless("refers to itself without going deeper into the payload")
                if len(self._known) + len(self._open) >= _MOST_LOOKS:
                    return MOST + 1
                self._open.add(key)
                groups = [*self._here(part, depth), *self._below(part, depth)]
                waiting.append((part, depth, groups))
                waiting += [(item, at, None) for _, items in groups for item, at in items]
        return self._found((first, deepest))

    def _total(self, group: _Group) -> int:
        one_of_them, items = group
        each = map(self._found, items)
        return max(each, default=0) if one_of_them else sum(each)

    def _found(self, item: tuple[Any, int]) -> int:
        part, depth = item
        return self._known[id(part), depth] if isinstance(part, Mapping) else 1

    def _own(self, part: Mapping[str, Any]) -> int:
        return 1 + len(part) + (len(part["enum"]) if isinstance(part.get("enum"), Sequence) else 0)

    def _here(self, part: Mapping[str, Any], depth: int) -> list[_Group]:
        """What is applied to the same value."""
        inner = [self._target(part[name]) for name in _REFERENCES if name in part]
        inner += [part[name] for name in _IN_PLACE if name in part]
        inner += [item for name in _IN_PLACE_LISTS for item in _list(part.get(name))]
        inner += _map(part.get("dependentSchemas"))
        return [(False, [(item, depth) for item in inner])]

    def _below(self, part: Mapping[str, Any], depth: int) -> list[_Group]:
        """What is applied to one child; of named properties and numbered items only one can be its."""
        names: _Group = (False, [(part.get("propertyNames"), 0)])
        if depth == 0:
            return [names]
        every = [*(part.get(name) for name in _EACH_CHILD), *_map(part.get("patternProperties"))]
        choices = (_map(part.get("properties")), _list(part.get("prefixItems")))
        return [
            names,
            (False, [(item, depth - 1) for item in every]),
            *((True, [(item, depth - 1) for item in choice]) for choice in choices),
        ]

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
