"""How a job looks on a terminal: a table's row, one page of fields, a line of progress."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from cloche.cli import output

TERMINAL = frozenset({"completed", "failed", "canceled"})

COLUMNS: output.Columns = (
    ("ID", lambda job: job["id"]),
    ("STATUS", lambda job: job["status"]),
    ("TYPE", lambda job: job["type"]),
    ("VERSION", lambda job: (job.get("plugin") or {}).get("version")),
    ("NAME", lambda job: job.get("name")),
    ("ATTEMPT", lambda job: job.get("attempt")),
    ("CREATED", lambda job: job.get("created_at")),
)

ATTEMPT_COLUMNS: output.Columns = (
    ("NO.", lambda row: row["number"]),
    ("RUN", lambda row: row["run"]),
    ("OUTCOME", lambda row: row["outcome"] or row["phase"]),
    ("REASON", lambda row: row["reason"]),
    ("STARTED", lambda row: row["started_at"]),
    ("SECONDS", lambda row: None if row["duration_ms"] is None else f"{row['duration_ms'] / 1000:.3f}"),
    ("WORKER", lambda row: row["worker"]),
    ("ERROR", lambda row: (row["error"] or {}).get("message")),
)

TRACE_COLUMNS: output.Columns = (
    ("TIME", lambda row: row["timestamp"]),
    ("ATTEMPT", lambda row: row["attempt"]),
    ("EVENT", lambda row: row["event_type"]),
    ("DETAILS", lambda row: row["details"] or None),
)

CALLBACK_COLUMNS: output.Columns = (
    ("EVENT", lambda row: row["event"]),
    ("RECEIVER", lambda row: row["receiver"]),
    ("STATUS", lambda row: row["status"]),
    ("TRIES", lambda row: row["attempts"]),
    ("LAST", lambda row: row["last_attempt_at"]),
    ("OUTCOME", lambda row: row["last_error"] or row["last_outcome"]),
    ("NEXT", lambda row: row["next_try_at"]),
)


def outputs_columns() -> output.Columns:
    """Columns of a table of output files."""
    return (
        ("PATH", lambda row: row["path"]),
        ("SIZE", lambda row: output.size(row["size"])),
        ("SHA-256", lambda row: row["sha256"]),
        (
            "WHERE",
            lambda row: (
                row.get("destination") or (f"artifact:{row['artifact_id']}" if row.get("artifact_id") else None)
            ),
        ),
    )


def job_lines(job: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Label and value of every field worth a line."""
    plugin = job.get("plugin") or {}
    reason = job.get("reason_text") or job.get("reason")
    return [
        ("id", job["id"]),
        ("name", job.get("name")),
        ("type", f"{job['type']} {plugin.get('version') or ''}".strip()),
        ("digest", plugin.get("digest")),
        ("status", f"{job['status']}: {reason}" if reason else job["status"]),
        ("warning", "\n".join(job.get("warnings") or ())),
        ("attempt", _attempt(job)),
        ("waits until", job.get("next_run_at")),
        ("depends on", ", ".join(job.get("depends_on") or ())),
        ("expires", job.get("expires_at")),
        ("created", job.get("created_at")),
        ("started", job.get("started_at")),
        ("finished", job.get("finished_at")),
        ("callback", (job.get("callback") or {}).get("url")),
        ("error", _error(job.get("error"))),
        ("usage", ", ".join(f"{key} {value}" for key, value in (job.get("usage") or {}).items())),
        ("result", job.get("result")),
        ("sensitive", _sensitive(job)),
    ]


def _attempt(job: Mapping[str, Any]) -> str:
    number, run = job.get("attempt"), job.get("run") or 1
    if not number:
        return ""
    return str(number) if run == 1 else f"{number} (run {run})"


def _sensitive(job: Mapping[str, Any]) -> str | None:
    if not job.get("sensitive"):
        return None
    return (
        "what it holds is not shown; --reveal shows it" if job.get("masked") else "this was recorded in the audit trail"
    )


def _error(error: Any) -> Any:
    if isinstance(error, Mapping):
        return error.get("traceback") or error.get("message") or dict(error)
    return error


class Progress:
    """One line on the terminal that says how far a job is; nothing off a terminal. A context manager."""

    def __init__(self) -> None:
        self._status: Any = None
        # Short polls only while somebody is looking at the line.
        self.interval_s = 1.0 if sys.stderr.isatty() else None

    def __enter__(self) -> Progress:
        if self.interval_s is not None:
            from rich.console import Console

            self._status = Console(stderr=True).status("waiting")
            self._status.start()
        return self

    def update(self, job: Mapping[str, Any]) -> None:
        if self._status is None:
            return
        from rich.text import Text

        progress = job.get("progress") or {}
        words = [str(job["status"])]
        if progress.get("current") is not None:
            words.append(
                f"{progress['current']} of {progress['total']}" if progress.get("total") else str(progress["current"])
            )
        if progress.get("message"):
            words.append(str(progress["message"]))
        self._status.update(Text(output.one_line(" · ".join(words))))

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()
