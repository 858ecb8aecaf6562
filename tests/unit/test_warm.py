"""A waiting sandbox as its channel shows it: looked at without taking a byte, and watched for its end."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from cloche.domain.limits import Limits, watched_apart
from cloche.domain.runtimes import RUNC
from cloche.isolation.channel import GuestChannel
from cloche.isolation.scripted import READY
from cloche.sandboxd.warm import Warm
from cloche.sandboxd.watch import Watch
from cloche_guest.protocol import EXIT_LINE, encode

LIMITS = watched_apart(Limits())


class Group:
    """A cgroup whose counters the test sets."""

    def __init__(self) -> None:
        self.counters = {"cpu_ms": 100, "oom_kills": 0, "pids_denied": 0}

    def usage(self) -> dict[str, int]:
        return dict(self.counters)

    def memory_used(self) -> int:
        return 5 << 20

    def processes(self) -> list[int]:
        return [os.getpid()]


class Waiting:
    """One waiting sandbox and its guest's end of the channel."""

    def __init__(self) -> None:
        near, self.guest = socket.socketpair()
        self.group = Group()
        self.dead = False
        self.owner: str | None = None
        self.pidfd = os.pidfd_open(os.getpid())
        running: Any = SimpleNamespace(
            cgroup=self.group,
            is_dead=lambda: self.dead,
            pidfd=self.pidfd,
            kill=lambda: None,
            hand_over=self._hand_over,
            runtime=RUNC,
            memory_used=self.group.memory_used,
        )
        self.warm = Warm(running, near, "sha256:x", LIMITS, 0.0)

    def _hand_over(self, owner: str, _limits: Limits) -> None:
        self.owner = owner

    def says(self, data: bytes, stream: int = 1) -> None:
        self.guest.sendall(struct.pack(">BxxxI", stream, len(data)) + data)

    def frame(self, **fields: Any) -> None:
        self.says(encode(fields))

    def close(self) -> None:
        self.warm.close()
        self.guest.close()
        os.close(self.pidfd)


@pytest.fixture
def waiting() -> Iterator[Waiting]:
    made = Waiting()
    yield made
    made.close()


def test_the_worker_reads_all_that_was_looked_at(waiting: Waiting) -> None:
    waiting.frame(type="log", stream="stdout", text="set up\n")
    assert waiting.warm.check() is None
    assert not waiting.warm.ready
    half = encode(READY)
    waiting.says(half[:7])
    waiting.warm.look()
    assert not waiting.warm.ready
    waiting.says(half[7:])
    assert waiting.warm.check() is None
    assert waiting.warm.ready
    assert waiting.warm.memory == 5 << 20
    channel = GuestChannel(waiting.warm.release("w1", Limits()), Limits())
    assert channel.receive(5) == {"type": "log", "stream": "stdout", "text": "set up\n"}
    assert channel.receive(5) == READY
    assert channel.receive(0.01) is None
    assert waiting.owner == "w1"


@pytest.mark.parametrize(
    ("tell", "why"),
    [
        (lambda w: w.frame(type="error", reason="plugin_failed", message="no luck", traceback=""), "no luck"),
        (lambda w: w.says(f"\n{EXIT_LINE}3\n".encode(), 2), "its process ended (exit code 3)"),
        (lambda w: w.says(b"\xff" * 64), "the guest broke the protocol"),
        (lambda w: w.frame(type="completed"), "unknown type"),
        (lambda w: w.guest.close(), "its channel ended"),
        (lambda w: setattr(w, "dead", True), "it died"),
    ],
)
def test_what_makes_it_unfit(waiting: Waiting, tell: Any, why: str) -> None:
    tell(waiting)
    assert why in (waiting.warm.check() or "")
    assert why in (waiting.warm.check() or ""), "for good"


def test_an_exit_by_lack_of_memory_is_called_that(waiting: Waiting) -> None:
    waiting.group.counters["oom_kills"] = 1
    waiting.says(f"\n{EXIT_LINE}-9\n".encode(), 2)
    assert waiting.warm.check() == "it ran out of memory"


@pytest.mark.parametrize("counter", ["oom_kills", "pids_denied"])
def test_what_the_kernel_counted_before_the_job_is_not_blamed_on_it(waiting: Waiting, counter: str) -> None:
    waiting.says(encode(READY))
    assert waiting.warm.check() is None
    waiting.group.counters[counter] = 1
    assert waiting.warm.check() is not None


def test_it_may_not_say_more_than_the_channel_keeps(waiting: Waiting) -> None:
    for _ in range(40):
        waiting.frame(type="log", stream="stdout", text="x" * 4_096)
        if waiting.warm.check() is not None:
            break
    assert waiting.warm.failure == "it says more than can be kept until a job comes"


def test_it_has_to_keep_still(waiting: Waiting) -> None:
    assert waiting.warm.idles(10.0)
    waiting.group.counters["cpu_ms"] += 150
    assert waiting.warm.idles(11.0)
    waiting.group.counters["cpu_ms"] += 900
    assert not waiting.warm.idles(12.0)
    assert waiting.warm.failure == "it does not keep still after its setup"


def test_the_watch_tells_of_news_once_and_of_nobody_let_go(waiting: Waiting) -> None:
    watch = Watch()
    try:
        watch.add(waiting.warm)
        assert watch.wait(0) <= {waiting.warm}
        waiting.says(encode(READY))
        assert watch.wait(5) == {waiting.warm}
        waiting.warm.look()
        assert watch.wait(0) == set(), "what lies in the channel is no news"
        waiting.frame(type="log", stream="stdout", text="more")
        assert watch.wait(5) == {waiting.warm}
        watch.remove(waiting.warm)
        watch.remove(waiting.warm)
        waiting.guest.shutdown(socket.SHUT_WR)
        assert watch.wait(0) == set()
    finally:
        watch.close()


def test_the_watch_tells_of_the_end(waiting: Waiting) -> None:
    watch = Watch()
    try:
        watch.add(waiting.warm)
        waiting.guest.close()
        assert watch.wait(5) == {waiting.warm}
        assert waiting.warm.check() == "its channel ended"
    finally:
        watch.close()
