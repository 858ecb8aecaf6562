"""Names of users, roles and tenants: one form of each, and what names that look alike have in common."""

from __future__ import annotations

import re
import unicodedata

from cloche.clock import is_uuid7
from cloche.errors import Invalid, Problem

# After folding: one script, one case, nothing that a log, a header or a path could take for something else.
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{1,62}\Z")
NAME_WORDS = "2 to 63 of a-z, 0-9, '.', '_' and '-', beginning with a letter or digit"
# No user goes by what the record calls parts of the platform, and whoever has no name.
_RESERVED = frozenset(
    {"anonymous", "bootstrap", "cloche", "deleted", "platform", "scheduler", "sweeper", "system", "worker"}
)
# Those of Unicode's confusables (UTS 39) that are left in this alphabet; marks between words look like each other too.
_ALIKE = str.maketrans({"0": "o", "1": "l", ".": "-", "_": "-"})
_PAIRS = (("rn", "m"), ("vv", "w"))


def fold(text: str) -> str:
    """The form in which names are stored and compared: NFKC, case folded."""
    return unicodedata.normalize("NFKC", text).casefold()


def checked(text: str, pointer: str) -> str:
    """The folded name. Letters of other scripts are refused, so no name mixes two.

    Raises:
        Invalid: it cannot be a name; ``pointer`` says which one.
    """
    name = fold(text)
    fault = None if NAME.match(name) else f"a name has {NAME_WORDS}"
    if is_uuid7(name):
        fault = "looks like an id"
    if fault:
        raise Invalid("The name cannot be used.", problems=[Problem(pointer, fault)])
    return name


def checked_username(text: str) -> str:
    """Like :func:`checked`; nobody is called like a part of the platform either."""
    name = checked(text, "/username")
    if skeleton(name).partition("-")[0] in _RESERVED:
        raise Invalid("The name cannot be used.", problems=[Problem("/username", "is kept for the platform itself")])
    return name


def skeleton(name: str) -> str:
    """The same text for all names that a hurried reader takes for one another, such as ``admin`` and ``adrnin``; never longer than the name."""
    for pair, alike in _PAIRS:
        name = name.replace(pair, alike)
    return name.translate(_ALIKE)
