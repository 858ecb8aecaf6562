"""One reader of the event stream per process, and any number of subscribers.

Events say that something changed; what it is now is read from the database. A subscriber that gets ``reset`` has missed some and reads anew.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

from cloche import logs
from cloche.errors import Unavailable
from cloche.queueing.broker import Broker

_log = logs.get(__name__)
_BACKLOG = 256  # events a slow subscriber may lag behind before it is told to read anew
RESET: dict[str, Any] = {"type": "reset"}
Match = Callable[[dict[str, Any]], bool]


class Subscription:
    """Events that match, in order. ``close`` when done; safe to call twice."""

    def __init__(self, hub: EventHub, match: Match) -> None:
        self._hub = hub
        self._match = match
        self._events: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue(_BACKLOG)

    def get(self, timeout_s: float) -> tuple[str, dict[str, Any]] | None:
        """The next event with its stream id (``""`` for ``reset``); None when none came in time."""
        try:
            return self._events.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def close(self) -> None:
        self._hub.forget(self)

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def offer(self, event_id: str, event: dict[str, Any]) -> None:
        """Called by the hub's thread alone."""
        if event is not RESET and not self._match(event):
            return
        try:
            self._events.put_nowait((event_id, event))
        except queue.Full:
            with self._events.mutex:
                self._events.queue.clear()
            self._events.put_nowait(("", RESET))


class EventHub:
    """Starts its thread with the first subscription. ``close`` ends it, within the read that it is in; safe to call twice."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._subscriptions: set[Subscription] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def subscribe(self, match: Match) -> Subscription:
        """From now on; an event published before this call is not delivered."""
        subscription = Subscription(self, match)
        with self._lock:
            self._subscriptions.add(subscription)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="event-hub", daemon=True)
                self._thread.start()
        return subscription

    def forget(self, subscription: Subscription) -> None:
        with self._lock:
            self._subscriptions.discard(subscription)

    def close(self) -> None:
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            # It only reads, and nobody listens any more: a process that stops does not wait for the end of a blocking read, up to two seconds.
            self._thread.join(timeout=0.1)

    def _run(self) -> None:
        last: str | None = None
        while not self._stop.is_set():
            try:
                if last is None:
                    last = self._broker.last_event_id()
                    self._deliver("", RESET)  # what came between the last answer and now is unknown
                for event_id, event in self._broker.events(last, 2.0):
                    last = event_id
                    self._deliver(event_id, event)
            except Exception as error:  # noqa: BLE001 - without this thread nobody in the process hears anything any more
                if self._stop.is_set():
                    return  # its connection was closed with the process' others
                known = isinstance(error, Unavailable)
                (_log.debug if known else _log.warning)(
                    "event stream away", error=str(error), kind=type(error).__name__
                )
                last = None
                self._stop.wait(0.5)

    def _deliver(self, event_id: str, event: dict[str, Any]) -> None:
        with self._lock:
            subscriptions = list(self._subscriptions)
        for subscription in subscriptions:
            subscription.offer(event_id, event)
