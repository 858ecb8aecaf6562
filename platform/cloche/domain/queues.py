"""Queues: their names, their bounds, and why a job waits in one."""

from __future__ import annotations

import re
from enum import StrEnum

NAME_PATTERN = r"^[a-z][a-z0-9_-]{0,63}$"
NAME_WORDS = "a queue's name is a small letter, then up to 63 of small letters, digits, '_' and '-'"
MAX_QUEUES = 256  # of a platform
MAX_CONCURRENCY = 100_000
MAX_WEIGHT = 100
MAX_SHARES = 1_000  # tenants named in one change

_NAME = re.compile(NAME_PATTERN[1:-1])


class Scope(StrEnum):
    """Whom a change of a queue concerns."""

    TENANT = "tenant"  # the jobs of one's own tenant
    PLATFORM = "platform"  # everybody's


class WaitingFor(StrEnum):
    """What a pending job waits for, beside its turn."""

    QUEUE_PAUSED = "queue_paused"
    SHARE_PAUSED = "share_paused"
    QUEUE_FULL = "queue_full"
    NO_WORKER = "no_worker"


WAITING_TEXT: dict[WaitingFor, str] = {
    WaitingFor.QUEUE_PAUSED: "its queue is paused",
    WaitingFor.SHARE_PAUSED: "its queue is paused for its tenant",
    WaitingFor.QUEUE_FULL: "its queue runs as many jobs as it may",
    WaitingFor.NO_WORKER: "no worker takes jobs from its queue now",
}


def is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None
