"""Rows as the answers of REST show them (DESIGN §11): snake_case, RFC 3339 times, reasons also in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cloche.clock import to_rfc3339
from cloche.domain.states import REASON_TEXT, Reason


def job_view(row: Mapping[str, Any], username: str, tenant: str) -> dict[str, Any]:
    """A job. ``row`` holds the columns of table ``job``."""
    return {
        "id": row["id"],
        "name": row["name"],
        "type": row["type"],
        "version": row["plugin_version"],
        "status": row["state"],
        "reason": row["reason"],
        "reason_text": reason_text(row),
        "payload": row["payload"],
        "priority": row["priority"],
        "queue": row["queue"],
        "labels": row["labels"],
        "inputs": row["inputs"],
        "outputs": row["outputs"],
        "limits": row["limits"],
        "retry": row["retry"],
        "progress": row.get("progress"),
        "result": row.get("result"),
        "error": row.get("error"),
        "attempt": row["attempt"],
        "cancel_requested": row.get("cancel_requested_at") is not None,
        "submitted_by": username,
        "tenant": tenant,
        "plugin": {"version": row["plugin_version"], "digest": row["plugin_digest"], "image": row.get("image_digest")},
        "created_at": to_rfc3339(row["created_at"]),
        "started_at": to_rfc3339(row.get("started_at")),
        "finished_at": to_rfc3339(row.get("finished_at")),
        "next_run_at": to_rfc3339(row["ready_at"]) if row["state"] == "scheduled" else None,
        "usage": row.get("usage"),
    }


def reason_text(row: Mapping[str, Any]) -> str:
    """One sentence for people: why the job is where it is, with the last error's message where there is one."""
    text = REASON_TEXT[Reason(row["reason"])]
    error = row.get("error")
    if row["state"] in ("failed", "scheduled", "pending") and error:
        cause = REASON_TEXT[Reason(error["reason"])]
        text = cause if row["state"] == "failed" else f"{text}; last time {cause}"
        if error["message"] and error["message"] != cause:
            text += f": {error['message']}"
    return text


def attempt_view(row: Mapping[str, Any]) -> dict[str, Any]:
    finished = row["finished_at"]
    return {
        "number": row["number"],
        "worker": row["worker_id"],
        "phase": row["phase"],
        "outcome": row["outcome"],
        "reason": row["reason"],
        "error": row["error"],
        "usage": row["usage"],
        "started_at": to_rfc3339(row["started_at"]),
        "finished_at": to_rfc3339(finished),
        "duration_ms": finished - row["started_at"] if finished is not None else None,
    }


def trace_view(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": row["id"],
        "job_id": row["job_id"],
        "event_type": row["event_type"],
        "timestamp": to_rfc3339(row["at"]),
        "attempt": row["attempt"],
        "details": row["details"],
    }
