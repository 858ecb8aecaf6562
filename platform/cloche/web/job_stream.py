"""One job's live stream: server-sent events made from what the database says; the event hub only says when to look.

``job`` (the job, whenever it changed), ``log`` (a piece of its output; its id is ``attempt.seq``, so a client resumes after what it has),
``end`` (the last event; its ``status`` is the job's, or ``removed``).
A comment every few seconds shows that the line is alive and finds out that a client has gone.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from cloche.domain.permissions import Actor
from cloche.domain.states import TERMINAL
from cloche.errors import NotFound
from cloche.services.jobs import JobService
from cloche.services.watch import EventHub, Subscription

_LOOK_S = 2.0  # look at the database this often even when no event comes
_SLICE_S = 0.5  # and this often at whether the process is stopping
REMOVED = "removed"
_MAX_LIFE_S = 600.0  # then the client connects anew, and its credential is checked anew
_RESUME = re.compile(r"^(\d{1,6})\.(\d{1,9})\Z")


class JobStream:
    """``events`` is a generator; closing it ends the subscription. ``allowed`` is asked at every look: once it says no, nothing more is told."""

    def __init__(
        self,
        jobs: JobService,
        hub: EventHub,
        actor: Actor,
        job_id: str,
        stopping: threading.Event,
        allowed: Callable[[], bool] = lambda: True,
    ) -> None:
        self._jobs = jobs
        self._hub = hub
        self._actor = actor
        self._job_id = job_id
        self._stopping = stopping
        self._allowed = allowed
        self._attempt = 1
        self._seq: int | None = None
        self._shown: dict[str, Any] | None = None

    def events(self, resume: str | None) -> Iterator[str]:
        """The stream's text. ``resume`` is the id of the last ``log`` event the client has; anything else starts from the first."""
        if match := _RESUME.match(resume or ""):
            self._attempt, self._seq = max(1, int(match[1])), int(match[2])
        ends = time.monotonic() + _MAX_LIFE_S
        yield "retry: 1000\n\n"
        with self._hub.subscribe(lambda event: event.get("id") == self._job_id) as subscription:
            while not self._stopping.is_set() and time.monotonic() < ends and self._allowed():
                try:
                    job = self._jobs.get(self._actor, self._job_id)
                    yield from self._log(job)
                except NotFound:  # it was there as the stream began
                    yield _event("end", {"status": REMOVED})
                    return
                if job != self._shown:
                    self._shown = job
                    yield _event("job", job)
                if job["status"] in TERMINAL:
                    yield _event("end", {"status": job["status"]})
                    return
                if not self._woken(subscription):
                    yield ": alive\n\n"

    def _log(self, job: dict[str, Any]) -> Iterator[str]:
        while self._attempt <= job["attempt"]:
            pieces = self._jobs.logs(self._actor, self._job_id, attempt=self._attempt, after=self._seq)
            for piece in pieces:
                self._seq = piece["seq"]
                yield _event("log", piece, f"{piece['attempt']}.{piece['seq']}")
            if pieces:
                continue
            if self._attempt == job["attempt"]:
                return
            self._attempt, self._seq = self._attempt + 1, None

    def _woken(self, subscription: Subscription) -> bool:
        deadline = time.monotonic() + _LOOK_S
        while time.monotonic() < deadline and not self._stopping.is_set():
            if subscription.get(_SLICE_S) is not None:
                while subscription.get(0) is not None:  # many events, one look
                    pass
                return True
        return False


def _event(name: str, data: dict[str, Any], event_id: str | None = None) -> str:
    head = f"id: {event_id}\n" if event_id else ""
    return f"{head}event: {name}\ndata: {json.dumps(data)}\n\n"
