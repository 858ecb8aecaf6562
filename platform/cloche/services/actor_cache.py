"""Actors remembered between requests, by credential: used only while nothing has changed that they were made from."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, replace

from cloche.db import epoch
from cloche.db.engine import Database
from cloche.domain.addresses import Network
from cloche.domain.permissions import Actor

MOST = 4_096  # credentials remembered by one process


@dataclass(frozen=True)
class Known:
    """What a credential stands for, until it ends by itself. Times in ms by the database's clock."""

    actor: Actor  # without a request's address and id
    seen_at: int | None  # last use that is stored
    idle: int | None = None  # ends when unused for so long
    ends_at: int | None = None
    networks: tuple[Network, ...] | None = None  # where it is taken from; None: anywhere

    def lives(self, now: int) -> bool:
        unused = self.idle is not None and self.seen_at is not None and now > self.seen_at + self.idle
        return not unused and (self.ends_at is None or now < self.ends_at)

    def seen(self, now: int) -> Known:
        return replace(self, seen_at=now)


class ActorCache:
    """One per process, safe from any thread. A key has to be a digest of the whole credential: whoever has it has proved who they are.

    Call order: :meth:`mark`, then :meth:`get`; when that finds nothing read the database, and :meth:`put` with the same mark.
    """

    def __init__(self, db: Database, most: int = MOST) -> None:
        self._db = db
        self._most = most
        self._known: OrderedDict[Hashable, tuple[int, Known]] = OrderedDict()
        self._lock = threading.Lock()

    def mark(self) -> int | None:
        """What stands for all that was committed until now; None: nothing may be remembered.

        Raises:
            Unavailable: the database does not answer.
        """
        return self._db.number(epoch.QUERY)

    def get(self, key: Hashable, mark: int | None, now: int) -> Known | None:
        with self._lock:
            entry = self._known.get(key)
            if entry is None:
                return None
            if entry[0] != mark or not entry[1].lives(now):
                del self._known[key]
                return None
            self._known.move_to_end(key)
            return entry[1]

    def put(self, key: Hashable, mark: int | None, known: Known) -> None:
        if mark is None:
            return
        with self._lock:
            self._known[key] = (mark, known)
            self._known.move_to_end(key)
            while len(self._known) > self._most:
                self._known.popitem(last=False)
