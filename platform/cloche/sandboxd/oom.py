"""Whether a sandbox has used up its memory, told by the kernel also after the engine has taken the cgroup away.

The engine says so too, but hears of it by an event that it loses now and then on a machine with much to do: then a job that had process 1
killed would have cost nobody anything. Version 1 of cgroups alone has such events; with version 2 the engine's word has to do.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from cloche.sandboxd.cgroups import Cgroup

_REMOVAL_SECONDS = 1.0  # until the kernel says that a cgroup is gone, after it is
_POLL_SECONDS = 0.02


class OomEvents:
    """A descriptor that the kernel counts in: one for each time that memory was used up, and one more when the cgroup is removed."""

    def __init__(self, fd: int, folder: Path) -> None:
        self._fd = fd
        self._folder = folder
        self._count = 0

    @classmethod
    def of(cls, cgroup: Cgroup) -> OomEvents | None:
        """None where the kernel has no such events."""
        memory = cgroup.controllers.get("memory")
        if memory is None:
            return None
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            control = os.open(memory / "memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
            try:
                (memory / "cgroup.event_control").write_text(f"{fd} {control}", "ascii")
            finally:
                os.close(control)
        except OSError:
            os.close(fd)
            return None
        return cls(fd, memory)

    def happened(self) -> bool:
        """Whether memory was used up since. Waits a moment where only the cgroup's removal was counted so far, if that is what it was."""
        deadline = time.monotonic() + _REMOVAL_SECONDS
        while True:
            with contextlib.suppress(BlockingIOError):
                self._count += os.eventfd_read(self._fd)
            # Looked at after the count was read: what is there still has not been counted as removed.
            if self._count > 1 or (self._count == 1 and self._folder.exists()):
                return True
            if self._folder.exists() or time.monotonic() > deadline:
                return False
            time.sleep(_POLL_SECONDS)

    def close(self) -> None:
        """Once, and no question afterwards."""
        os.close(self._fd)
