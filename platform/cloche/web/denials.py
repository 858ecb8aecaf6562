"""What was refused, told to the audit trail: each refusal of a known actor; anonymous ones as one event per address and minute."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from flask import g, request

from cloche import logs
from cloche.clock import now_ms
from cloche.domain.permissions import Actor
from cloche.errors import Unavailable

_log = logs.get(__name__)
_MINUTE_MS = 60_000
_MAX_ADDRESSES = 10_000
OTHERS = "others"  # stands for every address beyond the most we keep apart


class Recorder(Protocol):
    def record_denied(self, actor: Actor, target: str, reason: str) -> None: ...
    def record_anonymous(self, address: str, count: int) -> None: ...


class Denials:
    """Safe from any thread. ``close`` writes what is still only counted; safe to call twice."""

    def __init__(self, recorder: Recorder, clock: Callable[[], int] = now_ms) -> None:
        self._recorder = recorder
        self._clock = clock
        self._counts: dict[tuple[int, str], int] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def refused(self, reason: str) -> None:
        """Audit that the current request was not allowed."""
        actor: Actor | None = g.get("actor")
        if actor is None:
            self.anonymous()
            return
        rule = request.url_rule.rule if request.url_rule else request.path
        self._recorder.record_denied(actor, f"{request.method} {rule}", reason)

    def anonymous(self) -> None:
        """Count the current request as one without a valid credential."""
        self.count(request.remote_addr or "local")

    def count(self, address: str) -> None:
        minute = self._clock() // _MINUTE_MS
        with self._lock:
            key = (minute, address)
            if key not in self._counts and len(self._counts) >= _MAX_ADDRESSES:
                key = (minute, OTHERS)
            self._counts[key] = self._counts.get(key, 0) + 1
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(target=self._run, name="denials", daemon=True)
                self._thread.start()

    def flush(self, *, everything: bool = False) -> None:
        """Write one event for each address and minute that is over."""
        now = self._clock() // _MINUTE_MS
        with self._lock:
            done = [key for key in self._counts if everything or key[0] < now]
            counted = [(key, self._counts.pop(key)) for key in done]
        for (minute, address), count in counted:
            try:
                self._recorder.record_anonymous(address, count)
            except Unavailable as error:
                _log.warning("denials kept for later", error=str(error))
                with self._lock:
                    self._counts[(minute, address)] = self._counts.get((minute, address), 0) + count

    def close(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self.flush(everything=True)

    def _run(self) -> None:
        while not self._stop.wait(5.0):
            self.flush()
