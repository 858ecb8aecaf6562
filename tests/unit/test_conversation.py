"""Talking to a guest that reads nothing: neither a cancel nor the deadline waits for it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from cloche.domain.jobs import ClaimedJob, RetryPolicy
from cloche.domain.limits import Limits
from cloche.domain.states import Reason
from cloche.errors import PluginFailure
from cloche.isolation import channel as module
from cloche.isolation.channel import GuestChannel
from cloche.worker.conversation import Conversation, Interrupted
from cloche.worker.holds import Hold


class NoJournal:
    def tick(self) -> None:
        return


class Talk:
    """A conversation with nobody on the other end of the line, and more to say than the line holds."""

    def __init__(self, time_ms: int) -> None:
        limits = Limits(time_ms=time_ms)
        job = ClaimedJob(
            id="job", tenant_id="t", type="p", plugin_version="1", plugin_digest="b" * 64, payload={"big": "x" * (4 << 20)}, inputs=(),
            outputs=(), limits=limits.to_dict(), retry=RetryPolicy(), attempt=1, lease_until=0, submitted_by="u",
        )  # fmt: skip
        host, self.stream = socket.socketpair()
        self.channel = GuestChannel(host, limits)
        self.hold = Hold(job)
        journal: Any = NoJournal()
        self.talk = Conversation(self.channel, self.hold, journal)

    def close(self) -> None:
        self.channel.close()
        self.stream.close()


@pytest.fixture
def made() -> Iterator[list[Talk]]:
    talks: list[Talk] = []
    yield talks
    for talk in talks:
        talk.close()


@pytest.mark.parametrize("event", ["cancel", "lost", "handed_back"])
def test_an_interrupt_ends_the_handing_over(made: list[Talk], monkeypatch: pytest.MonkeyPatch, event: str) -> None:
    monkeypatch.setattr(module, "_SEND_SECONDS", 1e6)  # nothing else would end it
    talk = Talk(time_ms=24 * 3_600_000)
    made.append(talk)
    ask = talk.talk._interrupted

    def asked() -> bool:
        getattr(talk.hold, event).set()
        return ask()

    monkeypatch.setattr(talk.talk, "_interrupted", asked)
    with pytest.raises(Interrupted):
        talk.talk.run([])


def test_the_deadline_ends_the_handing_over(made: list[Talk], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SEND_SECONDS", 1e6)
    talk = Talk(time_ms=100)
    made.append(talk)
    with pytest.raises(PluginFailure) as caught:
        talk.talk.run([])
    assert caught.value.reason == Reason.TIMED_OUT


def test_what_is_kept_for_a_moment_is_looked_after_while_a_guest_does_not_read(made: list[Talk]) -> None:
    talk = Talk(time_ms=24 * 3_600_000)
    made.append(talk)
    talk.talk._tick = talk.hold.lost.set
    with pytest.raises(Interrupted):
        talk.talk.run([])
