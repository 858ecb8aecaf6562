"""What must happen after a commit: ids pushed to Redis, events published.

Both are hints. The outbox row written with the change and the sweeper's rounds repeat the first; readers of the second reload on a gap.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cloche import logs
from cloche.domain.jobs import AGING_STEP_MS
from cloche.errors import Unavailable
from cloche.queueing.broker import Broker, Ready

_log = logs.get(__name__)


@dataclass
class Effects:
    """Collected inside a transaction, applied after it. Empty when the transaction did nothing."""

    ready: list[Ready] = field(default_factory=list)
    gone: list[tuple[str, str]] = field(default_factory=list)  # (queue, job id) no longer ready
    events: list[dict[str, Any]] = field(default_factory=list)

    def add(self, other: Effects) -> None:
        self.ready += other.ready
        self.gone += other.gone
        self.events += other.events


def ready(job_id: str, queue: str, ready_at: int, priority: int) -> Ready:
    """The queue entry of a job: ``ready_at`` in ms, ``priority`` 0–9 (9 first)."""
    return Ready(job_id, queue, ready_at - priority * AGING_STEP_MS)


def apply(broker: Broker, effects: Effects) -> None:
    """Tell Redis. Its absence is logged and waited out by the relay and the sweeper; it never fails the caller."""
    try:
        if effects.ready:
            broker.push(effects.ready)
        for queue, job_id in effects.gone:
            broker.remove(queue, [job_id])
        for event in effects.events:
            broker.publish(event)
    except Unavailable as error:
        _log.warning("queue index not told, the relay will", error=str(error), ready=len(effects.ready))
    except Exception:  # noqa: BLE001 - the change is committed: nothing that follows may turn its answer into an error
        _log.exception("queue index not told, the relay will", ready=len(effects.ready))
