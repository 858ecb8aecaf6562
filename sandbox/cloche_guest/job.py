"""The job, as a plugin sees it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol


class Reporter(Protocol):
    """Where a job's progress and log lines go."""

    def progress(self, current: float, total: float | None, message: str | None) -> None: ...

    def log(self, text: str) -> None: ...


class Job:
    """One attempt of one job.

    ``payload``: its parameters, already valid against the plugin's schema. ``inputs``: files to read, in the order the job named them.
    ``out``: the folder to write results to; regular files only, sub-folders are kept.
    """

    def __init__(
        self, *, id: str, attempt: int, payload: dict[str, Any], inputs: Sequence[Path], out: Path, reporter: Reporter
    ) -> None:
        self.id = id
        self.attempt = attempt
        self.payload = payload
        self.inputs = list(inputs)
        self.out = out
        self._reporter = reporter

    def progress(self, current: float, total: float | None = None, message: str | None = None) -> None:
        """Say how far the job is. As often as you like: at most ten a second are sent, and always the last."""
        self._reporter.progress(current, total, message)

    def log(self, message: str) -> None:
        """Write one line to the job's log. ``print`` does the same."""
        self._reporter.log(f"{message}\n")

    def __repr__(self) -> str:
        return f"Job(id={self.id!r}, attempt={self.attempt}, inputs={len(self.inputs)})"
