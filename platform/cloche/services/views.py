"""Rows as the answers of REST show them (DESIGN §11): snake_case, RFC 3339 times, reasons also in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cloche.clock import to_rfc3339
from cloche.domain import metering
from cloche.domain.callbacks import shown_url
from cloche.domain.queues import WAITING_TEXT, WaitingFor
from cloche.domain.states import REASON_TEXT, Reason
from cloche.services.masking import masked_error, masked_job


def job_view(row: Mapping[str, Any], username: str, tenant: str, *, opened: bool = False) -> dict[str, Any]:
    """A job. ``row`` holds the columns of table ``job``; ``opened``: what was sealed in it is in clear. It is left out otherwise."""
    sensitive = bool(row.get("sensitive"))
    masked = sensitive and not opened
    if masked:
        row = masked_job(row)
    return {
        "id": row["id"],
        "batch_id": row["batch_id"],
        "name": row["name"],
        "type": row["type"],
        "version": row["plugin_version"],
        "status": row["state"],
        "reason": row["reason"],
        "reason_text": reason_text(row),
        "sensitive": sensitive,
        "masked": masked,
        "payload": row["payload"],
        "priority": row["priority"],
        "queue": row["queue"],
        "waiting_for": row.get("waiting_for"),
        "labels": row["labels"],
        "inputs": row["inputs"],
        "outputs": row["outputs"],
        "limits": row["limits"],
        "retry": row["retry"],
        "callback": _callback(row["callback"]),
        "warnings": row.get("warnings") or [],
        "progress": row.get("progress"),
        "result": row.get("result"),
        "error": row.get("error"),
        "attempt": row["attempt"],
        "run": row["run"],
        "depends_on": row.get("depends_on") or [],
        "depends_on_condition": row.get("depends_on_condition"),
        "on_upstream_failure": row.get("on_upstream_failure"),
        "cancel_requested": row.get("cancel_requested_at") is not None,
        "submitted_by": username,
        "tenant": tenant,
        "plugin": {"version": row["plugin_version"], "digest": row["plugin_digest"], "image": row.get("image_digest")},
        "created_at": to_rfc3339(row["created_at"]),
        "started_at": to_rfc3339(row.get("started_at")),
        "finished_at": to_rfc3339(row.get("finished_at")),
        "schedule_at": to_rfc3339(row.get("scheduled_at")),
        "expires_at": to_rfc3339(row.get("expires_at")),
        "next_run_at": to_rfc3339(row["ready_at"]) if row["state"] == "scheduled" else None,
        "usage": metering.shown(row.get("usage")),
    }


def _callback(callback: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if callback is None else {"url": shown_url(callback["url"]), "events": callback["events"]}


def reason_text(row: Mapping[str, Any]) -> str:
    """One sentence for people: why the job is where it is, with the last error's message where there is one."""
    text = REASON_TEXT[Reason(row["reason"])]
    if waiting := row.get("waiting_for"):
        text = f"{text}; {WAITING_TEXT[WaitingFor(waiting)]}"
    error = row.get("error")
    if row["reason"] == Reason.UPSTREAM_FAILED and error:
        return f"{text}: {error['message']}"
    if row["state"] in ("failed", "scheduled", "pending") and error:
        cause = REASON_TEXT[Reason(error["reason"])]
        text = cause if row["reason"] == error["reason"] else f"{text}; last time {cause}"
        if error["message"] and error["message"] != cause:
            text += f": {error['message']}"
    return text


def attempt_view(row: Mapping[str, Any]) -> dict[str, Any]:
    """``error`` in clear, or without what is sealed."""
    finished = row["finished_at"]
    return {
        "number": row["number"],
        "run": row["run"],
        "worker": row["worker_id"],
        "phase": row["phase"],
        "outcome": row["outcome"],
        "reason": row["reason"],
        "error": masked_error(row["error"]),
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
