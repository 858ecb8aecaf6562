"""What a runtime was when it was proven, and whether it still is that."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import time
from collections.abc import Mapping
from typing import Any

from cloche.sandboxd.engine import Engine

_Program = tuple[int, int, int, int]


class Proven:
    """How a runtime is registered, kept from before its proof, with a line on which the engine would tell of a change. Close it.

    The line ends when the engine does, and carries a word of every reload of its configuration. Sandboxes that were made meanwhile stay what
    they are: who outlives the engine ("live restore") was made, and enclosed, under what had been proven.
    """

    def __init__(self, engine: Engine, name: str) -> None:
        """
        Raises:
            PlatformFailure, EngineRefused: see :class:`Engine`.
        """
        self.since = time.monotonic()  # nothing that was started earlier was started under it for certain
        self._line = engine.changes()  # before the question: nothing changes unseen
        try:
            self._registered = registered(engine, name)
        except BaseException:
            self._line.close()
            raise
        self._path = str((self._registered or {}).get("path", ""))
        self._program = _program(self._path)

    def close(self) -> None:
        self._line.close()

    def stands(self) -> bool:
        """Whether the engine has been there ever since and told of no change, and the program is the same file. Takes microseconds."""
        poll = select.poll()
        poll.register(self._line, select.POLLIN)
        return not poll.poll(0) and _program(self._path) == self._program

    def holds(self, now: Mapping[str, Any] | None) -> bool:
        """Whether it :meth:`stands` and is registered as before: a reload that fails midway is told to nobody."""
        return now == self._registered and self.stands()


def registered(engine: Engine, name: str) -> Mapping[str, Any] | None:
    """The program, the arguments and whatever else the engine has of the runtime; None when it has none of that name.

    Raises:
        PlatformFailure, EngineRefused: see :class:`Engine`.
    """
    found: Mapping[str, Any] | None = (engine.info().get("Runtimes") or {}).get(name)
    return found


def _program(path: str) -> _Program | None:
    """Tells a file from another one that was put in its place; None where it cannot be looked at from here."""
    with contextlib.suppress(OSError):
        facts = os.stat(shutil.which(path) or path)
        return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns
    return None
