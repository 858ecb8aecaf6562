"""Secrets of a job, inside: each a file in memory that goes with the sandbox, and a mapping for plugins in Python."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

PLACE = "/job/secrets"
MAX_NAMED = 16  # by one plugin version
MAX_VALUE = 64 << 10  # bytes of UTF-8
SIZE = MAX_NAMED * MAX_VALUE
INODES = 2 * MAX_NAMED
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def options(uid: int) -> str:
    """Of the tmpfs at :data:`PLACE`; ``uid`` as the kernel that mounts it counts."""
    return f"size={SIZE},nr_inodes={INODES},uid={uid},gid={uid},mode=0700"


class Secrets(Mapping[str, str]):
    """Values by name. Printing it shows the names alone."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = dict(values)

    def __getitem__(self, name: str) -> str:
        try:
            return self._values[name]
        except KeyError:
            raise KeyError(f"{name}: this plugin's plugin.toml does not name it under [requires] secrets") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Secrets({', '.join(self._values)})"


def write(values: Mapping[str, str], place: Path) -> None:
    """A file for each, which its owner alone may read. ``place`` is made where it is no file system of its own.

    Raises:
        OSError: something is there already.
    """
    if not values:
        return
    place.mkdir(mode=0o700, exist_ok=True)
    for name, value in values.items():
        with os.fdopen(os.open(place / name, _NEW, 0o400), "wb") as file:
            file.write(value.encode("utf-8"))
