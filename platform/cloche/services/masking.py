"""What is shown of a sensitive job: to everybody that it has a payload, a result, an error; what they say on an explicit read alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cloche.domain.jobs import SEALED
from cloche.domain.states import REASON_TEXT, Reason
from cloche.errors import JobFailure
from cloche.redact import MASK
from cloche.services.sealing import JobSeal

# Of a failure's details: what the kernel counted, and how a process ended.
_NUMBERS = ("limit", "used", "exit_code", "signal")
# The words of these are the platform's about itself. sandboxd, which they come from, never sees a payload.
_OURS = frozenset({Reason.ENGINE_UNAVAILABLE, Reason.BUNDLE_UNAVAILABLE, Reason.KEY_UNAVAILABLE})


# --- from the worker to the database ---


def sealed_result(seal: JobSeal, result: Any) -> dict[str, str]:
    return {SEALED: seal.seal("result", result)}


def sealed_progress(seal: JobSeal, attempt: int, progress: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers stay, for the bar on the page; the message is sealed."""
    return {**progress, "message": None, SEALED: seal.seal(f"progress/{attempt}", progress.get("message"))}


def sealed_text(seal: JobSeal, attempt: int, seq: int, text: str) -> str:
    """One piece of log."""
    return seal.seal(f"log/{attempt}/{seq}", text)


def sealed_failure(seal: JobSeal | None, attempt: int, failure: JobFailure) -> JobFailure:
    """The failure as it may be stored, traced and logged: its reason and its numbers; its words sealed.

    ``seal`` None: there is none, because the job's key is not here; words that are not the platform's own are dropped.
    """
    reason = Reason(failure.reason)
    if reason in _OURS:
        return failure
    details: dict[str, object] = {name: failure.details[name] for name in _NUMBERS if name in failure.details}
    if seal is not None:
        said = {"message": failure.message, "details": failure.details}
        details[SEALED] = seal.seal(f"error/{attempt}", said)
    return type(failure)(reason, REASON_TEXT[reason], details)


# --- from the database to people ---


def masked_job(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row without what is sealed."""
    hidden = {"payload": None, "result": None}
    shown = {"progress": _without(row.get("progress")), "error": masked_error(row.get("error"))}
    return {**row, **hidden, **shown}


def opened_job(row: Mapping[str, Any], seal: JobSeal, payload: Mapping[str, Any]) -> dict[str, Any]:
    """The row in clear.

    Raises:
        PlatformFailure: something in it was changed (``key_unavailable``).
    """
    result, progress = row.get("result"), row.get("progress")
    if progress is not None and SEALED in progress:
        message = seal.open(f"progress/{row['attempt']}", progress[SEALED])
        progress = {**(_without(progress) or {}), "message": message}
    return {
        **row,
        "payload": dict(payload),
        "result": None if result is None else seal.open("result", result[SEALED]),
        "progress": progress,
        "error": opened_error(row.get("error"), seal),
    }


def masked_error(error: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if error is None else {**error, "details": _without(error["details"])}


def opened_error(error: Mapping[str, Any] | None, seal: JobSeal) -> dict[str, Any] | None:
    """
    Raises:
        PlatformFailure: it was changed (``key_unavailable``).
    """
    if error is None or SEALED not in error["details"]:
        return None if error is None else dict(error)
    said = seal.open(f"error/{error['attempt']}", error["details"][SEALED])
    return {**error, "message": said["message"], "details": said["details"]}


def masked_piece(piece: Mapping[str, Any]) -> dict[str, Any]:
    """A piece of log that says only that there is one."""
    return {**piece, "text": f"{MASK}\n"}


def opened_piece(piece: Mapping[str, Any], seal: JobSeal) -> dict[str, Any]:
    """
    Raises:
        PlatformFailure: it was changed (``key_unavailable``).
    """
    return {**piece, "text": seal.open(f"log/{piece['attempt']}/{piece['seq']}", piece["text"])}


def _without(value: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if value is None else {name: part for name, part in value.items() if name != SEALED}
