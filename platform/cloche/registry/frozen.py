"""Folders that appear whole or not at all, and are read-only from then on. Shared by frozen bundles and unpacked wheels."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

_FILE_MODE = 0o444
_FOLDER_MODE = 0o555  # every sandbox has a user id of its own, and all of them read the same copy
_OWNER_ONLY = 0o700


def make(target: Path, fill: Callable[[Path], None]) -> None:
    """Make the folder ``target``: ``fill`` writes into a hidden one beside it, which then takes its name.

    When another process was first, its folder stays and this one's is thrown away; both hold the same, being named by their digest.
    Whatever ``fill`` raises is passed on, and nothing is left behind.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".making-", dir=target.parent))
    try:
        fill(work)
        _lock_down(work)
        try:
            os.rename(work, target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        if work.exists():
            remove(work)


def set_aside(target: Path) -> None:
    """Take a damaged folder away. Whoever has it mounted keeps what it has."""
    aside = target.with_name(f".damaged-{target.name}-{os.getpid()}")
    os.rename(target, aside)
    remove(aside)


def remove(folder: Path) -> None:
    """Remove a read-only folder with all it holds."""
    for parent, _, _ in os.walk(folder):
        os.chmod(parent, _OWNER_ONLY)
    shutil.rmtree(folder)


def _lock_down(folder: Path) -> None:
    for parent, _, files in os.walk(folder, topdown=False):
        for name in files:
            os.chmod(Path(parent, name), _FILE_MODE)
        os.chmod(parent, _FOLDER_MODE)
