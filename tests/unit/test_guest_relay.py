"""The guest's relay of what a plugin reports."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from cloche_guest.link import Link
from cloche_guest.protocol import FrameReader
from cloche_guest.relay import Relay
from tests.support.stores import until


class Reporting:
    """A relay, not started, and the frames that it sends. Its thread has no end, so its descriptors stay open."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair()
        self._ours.setblocking(False)
        pipes = [os.pipe() for _ in range(2)]
        for reader, _ in pipes:
            os.set_blocking(reader, False)
        channel = theirs.detach()
        self.relay = Relay(Link(channel, channel), pipes[0][0], pipes[1][0])
        self._frames = FrameReader()
        self.seen: list[float] = []

    def close(self) -> None:
        self._ours.close()

    def look(self) -> list[float]:
        """``current`` of every report so far."""
        try:
            while data := self._ours.recv(65_536):
                self._frames.feed(data)
        except BlockingIOError:
            pass
        while (frame := self._frames.next()) is not None:
            self.seen.append(frame["current"])
        return self.seen


@pytest.fixture
def reporting() -> Iterator[Reporting]:
    made = Reporting()
    yield made
    made.close()


def test_a_flood_of_reports_wakes_the_relay_once(reporting: Reporting) -> None:
    for number in range(1, 1_001):
        reporting.relay._last_progress = float("inf")  # none may be sent yet, however slow this machine is
        reporting.relay.progress(number, None, None)
    assert len(os.read(reporting.relay._wake_reader, 4_096)) == 1
    assert reporting.look() == []


def test_the_last_of_a_flood_arrives_by_itself(reporting: Reporting) -> None:
    reporting.relay.start()
    for number in range(1, 20_001):
        reporting.relay.progress(number, None, None)
    until(lambda: reporting.look()[-1:] == [20_000], 30, "the last report arrives")
    assert reporting.seen == sorted(set(reporting.seen))
    reporting.relay.progress(20_001, None, None)  # after a rest the relay is woken again
    until(lambda: reporting.look()[-1:] == [20_001], 30, "the next one arrives")
