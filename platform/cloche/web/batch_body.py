"""The body of a batch: as many jobs as fit, each read as if it had come alone, with faults told up to a bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, ValidationError

from cloche.errors import Problem
from cloche.services.batch_refs import MAX_PROBLEMS
from cloche.web.bodies import problems_of, refusal
from cloche.web.models import BatchJob, Text200
from cloche.web.routing import Body

MAX_JOBS = 10_000
_MAX_PARTS = 5_000  # of one job outside its payload; the most that its lists and labels may have is 4,000


@dataclass(frozen=True)
class Batch:
    """A batch as its handler gets it. ``jobs``: each as :class:`BatchJob` holds it."""

    name: str | None
    jobs: list[dict[str, Any]]


class _Head(Body):
    name: Text200 | None = None


class NewBatch(Body):
    name: Text200 | None = None
    jobs: Annotated[list[BatchJob], Field(min_length=1, max_length=MAX_JOBS)]

    @classmethod
    def read(cls, value: Any) -> Batch:
        """Jobs are read one by one and faults are told up to :data:`MAX_PROBLEMS`: all of a bad batch at once would be far larger than it."""
        jobs = value.get("jobs") if isinstance(value, dict) else None
        if not isinstance(jobs, list) or not jobs:
            cls.model_validate(value)  # says what is wrong with it
            raise AssertionError("a batch without jobs is refused")
        if len(jobs) > MAX_JOBS:
            raise refusal([Problem("/jobs", f"has {len(jobs)} jobs; a batch has at most {MAX_JOBS}")])
        head = _Head.model_validate({key: part for key, part in value.items() if key != "jobs"})
        problems: list[Problem] = []
        read: list[dict[str, Any]] = []
        for number, job in enumerate(jobs):
            at = f"/jobs/{number}"
            if _too_many_parts(job):
                problems.append(Problem(at, "has more parts than a job can have"))
                continue
            try:
                read.append(BatchJob.model_validate(job).model_dump(by_alias=True, exclude_unset=True))
            except ValidationError as error:
                problems += problems_of(error, at)
                if len(problems) >= MAX_PROBLEMS:
                    break
        if problems:
            raise refusal(problems[:MAX_PROBLEMS])
        return Batch(head.name, read)


def _too_many_parts(job: Any) -> bool:
    """Whether describing all that may be wrong with it would take much memory. A payload is one part to the model."""
    if not isinstance(job, dict):
        return False
    left = _MAX_PARTS
    pending: list[Any] = [job]
    while pending and left >= 0:
        item = pending.pop()
        left -= len(item)
        inner = [part for key, part in item.items() if key != "payload"] if isinstance(item, dict) else item
        pending += [part for part in inner if isinstance(part, (dict, list))] if left >= 0 else []
    return left < 0
