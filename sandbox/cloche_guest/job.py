"""The job, as a plugin sees it."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from cloche_guest.job_secrets import Secrets


class Reporter(Protocol):
    """Where a job's progress and log lines go."""

    def progress(self, current: float, total: float | None, message: str | None) -> None: ...

    def log(self, text: str) -> None: ...


class Outside(Protocol):
    """The way out of a job that has egress."""

    def connect(self, host: str, port: int, timeout: float | None = None) -> socket.socket: ...

    def forward(self, host: str, port: int) -> tuple[str, int]: ...


class Job:
    """One attempt of one job.

    ``payload``: its parameters, already valid against the plugin's schema. ``inputs``: files to read, in the order the job named them.
    ``out``: the folder to write results to; regular files only, sub-folders are kept. ``secrets``: those that ``plugin.toml`` names, by name;
    the same are files below ``/job/secrets``.
    """

    def __init__(
        self,
        *,
        id: str,
        attempt: int,
        payload: dict[str, Any],
        inputs: Sequence[Path],
        out: Path,
        reporter: Reporter,
        outside: Outside | None = None,
        secrets: Mapping[str, str] | None = None,
    ) -> None:
        self.id = id
        self.attempt = attempt
        self.payload = payload
        self.inputs = list(inputs)
        self.out = out
        self.secrets = Secrets(secrets or {})
        self._reporter = reporter
        self._outside = outside

    def progress(self, current: float, total: float | None = None, message: str | None = None) -> None:
        """Say how far the job is. As often as you like: at most ten a second are sent, and always the last."""
        self._reporter.progress(current, total, message)

    def log(self, message: str) -> None:
        """Write one line to the job's log. ``print`` does the same."""
        self._reporter.log(f"{message}\n")

    def connect(self, host: str, port: int, timeout: float | None = None) -> socket.socket:
        """A connected TCP socket to a host that this job may reach.

        Raises:
            PermissionError: the job may not reach it, or has no network at all; the message says which.
            OSError: it does not answer.
        """
        return self._way_out().connect(host, port, timeout)

    def forward(self, host: str, port: int) -> tuple[str, int]:
        """``("127.0.0.1", port)``: an address whose every connection leads to that host, for programs that know no proxy. Who may not reach it
        finds the connection closed.

        Raises:
            PermissionError: the job has no network at all.
        """
        return self._way_out().forward(host, port)

    def _way_out(self) -> Outside:
        if self._outside is None:
            raise PermissionError("this job has no network: its plugin.toml declares no [network] allow")
        return self._outside

    def __repr__(self) -> str:
        return f"Job(id={self.id!r}, attempt={self.attempt}, inputs={len(self.inputs)})"
