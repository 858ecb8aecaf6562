"""JSON from outside, read strictly: no duplicate keys, no NaN or infinity, no text that cannot be stored, bounded depth."""

from __future__ import annotations

import json
import math
from typing import Any

from cloche_guest.protocol import MAX_DIGITS

MAX_DEPTH = 32  # levels of arrays and objects; no body of ours needs ten
_MAX_DIGITS = MAX_DIGITS  # of one number: what a guest may be sent


class Malformed(ValueError):
    """The text is not JSON as we accept it; the message says what is wrong."""


def loads(raw: bytes) -> Any:
    """The value.

    Raises:
        Malformed: see the module's first line.
    """
    try:
        value = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_integer,
        )
    except UnicodeDecodeError as error:
        raise Malformed(f"it is not UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise Malformed(f"{error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise Malformed(f"it is nested deeper than {MAX_DEPTH} levels") from None
    # Raw control characters are refused above and raw UTF-8 has no surrogates: only an escape can put them into a string.
    _check(value, strings=b"\\u" in raw)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise Malformed(f"the key {json.dumps(key[:40])} appears twice in one object")
            seen.add(key)
    return found


def _no_constant(name: str) -> Any:
    raise Malformed(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text) if len(text) <= _MAX_DIGITS else math.inf
    if not math.isfinite(number):
        raise Malformed(f"the number {text[:20]} is too large")
    return number


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise Malformed(f"the number {text[:20]}… is too large")
    return int(text)


def _check(value: Any, strings: bool) -> None:
    # One walk without recursion: depth, and strings that no database takes (NUL, lone halves of surrogate pairs).
    pending: list[tuple[Any, int]] = [(value, 0)]
    while pending:
        item, depth = pending.pop()
        if isinstance(item, str):
            _check_text(item)
        elif isinstance(item, (dict, list)):
            if depth >= MAX_DEPTH:
                raise Malformed(f"it is nested deeper than {MAX_DEPTH} levels")
            inner = item.values() if isinstance(item, dict) else item
            if not strings:
                pending += [(child, depth + 1) for child in inner if isinstance(child, (dict, list))]
                continue
            pending += [(child, depth + 1) for child in inner]
            if isinstance(item, dict):
                pending += [(key, depth + 1) for key in item]


def _check_text(text: str) -> None:
    if "\x00" in text:
        raise Malformed("a string holds the character U+0000")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise Malformed("a string holds half of a surrogate pair") from None
