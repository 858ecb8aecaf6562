"""Anonymous refusals are counted, one event per address and minute; nobody fills the audit trail."""

from __future__ import annotations

from cloche.errors import Unavailable
from cloche.web import denials
from cloche.web.denials import OTHERS, Denials


class Recorder:
    def __init__(self):
        self.seen: list[tuple[str, int]] = []
        self.down = False

    def record_denied(self, actor, target, reason):
        raise AssertionError("nobody is signed in here")

    def record_anonymous(self, address, count):
        if self.down:
            raise Unavailable("the database does not answer")
        self.seen.append((address, count))


class Clock:
    now = 60_000 * 100

    def __call__(self):
        return self.now


def test_one_event_per_address_and_minute():
    recorder, clock = Recorder(), Clock()
    counted = Denials(recorder, clock)
    for _ in range(500):
        counted.count("192.0.2.1")
    counted.count("192.0.2.2")
    counted.flush()
    assert recorder.seen == []  # the minute is not over
    clock.now += 60_000
    counted.count("192.0.2.1")
    counted.flush()
    assert sorted(recorder.seen) == [("192.0.2.1", 500), ("192.0.2.2", 1)]
    counted.close()
    assert recorder.seen[-1] == ("192.0.2.1", 1)
    counted.close()
    assert len(recorder.seen) == 3


def test_what_cannot_be_written_is_kept():
    recorder, clock = Recorder(), Clock()
    counted = Denials(recorder, clock)
    counted.count("192.0.2.1")
    recorder.down = True
    counted.flush(everything=True)
    recorder.down = False
    counted.count("192.0.2.1")
    counted.close()
    assert recorder.seen == [("192.0.2.1", 2)]


def test_memory_stays_flat(monkeypatch):
    monkeypatch.setattr(denials, "_MAX_ADDRESSES", 3)
    recorder = Recorder()
    counted = Denials(recorder, Clock())
    for n in range(10):
        counted.count(f"192.0.2.{n}")
    counted.close()
    assert len(recorder.seen) == 4
    assert (OTHERS, 7) in recorder.seen


def test_thousands_of_addresses_are_a_thousand_events_at_most():
    recorder, clock = Recorder(), Clock()
    counted = Denials(recorder, clock)
    for n in range(5_000):
        counted.count(f"198.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}")
        counted.count(f"2001:db8:0:{n:x}::1")
    clock.now += 60_000
    counted.flush()
    assert len(recorder.seen) == 1_001
    assert sum(count for _, count in recorder.seen) == 10_000
    counted.close()


def test_one_network_of_ipv6_is_one_address():
    recorder = Recorder()
    counted = Denials(recorder, Clock())
    for n in range(3_000):
        counted.count(f"2001:db8::{n:x}")
    counted.count("::ffff:192.0.2.1")
    counted.count("not an address: at all")
    counted.close()
    assert ("2001:db8::/64", 3_000) in recorder.seen
    assert len(recorder.seen) == 3
