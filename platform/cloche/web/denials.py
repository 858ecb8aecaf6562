"""What was refused, told to the audit trail: what does not fill the disk.

The first refusal of an actor at a route is an event at once, its repetitions within the same minute one more event that counts them.
Anonymous refusals are one event per address and minute; an IPv6 address counts as its network of 64 bits, which is what one customer
has. Beyond a thousand addresses in a minute the rest is one event.
"""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Callable
from functools import partial
from typing import Protocol

from flask import g, request

from cloche import logs
from cloche.clock import now_ms
from cloche.domain.permissions import Actor
from cloche.errors import Unavailable

_log = logs.get(__name__)
_MINUTE_MS = 60_000
_MAX_ADDRESSES = 1_000
OTHERS = "others"  # stands for every address beyond the most we keep apart


class Recorder(Protocol):
    def record_denied(self, actor: Actor, target: str, reason: str, count: int = 1) -> None: ...
    def record_anonymous(self, address: str, count: int) -> None: ...


class Denials:
    """Safe from any thread. ``close`` writes what is still only counted; safe to call twice."""

    def __init__(self, recorder: Recorder, clock: Callable[[], int] = now_ms) -> None:
        self._recorder = recorder
        self._clock = clock
        self._counts: dict[tuple[int, str], int] = {}
        self._repeated: dict[
            tuple[int, str, str], tuple[Actor, str, int]
        ] = {}  # (minute, user, target): who, reason, how often more
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def refused(self, reason: str) -> None:
        """Audit that the current request was not allowed."""
        actor: Actor | None = g.get("actor")
        if actor is None:
            self.anonymous()
            return
        rule = request.url_rule.rule if request.url_rule else "(no such path)"
        target = f"{request.method} {rule}"
        if self._is_first(actor, target, reason):
            self._recorder.record_denied(actor, target, reason)

    def anonymous(self) -> None:
        """Count the current request as one without a valid credential."""
        self.count(request.remote_addr or "local")

    def count(self, address: str) -> None:
        minute = self._clock() // _MINUTE_MS
        with self._lock:
            key = (minute, _network(address))
            if key not in self._counts and len(self._counts) >= _MAX_ADDRESSES:
                key = (minute, OTHERS)
            self._counts[key] = self._counts.get(key, 0) + 1
            self._start()

    def _is_first(self, actor: Actor, target: str, reason: str) -> bool:
        key = (self._clock() // _MINUTE_MS, actor.user_id, target)
        with self._lock:
            known = self._repeated.get(key)
            self._repeated[key] = (actor, reason, known[2] + 1 if known else 0)
            self._start()
        return known is None

    def _start(self) -> None:
        if self._thread is None and not self._stop.is_set():
            self._thread = threading.Thread(target=self._run, name="denials", daemon=True)
            self._thread.start()

    def flush(self, *, everything: bool = False) -> None:
        """Write one event for each address, and for each actor's repetitions, of the minutes that are over."""
        now = self._clock() // _MINUTE_MS
        with self._lock:
            done = [key for key in self._counts if everything or key[0] < now]
            counted = [(key, self._counts.pop(key)) for key in done]
            over = [key for key in self._repeated if everything or key[0] < now]
            repeated = [(key, self._repeated.pop(key)) for key in over]
        for (_, _, target), (actor, reason, count) in repeated:
            if count:
                self._quietly(partial(self._recorder.record_denied, actor, target, reason, count))
        for (minute, address), count in counted:
            try:
                self._recorder.record_anonymous(address, count)
            except Unavailable as error:
                _log.warning("denials kept for later", error=str(error))
                with self._lock:
                    self._counts[(minute, address)] = self._counts.get((minute, address), 0) + count

    @staticmethod
    def _quietly(record: Callable[[], None]) -> None:
        try:
            record()
        except Unavailable as error:
            _log.warning("repeated denials not recorded", error=str(error))

    def close(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self.flush(everything=True)

    def _run(self) -> None:
        while not self._stop.wait(5.0):
            self.flush()


def _network(address: str) -> str:
    if ":" not in address:
        return address
    try:
        plain = ipaddress.IPv6Address(address.partition("%")[0])
        return str(plain.ipv4_mapped or ipaddress.IPv6Network((plain, 64), strict=False))
    except ValueError:
        return address
