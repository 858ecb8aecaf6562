"""An attempt's trace events on their way to the database: in order, and without the attempt waiting for each."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from cloche import logs
from cloche.domain.events import Trace
from cloche.domain.jobs import ClaimedJob
from cloche.errors import Unavailable
from cloche.services.attempts import AttemptRecorder

_log = logs.get(__name__)


class AttemptTrace:
    """Used by the one thread that runs the attempt. What is added is written before anything the thread writes later."""

    def __init__(self, recorder: AttemptRecorder, job: ClaimedJob) -> None:
        self._recorder = recorder
        self._job = job
        self._writing: deque[Future[None]] = deque()

    def add(self, phase: str | None, *events: tuple[Trace, Mapping[str, Any]], image: str | None = None) -> None:
        """Send them off; ``phase`` None stays in the one there is, ``image`` is noted on the job.

        Raises:
            StaleAttempt: something added before was refused: the attempt is no longer this worker's.
        """
        self.check()
        try:
            self._writing.append(self._recorder.tracing(self._job, phase, events, image))
        except Unavailable as error:
            self._missed(error)

    def check(self, *, wait: bool = False) -> None:
        """Look at what became of those sent off; ``wait`` for all of them, as before anything that others can see.

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
