"""Which modules a slot may import before its cells are made. Pure; the host reads a manifest by the same rule."""

from __future__ import annotations

import re
from typing import Any

MAX_NAMES = 8
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


def problem(names: Any) -> str | None:
    """What is wrong with a list or tuple of top-level modules' names, in words to put behind it; None when nothing is."""
    if not isinstance(names, (list, tuple)):
        return "is a list of modules' names"
    if len(names) > MAX_NAMES:
        return f"names at most {MAX_NAMES} modules"
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            return "names top-level modules as they are imported, such as 'numpy'"
        if name in ("cloche_guest", "pluggy"):
            return f"cannot have {name}, which is ours"
    return f"names {_twice(names)} twice" if len(set(names)) < len(names) else None


def _twice(names: Any) -> str:
    return next(str(name) for name in names if list(names).count(name) > 1)
