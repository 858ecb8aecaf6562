"""One spelling for a JSON value, so that equal values have equal bytes.

Keys sorted by code point, no spaces, UTF-8 without escapes but those JSON demands, no NaN, no infinity. A float with a whole value is
written as an integer (``2.0`` and ``2`` are one number in JSON), any other as Python's shortest form that reads back the same.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

_MAX_DEPTH = 64
_EXACT = 2**53  # beyond it floats skip whole numbers: an integer would claim digits nobody gave
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")).encode


def text(value: Any) -> str:
    """The canonical JSON text of ``value``.

    Raises:
        TypeError: a value JSON has no word for, or a key that is not a string (two such keys could become one).
        ValueError: NaN, infinity, deeper than 64 levels, or a string that is not valid Unicode.
    """
    spelled = _encode(_plain(value, _MAX_DEPTH))
    spelled.encode("utf-8")  # a lone surrogate has no bytes; UnicodeEncodeError is a ValueError
    return spelled


def digest(value: Any) -> str:
    """SHA-256 of the canonical text, 64 hex digits. Raises as :func:`text`."""
    return hashlib.sha256(text(value).encode("utf-8")).hexdigest()


def _plain(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, (bool, str, int)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("NaN and infinity are not JSON")
        return int(value) if value.is_integer() and abs(value) <= _EXACT else value
    if depth == 0:
        raise ValueError(f"nested deeper than {_MAX_DEPTH} levels")
    if isinstance(value, (dict, Mapping)):  # dict first: asking the abstract class takes longer than the rest
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"a JSON key is a string, not {type(key).__name__}")
        return {key: _plain(item, depth - 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, depth - 1) for item in value]
    raise TypeError(f"JSON has no {type(value).__name__}")
