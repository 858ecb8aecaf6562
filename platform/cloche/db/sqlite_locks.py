"""Who writes to an SQLite database, as the kernel tells it."""

from __future__ import annotations

import os
from pathlib import Path

_LOCKS = Path("/proc/locks")
# Of SQLite's file format: the byte of the shared-memory file that the one writer of a database in WAL mode holds locked.
_WRITE_BYTE = "120"


def turn_file(database: Path) -> Path:
    """The file on which those who want to write stand in line."""
    return database.with_name(f"{database.name}.turn")


def writer(database: Path) -> int | None:
    """The process that is in a write transaction, or next in line with nobody before it; None: nobody, or nobody that can be seen from here.

    What is seen is a moment. Where the file system numbers its devices for each mount anew (Btrfs), and where the kernel does not show its
    locks, nobody can be seen.
    """
    shared, turn = _identity(database.with_name(f"{database.name}-shm")), _identity(turn_file(database))
    waiting: int | None = None
    try:
        locks = _LOCKS.read_text()
    except OSError:
        return None
    for line in locks.splitlines():
        # "7: POSIX  ADVISORY  WRITE 8895 fe:00:2149099 120 120"; what only waits has "->" after the number
        words = line.split()
        if len(words) != 8 or words[3] != "WRITE" or int(words[4]) <= 0:
            continue
        kind, pid, where, first = words[1], int(words[4]), words[5], words[6]
        if kind == "POSIX" and where == shared and first == _WRITE_BYTE:
            return pid
        if kind == "FLOCK" and where == turn:
            waiting = pid
    return waiting


def _identity(path: Path) -> str | None:
    """As the kernel writes it."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
