"""Kinds of jobs, and what each asks for. What a kind does beside its one job is the load's business."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.system import BOX, CELL

_RETRY = {"max_retries": 1, "initial_delay": "50ms", "max_delay": "200ms"}
# Kind, how many of a hundred, what its end has to be.
KINDS = (
    ("quick", 34, "completed"),
    ("box", 8, "completed"),
    ("sleep", 13, "completed"),
    ("files", 15, "completed"),
    ("fail", 9, "failed"),
    ("cancel", 8, "canceled"),
    ("batch", 3, "completed"),  # some at once
    ("after", 4, "completed"),  # waits for another one
    ("orphan", 3, "canceled"),  # waits for one that fails
    ("again", 3, "failed"),  # fails, and fails again when it is retried by hand
)
EXPECTED = {kind: end for kind, _, end in KINDS} | {
    "oom": "failed",
    "long": "completed",
    "poison": "failed",
    "told": "completed",
    "called-off": "canceled",  # a batch that is canceled as a whole
    "crowd": "canceled",  # very many that wait for one that is canceled
}
_TOLD = 0.3  # of all jobs ask for a callback


@dataclass
class Asked:
    """One accepted job, as its client knows it."""

    n: int
    kind: str
    body: dict[str, Any]
    job_id: str = ""
    inputs: tuple[str, ...] = ()  # SHA-256 of each input

    @property
    def expected(self) -> str:
        return EXPECTED[self.kind]


@dataclass
class Inputs:
    """Artifacts that jobs may read."""

    references: list[dict[str, str]] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)


def make(n: int, kind: str, rng: random.Random, inputs: Inputs, receiver: str | None) -> Asked:
    """The body of a job of that kind. ``receiver``: where callbacks go; None: nobody asks for one."""
    body: dict[str, Any] = {"type": rng.choice((CELL, BOX)), "payload": {"n": n}, "retry": {"max_retries": 0}}
    asked = Asked(n, kind, body)
    told = _TOLD / 10 if kind == "crowd" else _TOLD
    if (rng.random() < told or kind in ("told", "again")) and receiver is not None:
        body["callback"] = {"url": receiver}
    if kind in ("quick", "box"):
        body["type"] = CELL if kind == "quick" else BOX
    elif kind == "sleep":
        body["payload"]["seconds"] = round(rng.uniform(1, 3), 2)
        body["priority"] = 9  # what is interrupted runs before what waits, so that its return can be measured
    elif kind in ("long", "poison"):
        body["payload"]["seconds"] = 6 if kind == "long" else 60
        body["priority"] = 9
    elif kind == "files":
        body["inputs"] = inputs.references
        asked.inputs = tuple(inputs.digests)
    elif kind in ("fail", "again"):
        body["payload"]["fail"] = True
        body["retry"] = _RETRY
    elif kind in ("cancel", "called-off"):
        body["payload"]["seconds"] = 60
    elif kind == "oom":
        body["payload"]["megabytes"] = 300
    return asked
