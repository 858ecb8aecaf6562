"""User ids for sandboxes: each running one has its own, across all Cloche homes of this machine."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
from pathlib import Path

LOCKS = Path("/run/cloche/uids")
_TRIES = 10


class NoUidLeft(Exception):
    """Every id of the range is in use."""


class UidPool:
    """Hands out ids of ``base … base+count-1``, next-fit, so that a freed one rests longest before it is used again.

    A lock file per id makes it unique on the machine; the kernel lets go of it when this process dies. Any thread may call.
    """

    def __init__(self, base: int, count: int, locks: Path = LOCKS, start: int = 0) -> None:
        self._base = base
        self._count = count
        self._next = start % count
        self._folder = locks
        self._held: dict[int, int] = {}
        self._lock = threading.Lock()

    def take(self) -> int:
        """
        Raises:
            NoUidLeft: see there.
            OSError: the lock folder cannot be used.
        """
        with self._lock:
            for step in range(self._count):
                uid = self._base + (self._next + step) % self._count
                if uid not in self._held and self._claim(uid):
                    self._next = (uid - self._base + 1) % self._count
                    return uid
        raise NoUidLeft

    def give_back(self, uid: int) -> None:
        """Free the id; more than once does no harm. The last one to go takes the folders along."""
        with self._lock:
            fd = self._held.pop(uid, None)
            if fd is None:
                return
            (self._folder / str(uid)).unlink(
                missing_ok=True
            )  # before the lock goes: whoever waits sees that the file changed
            os.close(fd)
            if not self._held:
                with contextlib.suppress(OSError):
                    self._folder.rmdir()
                    self._folder.parent.rmdir()

    def clean(self) -> None:
        """Remove the locks of processes that were killed, and the folders when nothing is left. At any time, by any number of processes."""
        with self._lock, contextlib.suppress(OSError):
            for path in self._folder.iterdir():
                if path.name.isdigit() and int(path.name) not in self._held and self._claim(int(path.name)):
                    path.unlink(missing_ok=True)
                    os.close(self._held.pop(int(path.name)))
            self._folder.rmdir()
            self._folder.parent.rmdir()

    def _claim(self, uid: int) -> bool:
        path = self._folder / str(uid)
        fd = self._open(path)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = os.fstat(fd).st_nlink == 1  # 0: its holder removed it between our open and our lock
        except BlockingIOError:
            mine = False
        if mine:
            self._held[uid] = fd
        else:
            os.close(fd)
        return mine

    def _open(self, path: Path) -> int:
        """
        Raises:
            OSError: the folder cannot be made, or goes away again and again.
        """
        for _ in range(_TRIES):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # another process removed the empty folder just now
                return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        raise FileNotFoundError(errno.ENOENT, "the folder does not stay", str(self._folder))
