"""Masking of secrets at the log boundary. Prefers to mask too much."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

MASK = "•••"
_NAME = re.compile(
    r"(pass|secret|token|authorization|cookie|credential|api_?key|access_?key|private|csrf)", re.IGNORECASE
)
_TEXT = (
    re.compile(r"cloche_pat_[A-Za-z0-9_-]+"),
    re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9+/=._~-]{8,}"),
    re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"),
)


def text(value: str) -> str:
    """The text with tokens, Authorization values and URL passwords masked."""
    if value.isalnum():  # a digest, a plain word: each of the patterns needs more than letters and digits
        return value
    for pattern in _TEXT:
        value = pattern.sub(MASK, value)
    return value


def field(name: str, item: Any, depth: int = 6) -> Any:
    """A copy of one named value: masked whole under a secret-sounding name, else as :func:`value`."""
    if _sounds_secret(name) and not isinstance(item, bool):
        return MASK
    return value(item, depth)


@lru_cache(maxsize=1_024)
def _sounds_secret(name: str) -> bool:
    return _NAME.search(name) is not None


def value(item: Any, depth: int = 6) -> Any:
    """A copy of nested data with every value under a secret-sounding name masked."""
    if depth == 0:
        return MASK
    if isinstance(item, str):
        return text(item)
    if isinstance(item, Mapping):
        return {key: field(str(key), part, depth - 1) for key, part in item.items()}
    if isinstance(item, (list, tuple)):
        return [value(part, depth - 1) for part in item]
    return item
