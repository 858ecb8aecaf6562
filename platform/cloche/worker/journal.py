"""A running job's output on its way to the database: bounded, in batches, with a word to the stream that it grew."""

from __future__ import annotations

import time
from typing import Any

from cloche.clock import now_ms
from cloche.domain.jobs import ClaimedJob
from cloche.errors import Unavailable
from cloche.queueing.broker import Broker
from cloche.services import effects
from cloche.services.attempts import AttemptRecorder

_FLUSH_S = 0.2
_FLUSH_BYTES = 32 << 10
_PIECE = 16 << 10  # characters in one row
TRUNCATED = "\n[output cut: the log limit of this job is reached]\n"


class Journal:
    """Used by the one thread that runs the attempt. ``limit``: bytes of log kept for one attempt."""

    def __init__(self, recorder: AttemptRecorder, broker: Broker, job: ClaimedJob, limit: int) -> None:
        self._recorder = recorder
        self._broker = broker
        self._job = job
        self._limit = limit
        self._left = limit
        self._seq = 0
        self._pieces: list[dict[str, Any]] = []
        self._bytes = 0
        self._progress: dict[str, Any] | None = None
        self._flushed = time.monotonic()
        self.truncated = False

    @property
    def kept(self) -> int:
        """Bytes of output kept so far, at most the limit."""
        return self._limit - max(0, self._left)

    def log(self, stream: str, text: str) -> None:
        """Keep a piece of output; what is beyond the limit is dropped and said so once."""
        if self.truncated:
            return
        size = len(text.encode("utf-8", "replace"))
        if size > self._left:
            text = text.encode("utf-8", "replace")[: self._left].decode("utf-8", "ignore") + TRUNCATED
            self.truncated = True
        self._left -= size
        for start in range(0, len(text), _PIECE):
            self._append(stream, text[start : start + _PIECE])
        self._bytes += size

    def progress(self, current: int | float, total: int | float | None, message: str | None) -> None:
        self._progress = {"current": current, "total": total, "message": message, "at": now_ms()}

    def tick(self) -> None:
        """Write what has gathered, if it is time."""
        age = time.monotonic() - self._flushed
        if self._bytes >= _FLUSH_BYTES or (age >= _FLUSH_S and (self._pieces or self._progress)):
            self.flush()

    def flush(self) -> None:
        """Write everything now. A database that is away keeps the pieces for the next call.

        Raises:
            StaleAttempt: the attempt is no longer this worker's.
        """
        if not self._pieces and self._progress is None:
            return
        try:
            self._recorder.logged(self._job, self._pieces, self._progress)
        except Unavailable:
            return
        events: list[dict[str, Any]] = []
        where = {"id": self._job.id, "tenant": self._job.tenant_id, "attempt": self._job.attempt}
        if self._pieces:
            events.append({"type": "log", **where, "seq": self._seq})
        if self._progress is not None:
            events.append({"type": "progress", **where})
        self._pieces, self._bytes, self._progress = [], 0, None
        self._flushed = time.monotonic()
        effects.apply(self._broker, effects.Effects(events=events))

    def _append(self, stream: str, text: str) -> None:
        self._seq += 1
        self._pieces.append({"seq": self._seq, "at": now_ms(), "stream": stream, "text": text.replace("\x00", "\\x00")})
