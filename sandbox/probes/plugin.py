"""Entry of the hostile plugin: ``payload.act`` names what to do."""

from __future__ import annotations

import os
from typing import Any

from cloche_guest import Job, hookimpl

from . import (  # noqa: F401 - they register
    calls,
    cells,
    egress,
    exhaust,
    files,
    frames,
    identity,
    leftovers,
    network,
    operations,
    outputs,
    processes,
)
from .base import ACTS, WALLS, act, apart


@act
def walls(job: Job) -> Any:
    """Every probe that only reaches out, one after the other, each in a child."""
    return {
        name: apart(WALLS[name], job) if name in WALLS else {"raised": "no such probe"}
        for name in job.payload["probes"]
    }


@hookimpl
def setup() -> None:
    egress.BEFORE["setup"] = os.listdir(egress.FOLDER)


@hookimpl
def run(job: Job) -> Any:
    return ACTS[job.payload["act"]](job)
