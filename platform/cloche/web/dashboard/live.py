"""The stream that tells open pages to look again: Server-Sent Events, few at a time.

An event says that something of the tenant's changed, never what it is now: the page fetches the part it shows, with its own permission.
``job`` means look again; ``reset`` means events may have been missed, so look again too. A stream that cannot be opened is no loss:
the page's script looks every few seconds instead.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cloche.domain.permissions import Actor
from cloche.errors import Unavailable
from cloche.queueing.broker import Broker
from cloche.web.slots import Slots

# A browser opens at most six connections to one host over HTTP/1.1; streams must leave some of them for pages.
PER_SESSION = 4
_READ_S = 2.0  # a silent stream writes this often, which is how a closed tab is noticed
_GATHER_S = 0.35  # changes within this time are told as one
_LONGEST_S = 600.0  # then the page opens a new one; its permission is checked again
_TOLD = 50  # job ids in one event


class Streams:
    """Opens streams: as many as there are slots in the process, and :data:`PER_SESSION` for one session. Shutdown ends them."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._open: Counter[str] = Counter()
        self._lock = threading.Lock()

    def open(
        self,
        slots: Slots,
        actor: Actor,
        after: str | None,
        job_id: str | None,
        allowed: Callable[[], bool] = lambda: True,
    ) -> Stream:
        """A stream of what changes in the actor's tenant (``job_id``: of one job) after the event ``after``. ``allowed`` is asked before
        anything is told, at each look: once it says no, the stream ends.

        Raises:
            Unavailable: too many streams are open, in this process or in this session, or Redis does not answer.
        """
        key = actor.session_id or actor.token_id or actor.user_id
        stream = Stream(self._enter(slots, key), slots.stopping, self._broker, actor.tenant_id, job_id, allowed)
        try:
            stream.start(after)
        except Unavailable:
            stream.close()
            raise
        return stream

    def _enter(self, slots: Slots, key: str) -> Callable[[], None]:
        """Take a place; the returned function gives it back."""
        with self._lock:
            slot = slots.take() if self._open[key] < PER_SESSION else None
            if slot is None:
                raise Unavailable(
                    "too many live pages are open; this one looks every few seconds instead", retry_after=5
                )
            self._open[key] += 1
        held = slot

        def leave() -> None:
            held.release()
            with self._lock:
                self._open[key] -= 1
                if self._open[key] <= 0:
                    del self._open[key]

        return leave

    @property
    def count(self) -> int:
        """Streams that are open now."""
        with self._lock:
            return self._open.total()


class Stream:
    """One page's stream, as bytes in the event-stream format. ``close`` gives its place back; safe to call twice."""

    def __init__(
        self,
        leave: Callable[[], None],
        stopping: threading.Event,
        broker: Broker,
        tenant_id: str,
        job_id: str | None,
        allowed: Callable[[], bool],
    ) -> None:
        self._leave: Callable[[], None] | None = leave
        self._stopping = stopping
        self._broker = broker
        self._tenant_id = tenant_id
        self._job_id = job_id
        self._allowed = allowed
        self._last = "0-0"
        self._gap = False

    def start(self, after: str | None) -> None:
        self._gap = after is None or not self._broker.has_event(after)
        self._last = self._broker.last_event_id() if after is None or self._gap else after

    def __iter__(self) -> Iterator[bytes]:
        ends = time.monotonic() + _LONGEST_S
        yield b"retry: 3000\n\n"
        if self._gap:
            yield _frame("reset", self._last, {})
        while time.monotonic() < ends and not self._stopping.is_set():
            try:
                events = self._broker.events(self._last, _READ_S)
                if not self._allowed():
                    return
            except Unavailable:
                return  # the page notices, looks by itself, and comes back
            changed = []
            for event_id, event in events:
                self._last = event_id
                if self._matters(event):
                    changed.append(str(event["id"]))
            if not changed:
                yield b": quiet\n\n"
                continue
            yield _frame("job", self._last, {"ids": list(dict.fromkeys(changed))[:_TOLD]})
            self._stopping.wait(_GATHER_S)

    def _matters(self, event: Mapping[str, Any]) -> bool:
        if event.get("tenant") != self._tenant_id:
            return False
        # A list shows no log, so that a job that writes much does not make every open list ask again.
        return event.get("id") == self._job_id if self._job_id is not None else event.get("type") != "log"

    def close(self) -> None:
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()


def _frame(name: str, event_id: str, data: object) -> bytes:
    return f"event: {name}\nid: {event_id}\ndata: {json.dumps(data)}\n\n".encode()
