"""Names and paths that users give, checked before anything else sees them.

A remote is found by its exact name and a path is one string that rclone never parses; these checks are what keeps
it so. Everything that does not pass is the request's fault: :class:`cloche.errors.Invalid` with a pointer to the
field.
"""

from __future__ import annotations

import re
import unicodedata

from cloche.errors import Invalid, Problem

MAX_PATH = 1_024  # characters of a whole path
MAX_COMPONENT = 255  # bytes of one name, as every common file system has it
MAX_DEPTH = 32
RESERVED_NAMES = frozenset({"artifact", "job", "inline"})  # they begin other kinds of sources

_NAME = re.compile(r"[a-z0-9_-]{1,32}")
_GLOB = re.compile(r"[*?\[]")


def check_remote_name(name: str, *, pointer: str = "") -> str:
    """The name of a remote, when it may be one.

    Raises:
        Invalid: not 1–32 of ``a-z``, ``0-9``, ``_`` and ``-``, or a word that begins another kind of source.
    """
    if not _NAME.fullmatch(name):
        raise refused(pointer, "the name of a remote is 1 to 32 of a-z, 0-9, '_' and '-'")
    if name in RESERVED_NAMES:
        raise refused(pointer, f"'{name}' has a meaning of its own and cannot name a remote")
    return name


def check_remote_path(path: str, *, pointer: str = "", glob: bool = False) -> str:
    """A path below a remote's root, when it may be one. ``glob`` allows ``*``, ``?`` and ``[…]`` in the last
    component.

    Raises:
        Invalid: it could leave the remote's root, or be taken for something else than a path.
    """
    _check(path, pointer)
    folder, _, last = path.rpartition("/")
    if has_glob(folder) or (has_glob(last) and not glob):
        where = (
            "only the last part of a path may hold '*', '?' or '['" if glob else "'*', '?' and '[' have no place here"
        )
        raise refused(pointer, where)
    return path


def check_relative(name: str, *, pointer: str = "") -> str:
    """A name below ``/job/in``, such as ``a.csv`` or ``tables/a.csv``, when it may be one.

    Raises:
        Invalid: absolute, empty, or able to leave the folder.
    """
    _check(name, pointer)
    return name


def has_glob(text: str) -> bool:
    """Whether the text holds a character that a glob gives a meaning to."""
    return _GLOB.search(text) is not None


def refused(pointer: str, detail: str) -> Invalid:
    """The error for one fault at ``pointer``."""
    return Invalid(detail, problems=[Problem(pointer, detail)])


def unprintable(text: str) -> bool:
    """Whether the text holds a control character, a line separator or a lone surrogate."""
    return any(unicodedata.category(char) in {"Cc", "Cs", "Zl", "Zp"} for char in text)


def _check(path: str, pointer: str) -> None:
    if fault := _fault(path):
        raise refused(pointer, fault)


def _fault(path: str) -> str | None:
    if not path:
        return "a path cannot be empty"
    if len(path) > MAX_PATH:
        return f"a path has at most {MAX_PATH} characters"
    if unprintable(path):
        return "a path holds no control characters"
    if unicodedata.normalize("NFC", path) != path:
        return "a path is written in Unicode's composed form (NFC)"
    if "\\" in path:
        return "a path holds no backslash; '/' parts its components"
    if path[0] in "/-":
        return f"a path does not begin with '{path[0]}'"
    parts = path.split("/")
    if len(parts) > MAX_DEPTH:
        return f"a path has at most {MAX_DEPTH} components"
    if any(part in {"", ".", ".."} for part in parts):
        return "a path has no empty component, no '.' and no '..'"
    if any(len(part.encode()) > MAX_COMPONENT for part in parts):
        return f"a component of a path has at most {MAX_COMPONENT} bytes"
    return None
