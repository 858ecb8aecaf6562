"""A worker's own folder under the home, held by a lock that ends with the process: who finds one unlocked may remove it."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cloche.errors import EnvironmentProblem


class WorkFolder:
    """``<root>/<worker id>``, made and held from the start; what workers that are gone left beside it is removed. ``close`` removes it.

    Raises:
        EnvironmentProblem: the folder is there already: another worker has the same id.
    """

    def __init__(self, root: Path, worker_id: str) -> None:
        self.path = root / worker_id
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _held(root):  # nobody cleans between the making of a folder and its lock
            try:
                self.path.mkdir(mode=0o700)
            except FileExistsError:
                raise EnvironmentProblem(
                    f"a worker with the id {worker_id} has its folder in {root}: an id is used once; leave --id out and one is made"
                ) from None
            self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            _clean(root)

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._fd)


def clean(root: Path) -> None:
    """Remove what workers that are gone left there. Safe beside workers that live or start."""
    if root.is_dir():
        with _held(root):
            _clean(root)


def _clean(root: Path) -> None:
    for folder in root.iterdir():
        if _abandoned(folder):
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _abandoned(folder: Path) -> bool:
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False  # it has just gone, or is no folder of a worker's
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True
