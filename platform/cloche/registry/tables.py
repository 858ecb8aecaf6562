"""Reading a TOML table strictly: every value typed, every unknown key named with its whole path."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from cloche.errors import ClocheError


class ManifestError(ClocheError):
    """A ``plugin.toml`` is wrong. ``key`` is the dotted path of the value, ``""`` for the file as a whole."""

    def __init__(self, key: str, detail: str) -> None:
        super().__init__(f"{key}: {detail}" if key else detail)
        self.key = key
        self.detail = detail


_NAMES = {str: "text", int: "a whole number", list: "a list", dict: "a table", bool: "true or false"}


class Section:
    """One table of a manifest. ``take_…`` reads a key; ``path`` is the dotted path shown in errors."""

    def __init__(self, values: Mapping[str, Any], path: str = "", *, known: Iterable[str]) -> None:
        """
        Raises:
            ManifestError: a key is not among ``known``.
        """
        self._values = values
        self._path = path
        names = sorted(known)
        for key in values:
            if key not in names:
                near = difflib.get_close_matches(key, names, n=1)
                hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(names)}"
                raise ManifestError(self.key(key), f"unknown key; {hint}")

    def key(self, name: str) -> str:
        """``name``'s whole path, such as ``limits.memory``."""
        return f"{self._path}.{name}" if self._path else name

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def section(self, name: str, *, known: Iterable[str]) -> Section:
        """The sub-table ``name``; an absent one is empty."""
        return Section(self.value(name, dict, {}), self.key(name), known=known)

    def value(self, name: str, kind: type, default: Any = None) -> Any:
        """The value of ``name``, or ``default``. ``kind``: str, int, bool, list or dict."""
        if name not in self._values:
            return default
        found = self._values[name]
        # bool is an int for Python, never for TOML
        if not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
            raise ManifestError(self.key(name), f"must be {_NAMES[kind]}, not {type(found).__name__}")
        return found

    def required(self, name: str, kind: type, example: str) -> Any:
        """The value of ``name``, which has to be there; ``example`` shows the author one."""
        if name not in self._values:
            raise ManifestError(self.key(name), f"is missing; write for example {name} = {example}")
        return self.value(name, kind)

    def texts(self, name: str) -> tuple[str, ...]:
        """The list of text under ``name``, or an empty one."""
        found = self.value(name, list, [])
        for position, item in enumerate(found):
            if not isinstance(item, str):
                raise ManifestError(f"{self.key(name)}[{position}]", f"must be text, not {type(item).__name__}")
        return tuple(found)

    def count(self, name: str, default: int | None, *, low: int, high: int) -> int | None:
        """The whole number under ``name`` between ``low`` and ``high``, or ``default``."""
        found = self.value(name, int, None)
        if found is None:
            return default
        if not low <= found <= high:
            raise ManifestError(self.key(name), f"is {found}, and must lie between {low} and {high}")
        return int(found)
