"""Turns what a plugin prints, logs and reports into bounded frames."""

from __future__ import annotations

import codecs
import math
import os
import select
import threading
import time
from collections.abc import Iterator

from cloche_guest.link import Link
from cloche_guest.protocol import LOG_TRUNCATED, MAX_MESSAGE

SETUP_BUDGET = 64 << 10  # bytes of log before the job and its own limit are known
_CHUNK = 16 << 10  # bytes; replacement characters may triple it, which still fits one log frame
_PACE_S = 0.02  # at most fifty log frames a second; a burst becomes larger frames instead
_PROGRESS_S = 0.1  # at most ten progress frames a second
_DRAIN_BYTES = 1 << 20  # read at the end of the job, at most


class Relay:
    """One thread reads the pipes; ``drain`` lets the caller finish its work so that logs come before the result."""

    def __init__(self, link: Link, stdout: int, stderr: int) -> None:
        self._link = link
        self._names = {stdout: "stdout", stderr: "stderr"}
        self._decoders = {fd: codecs.getincrementaldecoder("utf-8")("replace") for fd in self._names}
        self._budget = SETUP_BUDGET
        self._truncated = False
        self._lock = threading.RLock()
        self._wake_reader, self._wake_writer = os.pipe()
        os.set_blocking(self._wake_writer, False)
        self._held = ""  # of job.log, for the next frame
        self._pending: dict[str, object] | None = None
        self._last_progress = 0.0

    def start(self) -> None:
        threading.Thread(target=self._loop, name="relay", daemon=True).start()

    def allow(self, budget: int) -> None:
        """The job's own limit of log bytes, from now on."""
        with self._lock:
            self._budget = budget
            self._truncated = False

    def log(self, text: str) -> None:
        """Send it with the next frame, so that a plugin that logs a line at a time does not flood the host with frames."""
        with self._lock:
            if self._truncated:
                return
            for part in _pieces(text):
                self._held += part
                if len(self._held) >= _CHUNK:
                    self._send_held()
        self._wake()

    def progress(self, current: float, total: float | None, message: str | None) -> None:
        """Send it now, or keep the newest until the pace allows.

        Raises:
            ValueError: ``current`` or ``total`` is not a finite number.
        """
        shown = None if message is None else str(message)[:MAX_MESSAGE].encode("utf-8", "replace").decode()
        for number in (current, 0 if total is None else total):
            if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
                raise ValueError("progress is counted in finite numbers")
        with self._lock:
            known = (
                self._pending is not None
            )  # then the thread looks again by itself; each wake-up is a system call, which a sandbox may make dear
            self._pending = {"type": "progress", "current": _plain(current), "total": _plain(total), "message": shown}
            if not self._send_progress() and not known:
                self._wake()

    def drain(self) -> None:
        """Send what is in the pipes and the last progress. Bounded, whatever still writes."""
        left = _DRAIN_BYTES
        with self._lock:
            for fd in self._names:
                while left > 0 and (size := self._pump(fd)):
                    left -= size
            self._send_held()
            self._send_progress(now=True)

    def _loop(self) -> None:
        poll = select.poll()
        for fd in (*self._names, self._wake_reader):
            poll.register(fd, select.POLLIN)
        while True:
            waiting = self._pending is not None
            for fd, _ in poll.poll(_PROGRESS_S * 1000 if waiting else None):
                if fd == self._wake_reader:
                    os.read(fd, 512)
                    continue
                with self._lock:
                    self._pump(fd)
            with self._lock:
                self._send_held()
                self._send_progress()
            if not self._truncated:
                time.sleep(_PACE_S)  # beyond its budget the plugin's output is thrown away, and need not be waited for

    def _pump(self, fd: int) -> int:
        """Relay one chunk; the number of bytes read, 0 when none wait."""
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return 0
        self._emit(self._names[fd], self._decoders[fd].decode(data))
        return len(data)

    def _send_held(self) -> None:
        held, self._held = self._held, ""
        for part in _pieces(held):
            self._emit("stdout", part)

    def _emit(self, stream: str, text: str) -> None:
        if not text:
            return
        size = len(text.encode("utf-8"))
        if size <= self._budget:
            self._budget -= size
            self._link.send({"type": "log", "stream": stream, "text": text})
        elif not self._truncated:
            kept = text.encode("utf-8")[: self._budget].decode("utf-8", "ignore")
            self._budget = 0
            self._truncated = True
            self._link.send({"type": "log", "stream": stream, "text": kept + LOG_TRUNCATED})

    def _send_progress(self, now: bool = False) -> bool:
        if self._pending is None:
            return True
        moment = time.monotonic()
        if not now and moment - self._last_progress < _PROGRESS_S:
            return False
        frame, self._pending = self._pending, None
        self._last_progress = moment
        self._link.send(frame)
        return True

    def _wake(self) -> None:
        try:
            os.write(self._wake_writer, b"!")
        except BlockingIOError:
            return  # it has been woken often enough


def _plain(number: float | None) -> float | None:
    """Whole numbers of a modest size stay whole."""
    return number if number is None or (isinstance(number, int) and abs(number) < 1 << 53) else float(number)


def _pieces(text: str) -> Iterator[str]:
    clean = str(text).encode("utf-8", "replace").decode()
    for start in range(0, len(clean), _CHUNK):
        yield clean[start : start + _CHUNK]
