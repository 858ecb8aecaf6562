"""Exit codes of every command. `docs/cli.md` lists them; scripts rely on them."""

from __future__ import annotations

OK = 0
FAILED = 1
USAGE = 2  # click's own code for a wrong command line
INTERRUPTED = 3  # a wait timed out, or the job was canceled
NOT_ALLOWED = 4
NOT_FOUND = 5

_BY_STATUS = {401: NOT_ALLOWED, 403: NOT_ALLOWED, 404: NOT_FOUND}
_BY_STATE = {"completed": OK, "failed": FAILED, "canceled": INTERRUPTED}


def of_http(status: int) -> int:
    """The exit code for an answer with this HTTP error status."""
    return _BY_STATUS.get(status, FAILED)


def of_job(state: str) -> int:
    """A job's own verdict as an exit code; a job that has none yet counts as a wait that timed out."""
    return _BY_STATE.get(state, INTERRUPTED)
