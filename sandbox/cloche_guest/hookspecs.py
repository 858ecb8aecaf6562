"""The hooks a plugin may implement. pluggy refuses a misspelt name and a wrong argument; the loader refuses a missing ``run``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from cloche_guest.job import Job

PROJECT = "cloche"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def setup() -> None:
    """Once per sandbox, before the job is handed over: load models, compile patterns. No parameters, no secrets, no network; inputs may be there."""


@hookspec(firstresult=True)
def run(job: Job) -> Any:
    """Do one job and return its result: plain JSON, None included. Exactly one implementation."""


@hookspec
def on_cancel(job: Job) -> None:
    """The job is canceled or past its deadline. Called in a thread of its own beside ``run``; soon after, everything is killed."""
