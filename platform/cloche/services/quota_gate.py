"""Where quotas are held: what is about to be submitted or stored passes here."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import ceil

from sqlalchemy import Connection

from cloche.db.engine import Database, now_ms
from cloche.domain.permissions import Actor
from cloche.domain.quotas import NO_QUOTAS, Kind, Quotas, Whose, refused
from cloche.errors import QuotaExceeded, QuotaPace, RequestError, TooLarge, Unavailable
from cloche.services import quota_rows, usage_rows
from cloche.services.pace import Pace

_FLUSH_S = 10.0


@dataclass(frozen=True)
class Asked:
    """So many jobs of one user, and the quotas that hold for them."""

    tenant_id: str
    user_id: str
    count: int
    quotas: Quotas

    @property
    def counted(self) -> bool:
        """Whether the jobs count until they end: ``job.quota_counted``."""
        return self.quotas.any(Kind.JOBS)


class QuotaGate:
    """Shared by a process's threads. Jobs pass :meth:`ask`, :meth:`pace` and :meth:`take`, in this order. ``defaults``: the platform's.
    ``pace``: None in a process that takes no jobs."""

    def __init__(self, db: Database, defaults: Quotas, pace: Pace | None) -> None:
        self._db = db
        self.defaults = defaults
        self._pace = pace
        self._refused: Counter[str] = Counter()
        self._flushed = time.monotonic()
        self._lock = threading.Lock()

    def ask(self, connection: Connection, actor: Actor, count: int) -> Asked:
        """Before the transaction, on a reading connection: what holds, and whether there is room now.

        Raises:
            QuotaExceeded: there is none.
        """
        tenant, user = actor.tenant_id, actor.user_id
        quotas = quota_rows.in_force(connection, self.defaults, tenant, user)
        if quotas != NO_QUOTAS:
            quota_rows.check(connection, quotas, Kind.JOBS, tenant, user, count)
            if quotas.any(Kind.CPU):
                now = now_ms(connection)
                quota_rows.check_cpu(quotas, usage_rows.cpu_ms(connection, tenant, user, now), now)
        return Asked(tenant, user, count, quotas)

    def pace(self, asked: Asked) -> None:
        """Count the submissions of this minute. Asks Redis.

        Raises:
            QuotaPace: they are too many; none is counted. It says when there will be room.
            QuotaExceeded: there will never be room for so many at once.
        """
        names = {Whose.TENANT: f"t:{asked.tenant_id}", Whose.USER: f"u:{asked.tenant_id}:{asked.user_id}"}
        limits = [(whose, limit) for whose, limit in asked.quotas.limits(Kind.SUBMISSIONS) if limit is not None]
        for whose, limit in limits:
            if asked.count > limit:
                raise quota_rows.exceeded(Kind.SUBMISSIONS, whose, limit, 0, asked.count)
        if not limits or self._pace is None:
            return
        full = self._pace.spend([(names[whose], limit) for whose, limit in limits], asked.count)
        if full is not None:
            whose, limit = limits[full.place]
            seconds = max(1, ceil(full.wait_ms / 1000))
            words = refused(Kind.SUBMISSIONS, whose, limit, full.used, asked.count, f"{seconds} s from now")
            raise QuotaPace(words, retry_after=seconds)

    def take(self, connection: Connection, asked: Asked) -> None:
        """In the transaction that stores the jobs, last of all: count them.

        Raises:
            QuotaExceeded: they would be too many by now; the transaction has to be given up.
        """
        quota_rows.enter(connection, asked.quotas, asked.tenant_id, asked.user_id, asked.count)

    def room(self, actor: Actor) -> tuple[Quotas, int | None]:
        """What holds for the actor, and how many bytes may still be stored; None: any number."""

        def unit(connection: Connection) -> tuple[Quotas, int | None]:
            tenant, user = actor.tenant_id, actor.user_id
            quotas = quota_rows.in_force(connection, self.defaults, tenant, user)
            if not quotas.any(Kind.STORAGE):
                return quotas, None
            used = quota_rows.used(connection, tenant, user)
            limits = quotas.limits(Kind.STORAGE)
            return quotas, max(0, min(limit - used[whose][1] for whose, limit in limits if limit is not None))

        return self._db.read(unit)

    @contextmanager
    def within(self, actor: Actor, quotas: Quotas, room: int | None) -> Iterator[None]:
        """Around the reading of what is stored: a stream that was cut at ``room`` is refused by its quota."""
        try:
            yield
        except TooLarge:
            if room is not None:
                check = (quotas, Kind.STORAGE, actor.tenant_id, actor.user_id, room + 1)
                self._db.read(lambda connection: quota_rows.check(connection, *check))
            raise

    # --- refusals, for metrics ----------------------------------------------------------------------------------------------

    def refused(self, error: RequestError) -> None:
        """Count a refusal that somebody was told of; others are not counted."""
        if isinstance(error, (QuotaExceeded, QuotaPace)):
            with self._lock:
                self._refused[error.code.removeprefix("quota-")] += 1
            if time.monotonic() - self._flushed >= _FLUSH_S:
                with suppress(Unavailable):
                    self.flush()

    def flush(self) -> None:
        """Write what was counted to the database, so that every process shows the same."""
        with self._lock:
            counted, self._refused = self._refused, Counter()
            self._flushed = time.monotonic()
        if counted:

            def unit(connection: Connection) -> None:
                for kind, number in sorted(counted.items()):
                    quota_rows.count_refusal(connection, kind, number)

            self._db.write(unit)
