"""Sends what ``callback_rows`` wrote: at least once, in order for each job, again and again for a day, and to each receiver in its turn.

Where things are is in the rows, so several of these may work at once and any of them may die: what it had claimed is sent again by another one
once the claim is over.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from sqlalchemy import Connection, RowMapping

from cloche import failpoints, logs
from cloche.clock import now_ms
from cloche.db.engine import Database
from cloche.domain.callbacks import Outcome, Target, parse_url, retry_delay_ms
from cloche.errors import ClocheError
from cloche.failpoints import Point
from cloche.services import callback_store as store
from cloche.services.callback_secrets import CallbackSecrets
from cloche.services.callback_store import Receiver, Result
from cloche.webhooks import signature
from cloche.webhooks.client import NotDelivered

_log = logs.get(__name__)
_RANDOM = random.SystemRandom()
_CLAIM_SLACK_MS = 60_000  # beyond the time a try may take: a name look-up, a busy database
_LOOKED_AT = 256  # tenants in one round, and receivers of one of them; the next one goes on behind them
_SILENT = 10_000  # receivers; tenants choose their names, and most are never asked again
_PAUSE_S = 0.5
_MEDIA_TYPE = "application/cloudevents+json; charset=utf-8"


class Post(Protocol):
    def post(self, target: Target, headers: dict[str, str], body: bytes) -> int: ...


class Limits:
    """How many are sent at once: in all, to one receiver, and for one tenant (half of all). Times in milliseconds."""

    def __init__(
        self,
        at_once: int = 16,
        per_receiver: int = 2,
        timeout_ms: int = 10_000,
        give_up_ms: int = 86_400_000,
        claim_ms: int | None = None,
    ) -> None:
        self.at_once = at_once
        self.per_receiver = per_receiver
        self.per_tenant = max(1, at_once // 2)
        self.give_up_ms = give_up_ms
        self.claim_ms = timeout_ms + _CLAIM_SLACK_MS if claim_ms is None else claim_ms


class Silent:
    """Receivers of whom the last try got no answer: one at a time finds out whether they are back. Of many, those heard of last: whoever
    is forgotten is asked as one that answers, until the next try."""

    def __init__(self, most: int = _SILENT) -> None:
        self._most = most
        self._known: dict[Receiver, None] = {}  # in the order of their last tries

    def __contains__(self, receiver: Receiver) -> bool:
        return receiver in self._known

    def __len__(self) -> int:
        return len(self._known)

    def note(self, receiver: Receiver, outcome: Outcome) -> None:
        self._known.pop(receiver, None)
        if outcome in (Outcome.TIMED_OUT, Outcome.UNREACHABLE):
            self._known[receiver] = None
            if len(self._known) > self._most:
                del self._known[next(iter(self._known))]


class Deliverer:
    """``run_once`` is called by one thread, again and again; each delivery is sent in a thread of its own. ``owner`` names the process."""

    def __init__(self, db: Database, secrets: CallbackSecrets, sender: Post, owner: str, limits: Limits) -> None:
        self._db = db
        self._secrets = secrets
        self._sender = sender
        self._owner = owner
        self._limits = limits
        self._changed = threading.Condition()
        self._sending: Counter[Receiver] = Counter()
        self._silent = Silent()
        # Where the last round ended: over the tenants, and over each tenant's receivers.
        self._tenant: str | None = None
        self._behind: dict[str, str] = {}

    def run_once(self, stop: threading.Event) -> int:
        """Send until nothing is due that may be sent now; returns how many tries were begun. Those under way may last longer than this.

        Raises:
            Unavailable: the database does not answer.
        """
        begun = 0
        while not stop.is_set():
            rows = self._claim()
            for row in rows:
                self._begin(row)
            begun += len(rows)
            if rows:
                continue
            with self._changed:
                if not self._sending or not self._changed.wait(_PAUSE_S):
                    return begun
        return begun

    def idle(self, timeout_s: float) -> bool:
        """Wait until nothing is being sent. Whatever is when the process ends is sent again later."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._sending, timeout_s)

    def _claim(self) -> Sequence[RowMapping]:
        now = self._db.now_ms()
        ids = self._db.read(lambda connection: self._chosen(connection, now))
        if not ids:
            return ()
        until = now + self._limits.claim_ms
        rows = self._db.write(lambda connection: store.claim(connection, ids, self._owner, now, until))
        failpoints.hit(Point.CALLBACK_CLAIMED)
        return rows

    def _chosen(self, connection: Connection, now: int) -> list[str]:
        """One round over the tenants, from where the last one ended, until all places are taken."""
        with self._changed:
            taken = self._sending.copy()
        chosen: list[str] = []
        first: str | None = None
        for _ in range(_LOOKED_AT):
            if taken.total() >= self._limits.at_once:
                break
            tenant = store.next_tenant(connection, self._tenant, now) or store.next_tenant(connection, None, now)
            if tenant is None or tenant == first:
                break
            first = first or tenant
            chosen += self._chosen_of(connection, tenant, taken, now)
            self._tenant = tenant
        return chosen

    def _chosen_of(self, connection: Connection, tenant: str, taken: Counter[Receiver], now: int) -> list[str]:
        """One round over the tenant's receivers, from where its last one ended, until its places are taken: however many it has, others
        do not wait for them."""
        chosen: list[str] = []
        first: Receiver | None = None
        for _ in range(_LOOKED_AT):
            if self._places(tenant, taken) <= 0:
                break
            after = self._behind.get(tenant)
            receiver = store.next_receiver(connection, tenant, after, now)
            receiver = receiver or store.next_receiver(connection, tenant, None, now)
            if receiver is None or receiver == first:
                break
            first = first or receiver
            room = self._room(receiver, taken)
            if room > 0:
                found = store.due(connection, receiver, now, room)
                taken[receiver] += len(found)
                chosen += found
            self._behind[tenant] = receiver.name
        return chosen

    def _places(self, tenant: str, taken: Counter[Receiver]) -> int:
        for_tenant = sum(count for (tenant_id, _), count in taken.items() if tenant_id == tenant)
        return min(self._limits.per_tenant - for_tenant, self._limits.at_once - taken.total())

    def _room(self, receiver: Receiver, taken: Counter[Receiver]) -> int:
        to_it = sum(count for (_, name), count in taken.items() if name == receiver.name)
        most = 1 if receiver in self._silent else self._limits.per_receiver
        return min(most - to_it, self._places(receiver.tenant_id, taken))

    def _begin(self, row: RowMapping) -> None:
        receiver = Receiver(row["tenant_id"], row["receiver"])
        with self._changed:
            self._sending[receiver] += 1
        # A daemon: a process that stops need not wait for a slow receiver, for what is not settled is sent again.
        threading.Thread(target=self._send, args=(row, receiver), name="callback", daemon=True).start()

    def _send(self, row: RowMapping, receiver: Receiver) -> None:
        try:
            result = self._tried(row)
            failpoints.hit(Point.CALLBACK_SENT)
            with self._changed:
                self._silent.note(receiver, result.outcome)
            now = self._db.now_ms()
            if not self._db.write(lambda c: store.settle(c, row, self._owner, result, now)):
                _log.warning("a callback took longer than its claim", delivery=row["id"], job_id=row["job_id"])
            elif result.outcome is not Outcome.DELIVERED:
                _log.info("callback failed", delivery=row["id"], job_id=row["job_id"], outcome=result.outcome.value)
        except ClocheError as error:
            # Not settled: the claim runs out and it is sent again
            _log.warning("callback not settled", delivery=row["id"], job_id=row["job_id"], error=str(error))
        except Exception:  # noqa: BLE001 - one delivery's thread takes nothing with it
            _log.exception("callback failed in an unexpected way", delivery=row["id"], job_id=row["job_id"])
        finally:
            with self._changed:
                self._sending[receiver] -= 1
                if self._sending[receiver] <= 0:
                    del self._sending[receiver]
                self._changed.notify_all()

    def _tried(self, row: RowMapping) -> Result:
        body = row["body"].encode()
        keys = self._secrets.signing(row["tenant_id"])
        headers = {"Content-Type": _MEDIA_TYPE, **signature.headers(keys, row["id"], now_ms() // 1000, body)}
        try:
            status = self._sender.post(parse_url(row["callback"]["url"]), headers, body)
        except NotDelivered as failure:
            return self._failed(row, failure)
        return Result(Outcome.DELIVERED, status, None, None)

    def _failed(self, row: RowMapping, failure: NotDelivered) -> Result:
        now, last = self._db.now_ms(), row["created_at"] + self._limits.give_up_ms
        if failure.outcome is Outcome.GONE or now >= last:
            return Result(failure.outcome, failure.status, failure.detail, None)
        delay = retry_delay_ms(row["attempts"], _RANDOM.randint, failure.retry_after_s)
        return Result(failure.outcome, failure.status, failure.detail, min(now + delay, last))
