"""Entry of the hostile plugin: ``payload.act`` names what to do."""

from __future__ import annotations

from typing import Any

from cloche_guest import Job, hookimpl

from . import calls, cells, exhaust, files, frames, identity, leftovers, network, outputs, processes  # noqa: F401 - they register
from .base import ACTS, WALLS, act, apart


@act
def walls(job: Job) -> Any:
    """Every probe that only reaches out, one after the other, each in a child."""
    return {
        name: apart(WALLS[name], job) if name in WALLS else {"raised": "no such probe"}
        for name in job.payload["probes"]
    }


@hookimpl
def run(job: Job) -> Any:
    return ACTS[job.payload["act"]](job)
