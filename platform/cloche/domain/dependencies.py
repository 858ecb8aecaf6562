"""When a job that depends on others may run, and in which order jobs that name each other are accepted. Pure."""

from __future__ import annotations

import heapq
import re
from collections.abc import Sequence
from enum import StrEnum

MAX_UPSTREAMS = 100  # of one job
MAX_BATCH_UPSTREAMS = 10_000  # of all jobs of one batch together: each is looked up and stored in the one transaction
REF = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""What a job of a batch is called in it, so that others of the batch can depend on it; the whole of it."""


class Condition(StrEnum):
    """``depends_on_condition``: when the wait is over."""

    ALL_COMPLETED = "all_completed"  # or one of them can no longer complete
    ALL_RESOLVED = "all_resolved"  # each has ended, however


class OnFailure(StrEnum):
    """``on_upstream_failure``: what an upstream that failed or was canceled means for the job."""

    CANCEL = "cancel"
    CONTINUE = "continue"


class Verdict(StrEnum):
    WAIT = "wait"
    RUN = "run"
    CANCEL = "cancel"


DEFAULT_ON_FAILURE = {Condition.ALL_COMPLETED: OnFailure.CANCEL, Condition.ALL_RESOLVED: OnFailure.CONTINUE}


def decide(condition: Condition, on_failure: OnFailure, *, waiting: int, failed: int) -> Verdict:
    """What becomes of a job of whose upstreams ``waiting`` have not ended and ``failed`` ended without completing."""
    if failed and on_failure is OnFailure.CANCEL and (condition is Condition.ALL_COMPLETED or not waiting):
        return Verdict.CANCEL
    return Verdict.WAIT if waiting else Verdict.RUN


def ordered(upstreams: Sequence[Sequence[int]]) -> list[int]:
    """The positions of jobs such that each comes after those it waits for, otherwise as they are. Jobs that wait in a circle, and
    those that wait for them, are left out. ``upstreams``: for each job the positions of others."""
    waiting = [len(set(positions)) for positions in upstreams]
    downstream: list[list[int]] = [[] for _ in upstreams]
    for position, positions in enumerate(upstreams):
        for one in set(positions):
            downstream[one].append(position)
    free = [position for position, count in enumerate(waiting) if count == 0]  # sorted, and so a heap
    order: list[int] = []
    while free:
        one = heapq.heappop(free)
        order.append(one)
        for position in downstream[one]:
            waiting[position] -= 1
            if waiting[position] == 0:
                heapq.heappush(free, position)
    return order


def circle(upstreams: Sequence[Sequence[int]]) -> list[int]:
    """Positions of jobs of which each waits for the next, and the last for the first; empty when no jobs do. See :func:`ordered`."""
    stuck = set(range(len(upstreams))) - set(ordered(upstreams))
    if not stuck:
        return []
    seen: dict[int, int] = {}
    path: list[int] = []
    one = min(stuck)
    while one not in seen:  # a job that is left out waits for one that is
        seen[one] = len(path)
        path.append(one)
        one = next(upstream for upstream in upstreams[one] if upstream in stuck)
    return path[seen[one] :]
