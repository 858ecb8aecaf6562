"""What must happen after a commit: ids pushed to Redis, events published.

Both are hints. The outbox row written with the change and the sweeper's rounds repeat the first; readers of the second reload on a gap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cloche import logs
from cloche.domain.jobs import AGING_STEP_MS
from cloche.errors import Unavailable
from cloche.queueing.broker import Broker, Ready, Taken

_log = logs.get(__name__)


@dataclass
class Effects:
    """Collected inside a transaction, applied after it. Empty when the transaction did nothing."""

    ready: list[Ready] = field(default_factory=list)
    gone: list[tuple[str, str, str]] = field(default_factory=list)  # (queue, tenant, job id) no longer ready
    freed: list[tuple[str, str]] = field(default_factory=list)  # (queue, job id) no longer in flight
    returned: list[Taken] = field(default_factory=list)  # taken, and not claimed
    events: list[dict[str, Any]] = field(default_factory=list)

    def add(self, other: Effects) -> None:
        self.ready += other.ready
        self.gone += other.gone
        self.freed += other.freed
        self.returned += other.returned
        self.events += other.events


def ready(job_id: str, queue: str, tenant_id: str, ready_at: int, priority: int) -> Ready:
    """The queue entry of a job: ``ready_at`` in ms, ``priority`` 0–9 (9 first)."""
    return Ready(job_id, queue, tenant_id, ready_at - priority * AGING_STEP_MS)


def queue_entry(row: Mapping[str, Any]) -> Ready:
    """The same from columns of ``job``."""
    return ready(row["id"], row["queue"], row["tenant_id"], row["ready_at"], row["priority"])


def apply(broker: Broker, effects: Effects) -> None:
    """Tell Redis. Its absence is logged and waited out by the relay and the sweeper; it never fails the caller."""
    try:
        with broker.together() as said:
            if (
                effects.freed
            ):  # first: one that is released and ready again is in flight no more before somebody takes it
                said.free(effects.freed)
            if effects.returned:
                said.give_back(effects.returned)
            if effects.ready:
                said.push(effects.ready)
            for queue, tenant, job_id in effects.gone:
                said.remove(queue, tenant, [job_id])
            for event in effects.events:
                said.publish(event)
    except Unavailable as error:
        _log.warning("queue index not told, the relay will", error=str(error), ready=len(effects.ready))
    except Exception:  # noqa: BLE001 - the change is committed: nothing that follows may turn its answer into an error
        _log.exception("queue index not told, the relay will", ready=len(effects.ready))
