"""A sensitive job in its worker's hands: opened for one attempt, and never told to the log."""

from __future__ import annotations

import sys
import traceback
from dataclasses import replace

from cloche import logs
from cloche.domain.jobs import ClaimedJob
from cloche.domain.states import Reason
from cloche.errors import PlatformFailure
from cloche.services.sealing import JobSeal, JobVault

_log = logs.get("cloche.worker.execute")


def opened(job: ClaimedJob, vault: JobVault | None) -> tuple[ClaimedJob, JobSeal | None]:
    """The job with its payload in clear, and what seals all that its attempt writes; None, and the job as it is, where it is not sensitive.

    Raises:
        PlatformFailure: ``key_unavailable``.
    """
    if not job.sensitive:
        return job, None
    if vault is None:
        raise PlatformFailure(Reason.KEY_UNAVAILABLE, "this worker has no keys of sensitive jobs")
    seal, payload = vault.seal_of(job.tenant_id, job.id, job.payload)
    return replace(job, payload=payload), seal


def note_unexpected(job: ClaimedJob) -> None:
    """Log the exception that is being handled. Its words may quote what a sensitive job holds: of that one its kind and place alone."""
    words, where = "the attempt ended in an unexpected way", {"job_id": job.id, "attempt": job.attempt}
    if not job.sensitive:
        _log.exception(words, **where)
        return
    kind, _, trace = sys.exc_info()
    places = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(trace)]
    _log.error(words, kind=None if kind is None else kind.__name__, places=places, **where)
