"""Queues of tests: rules that let everything through, and ids as they are taken."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cloche.domain.jobs import QUEUES
from cloche.queueing.broker import Broker, Ready, Rules


def open_rules(*names: str) -> list[Rules]:
    """Rules of queues without pause or limit."""
    return [Rules(name, 1) for name in names or QUEUES]


def make_whole(broker: Broker, items: Iterable[Ready] = (), queues: Sequence[str] = QUEUES) -> None:
    broker.rebuild(items, open_rules(*queues))


def take(broker: Broker, queue: str = "default", count: int = 1) -> list[str]:
    """The ids taken from one queue."""
    return [one.job_id for one in broker.take([queue], count)]
