"""An attempt's trace events on their way to the database: in order, in as few transactions as can be.

What is told is kept for a moment: of a job that ends in it, phases and events are written in the transaction of its end. What takes longer is
written meanwhile, so that whoever looks sees where the job is; a worker that dies takes at most that moment's events with it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from sqlalchemy import Connection

from cloche import logs
from cloche.domain.events import Trace
from cloche.domain.jobs import ClaimedJob
from cloche.errors import Unavailable
from cloche.services.attempts import AttemptRecorder

_log = logs.get(__name__)
_KEEP_S = 0.05


class AttemptTrace:
    """Used by the one thread that runs the attempt. What is added is written before anything the thread writes after :meth:`send`."""

    def __init__(self, recorder: AttemptRecorder, job: ClaimedJob) -> None:
        self._recorder = recorder
        self._job = job
        self._writing: deque[Future[None]] = deque()
        self._rows: list[dict[str, Any]] = []
        self._phase: str | None = None
        self._image: str | None = None
        self._since = 0.0  # when the first of the rows was added

    def add(self, phase: str | None, *events: tuple[Trace, Mapping[str, Any]], image: str | None = None) -> None:
        """Tell of them; ``phase`` None stays in the one there is, ``image`` is noted on the job.

        Raises:
            StaleAttempt: something added before was refused: the attempt is no longer this worker's.
        """
        self.check()
        if not self._rows:
            self._since = time.monotonic()
        self._rows += self._recorder.told(self._job, events)
        self._phase = phase or self._phase
        self._image = image or self._image

    def tick(self) -> None:
        """Send off what has been kept for its moment.

        Raises:
            StaleAttempt: see ``add``.
        """
        if self._rows and time.monotonic() - self._since >= _KEEP_S:
            self.send()

    def send(self, *, wait: bool = False) -> None:
        """Send off what is kept; ``wait`` until all of it is written, as before anything that others can see.

        Raises:
            StaleAttempt: see ``add``.
        """
        self.check()
        if self._rows:
            rows, phase, image = self._rows, self._phase, self._image
            self._rows, self._phase, self._image = [], None, None
            try:
                self._writing.append(self._recorder.writing(self._job, rows, phase, image))
            except Unavailable as error:
                self._missed(error)
        if wait:
            self.check(wait=True)

    def write(self, connection: Connection) -> None:
        """Write what is kept in the transaction of the attempt's end, of which nothing is told afterwards. May run more than once."""
        if self._rows:
            self._recorder.write(connection, self._job, self._rows, self._phase, self._image)

    def drop(self) -> None:
        """Forget what is kept, and what became of what was sent off: where the attempt's end could not be written, that may be why."""
        self._rows, self._phase, self._image = [], None, None
        self._writing.clear()

    def check(self, *, wait: bool = False) -> None:
        """Look at what became of what was sent off; ``wait`` for all of it.

        Raises:
            StaleAttempt: see ``add``.
        """
        while self._writing and (wait or self._writing[0].done()):
            try:
                self._writing.popleft().result()
            except Unavailable as error:
                self._missed(error)

    def _missed(self, error: Unavailable) -> None:
        _log.warning("trace not written", job_id=self._job.id, error=str(error))
