"""A job's trace as bars on one time axis. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cloche.clock import from_rfc3339
from cloche.web.dashboard.show import duration, reason_text, size, tail, trace_word

WIDTH = 1000  # units of the drawing; the page scales it
_LEAST = 4  # units, so that a short step can still be seen
_STEPS = {
    "claimed": ("Waited in its queue", "wait"),
    "sandbox_started": ("Sandbox readied", "start"),
    "staged_in": ("Inputs brought in", "stage"),
    "started": ("Plugin loaded", "start"),
    "finished": ("Plugin ran", "run"),
    "staged_out": ("Outputs taken out", "stage"),
    "due": ("Waited for the next attempt", "wait"),
    "dependencies_met": ("Waited for other jobs", "wait"),
}
_POINTS = {"failed": "bad", "attempt_abandoned": "bad", "retry_scheduled": "bad", "completed": "good"}


@dataclass(frozen=True)
class Bar:
    """One line of the waterfall: ``x`` and ``width`` in units of :data:`WIDTH`; times in ms from the first event.

    ``length_ms`` is None for what has no length: a moment.
    """

    label: str
    kind: str
    at: str
    attempt: int
    start_ms: int
    length_ms: int | None
    x: float
    width: float
    note: str


def bars(events: Sequence[Mapping[str, Any]], now_ms: int | None = None) -> list[Bar]:
    """Each event as a step since the one before, or as a moment.

    Args:
        now_ms: the time by our clock while the job runs: its plugin gets a bar that reaches to it.
    """
    if not events:
        return []
    shown = list(events)
    times = [from_rfc3339(event["timestamp"]) for event in shown]
    if now_ms is not None and shown[-1]["event_type"] == "started":
        shown.append({**shown[-1], "event_type": "finished", "details": {"running": True}})
        times.append(max(now_ms, times[-1]))
    origin = min(times)
    whole = max(max(times) - origin, 1)
    found: list[Bar] = []
    reached = 0  # where the step before ended, which may be before its event was written
    for event, at in zip(shown, times, strict=True):
        start, length = _extent(event, at - origin, reached)
        found.append(_bar(event, start, length, whole))
        # A plugin loads while its inputs come in: both are written when it is ready.
        # What only happened at a moment ended nothing.
        if event["event_type"] == "staged_in":
            reached = start + (length or 0)
        elif length is not None:
            reached = at - origin
    return found


def _extent(event: Mapping[str, Any], at: int, reached: int) -> tuple[int, int | None]:
    """Start and length of what the event ended, in ms; no length for a moment."""
    name, details = event["event_type"], event.get("details") or {}
    if name not in _STEPS:
        return at, None
    if name == "claimed" and isinstance(details.get("waited_ms"), int):
        length = min(max(0, details["waited_ms"]), at)
        return at - length, length
    start = min(reached, at)
    measured = details.get("duration_ms")
    return start, min(max(0, measured), at - start) if isinstance(measured, int) else at - start


def _bar(event: Mapping[str, Any], start: int, length: int | None, whole: int) -> Bar:
    name, details = event["event_type"], event.get("details") or {}
    label, kind = _STEPS.get(name, (trace_word(name), _POINTS.get(name, "point")))
    if name == "due" and not event.get("attempt"):
        label = "Waited for its time"
    width = min(WIDTH, max(_LEAST, WIDTH * (length or 0) / whole))
    return Bar(
        label="Plugin is running" if details.get("running") else label,
        kind=kind,
        at=event["timestamp"],
        attempt=int(event.get("attempt") or 0),
        start_ms=start,
        length_ms=length,
        x=round(min(WIDTH * start / whole, WIDTH - width), 2),
        width=round(width, 2),
        note=_note(name, details),
    )


def _note(name: str, details: Mapping[str, Any]) -> str:
    """What else is worth a line: files moved, who took it, why it failed."""
    if name in ("staged_in", "staged_out"):
        files = details.get("files") or []
        count = details.get("count", len(files))
        if not count:
            return "no files"
        moved = f", {size(sum(file['size'] for file in files))}" if len(files) == count else ""
        return f"{count} file{'' if count == 1 else 's'}{moved}"
    if name == "claimed" and details.get("worker"):
        return f"worker …{tail(str(details['worker']))}"
    if name == "sandbox_started" and details.get("start"):
        return ": ".join(str(details[key]) for key in ("start", "why") if details.get(key))
    if name == "egress_connection":
        where = f"{details.get('host')}:{details.get('port')}" if details.get("host") else "unknown"
        moved = f"{size(details.get('bytes_up') or 0)} out, {size(details.get('bytes_down') or 0)} in"
        return f"{where}: {reason_text(str(details.get('verdict')))}, {moved}"
    if "reason" in details:
        wait = f"; again in at most {duration(details['delay_ms'])}" if details.get("delay_ms") else ""
        return reason_text(str(details["reason"])) + wait
    return ""
