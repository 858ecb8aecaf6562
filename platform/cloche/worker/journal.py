"""A running job's output on its way to the database: bounded, in batches, with a word to the stream that it grew."""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from cloche.domain.jobs import ClaimedJob
from cloche.domain.masks import Masks
from cloche.errors import Unavailable
from cloche.queueing.broker import Broker
from cloche.services import effects
from cloche.services.attempts import AttemptRecorder
from cloche.services.masking import sealed_progress, sealed_text
from cloche.services.sealing import JobSeal
from cloche_guest.protocol import LOG_TRUNCATED

_FLUSH_S = 0.2
_FLUSH_BYTES = 32 << 10
_AWAY_S = 2.0  # before a database that is away is tried again
_PIECE = 16 << 10  # characters in one row
TRUNCATED = "\n[output cut: the log limit of this job is reached]\n"


@dataclass(frozen=True)
class _Writing:
    """A batch on its way to the disk."""

    future: Future[None]
    pieces: list[dict[str, Any]]
    progress: dict[str, Any] | None
    seq: int


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
        self._writing: _Writing | None = None
        self.truncated = False
        self.seal: JobSeal | None = None  # of a sensitive job; set before anything is logged
        self.masks = Masks()  # the attempt's secrets; set before it has them

    @property
    def kept(self) -> int:
        """Bytes of output kept so far, at most the limit."""
        return self._limit - max(0, self._left)

    def log(self, stream: str, text: str) -> None:
        """Keep a piece of output, its secrets masked; what is beyond the limit is dropped and said so once."""
        if self.truncated:
            return
        if text.endswith(LOG_TRUNCATED):  # by the guest, which may have cut a secret in two
            said = self.masks.stream(stream, text.removesuffix(LOG_TRUNCATED)) + self.masks.end(stream)
            self._keep(stream, said + LOG_TRUNCATED)
        else:
            self._keep(stream, self.masks.stream(stream, text))

    def _keep(self, stream: str, text: str) -> None:
        if self.truncated or not text:
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
        masked = None if message is None else self.masks.text(message)
        self._progress = {"current": current, "total": total, "message": masked, "at": self._recorder.now_ms()}
        if self.seal is not None:
            self._progress = sealed_progress(self.seal, self._job.attempt, self._progress)

    def tick(self) -> None:
        """Send what has gathered to the database, if it is time. Never waits: the deadline and a cancel are watched by this thread too.

        Raises:
            StaleAttempt: the attempt is no longer this worker's.
        """
        if self._writing is not None and self._writing.future.done():
            self._written()
        due = self._bytes >= _FLUSH_BYTES or time.monotonic() - self._flushed >= _FLUSH_S
        if self._writing is None and due:
            self._send()

    def flush(self) -> None:
        """At the output's end: write everything, and wait for it. A database that is away keeps the pieces for the next call.

        Raises:
            StaleAttempt: the attempt is no longer this worker's.
        """
        for stream, held in self.masks.rest():
            self._keep(stream, held)
        if self._writing is not None:
            self._written()
        self._send()
        if self._writing is not None:
            self._written()

    def _send(self) -> None:
        if self._pieces or self._progress is not None:
            future = self._recorder.logged(self._job, self._pieces, self._progress)
            self._writing = _Writing(future, self._pieces, self._progress, self._seq)
            self._pieces, self._bytes, self._progress = [], 0, None
            self._flushed = time.monotonic()

    def _written(self) -> None:
        """Take note of what the database said to the last batch; waits for it."""
        batch = self._writing
        if batch is None:
            return
        self._writing = None
        try:
            batch.future.result()
        except Unavailable:
            self._pieces[:0] = batch.pieces
            self._progress = self._progress or batch.progress
            self._flushed = time.monotonic() + _AWAY_S
            return
        events: list[dict[str, Any]] = []
        where = {"id": self._job.id, "tenant": self._job.tenant_id, "attempt": self._job.attempt}
        if batch.pieces:
            events.append({"type": "log", **where, "seq": batch.seq})
        if batch.progress is not None:
            events.append({"type": "progress", **where})
        effects.apply(self._broker, effects.Effects(events=events))

    def _append(self, stream: str, text: str) -> None:
        self._seq += 1
        text = text.replace("\x00", "\\x00")
        if self.seal is not None:
            text = sealed_text(self.seal, self._job.attempt, self._seq, text)
        self._pieces.append({"seq": self._seq, "at": self._recorder.now_ms(), "stream": stream, "text": text})
