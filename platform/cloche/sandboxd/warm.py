"""One sandbox that waits for its job: the plugin imported and set up, nothing of any job in it."""

from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path

from cloche.domain.limits import Limits
from cloche.domain.runtimes import RUNSC
from cloche.errors import PluginFailure
from cloche.isolation.stream import GuestStream
from cloche.sandboxd.running import Running

_SO_PEEK_OFF = 42  # socket(7): a peek goes on where the last one ended
_CHUNK = 64 << 10
# Below what the kernel keeps for a reader that does not come (net.core.wmem_default, 208 KiB, headers included).
_MOST_UNREAD = 128 << 10
_MOST_SAID = 300  # characters of a plugin's own words
_MOST_LOOKED_AT = 32  # processes
_BUSY_SHARE = 0.2  # of one CPU: who waits for a job has nothing to do
_SPOILT = ("oom_kills", "pids_denied")  # counted per sandbox for good: a job would be blamed for them


class Warm:
    """Not thread-safe: whoever keeps it has a lock. ``failure`` is set once, and for good.

    What its guest has sent is looked at and left in the channel, so that the worker reads it as it would have after a cold start.
    """

    def __init__(self, running: Running, channel: socket.socket, image: str, limits: Limits, began: float) -> None:
        self.running = running
        self.channel = channel
        self.image = image
        self.ready = False
        self.failure: str | None = None  # why it serves no job
        self.said = False  # whether the failure is in the plugin's own words
        self.memory = 0  # bytes, when last measured
        self.began = began  # monotonic seconds: its making
        self.started_at = time.monotonic()
        self.ready_at = self.started_at
        self._cpu: tuple[float, int] | None = None  # when, and ms used until then
        self._seen = 0
        self._stream = GuestStream(limits)
        channel.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, 0)

    def look(self) -> None:
        """Take note of what has come since the last look."""
        while self.failure is None:
            try:
                data = self.channel.recv(_CHUNK, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                self._fail("its channel ended")
                break
            self._seen += len(data)
            if self._seen > _MOST_UNREAD:
                self._fail("it says more than can be kept until a job comes")
                break
            self._read(data)
        if self._stream.exit_code is not None:
            self._fail(self._end())

    def check(self) -> str | None:
        """Why it should not be given to a job now, or None."""
        self.look()
        if self.failure is None and self.running.is_dead():
            self._fail("it died")
        if self.failure is None and self._stopped():
            self._fail("its process is stopped")
        if self.failure is None and self.ready:
            self._measure()
        return self.failure

    def idles(self, now: float) -> bool:
        """Whether it kept still since it was last asked; it fails when it did not."""
        cpu_ms = self.running.cgroup.usage().get("cpu_ms")
        if cpu_ms is not None:
            before, self._cpu = self._cpu, (now, cpu_ms)
            if before is not None and (cpu_ms - before[1]) / 1000 > _BUSY_SHARE * max(now - before[0], 1.0):
                self._fail("it does not keep still after its setup")
        return self.failure is None

    def release(self, owner: str, limits: Limits) -> socket.socket:
        """Make it the owner's. The channel is the caller's to send and to close."""
        self.channel.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, -1)
        self.running.hand_over(owner, limits)
        return self.channel

    def close(self) -> None:
        """Kill it. What it leaves has to be destroyed."""
        self.running.kill()
        with contextlib.suppress(OSError):
            self.channel.shutdown(socket.SHUT_RDWR)
        self.channel.close()

    def _read(self, data: bytes) -> None:
        try:
            self._stream.feed(data)
            while (frame := self._stream.next()) is not None:
                kind = frame.get("type")
                if kind == "ready" and not self.ready:
                    self.ready, self.ready_at = True, time.monotonic()
                    self._measure()
                elif kind == "error":
                    self._fail(str(frame["message"])[:_MOST_SAID])
                    self.said = True
        except PluginFailure as failure:
            self._fail(failure.message)

    def _end(self) -> str:
        """Why its agent is no more."""
        if self.running.cgroup.usage().get("oom_kills", 0) > 0:
            return "it ran out of memory"
        return f"its process ended (exit code {self._stream.exit_code})"

    def _measure(self) -> None:
        used = self.running.cgroup.usage()
        self.memory = self.running.memory_used()
        for name in _SPOILT:
            if used.get(name, 0) > 0:
                self._fail("it ran out of memory" if name == "oom_kills" else "it met its limit of processes")

    def _fail(self, why: str) -> None:
        if self.failure is None:
            self.failure = why

    def _stopped(self) -> bool:
        """Whether a process of its is stopped or traced: a job would wait for it in vain."""
        if self.running.runtime == RUNSC:
            return False  # gVisor traces its guest at all times, and shows nobody which process inside has stopped
        # The oldest come first, the agent among them; a plugin may have thousands more.
        return any(_state(pid) in ("T", "t") for pid in self.running.cgroup.processes()[:_MOST_LOOKED_AT])


def _state(pid: int) -> str | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text("ascii", "replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()[0]
