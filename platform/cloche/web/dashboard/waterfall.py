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
    "finished": ("Plugin ran", "run"),
    "staged_out": ("Outputs taken out", "stage"),
    "due": ("Waited for the next attempt", "wait"),
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


def bars(events: Sequence[Mapping[str, Any]]) -> list[Bar]:
    """Each event as a bar that ends when it was written, or as a moment. Progress events are left to the progress bar."""
    shown = [event for event in events if event["event_type"] != "progress"]
    if not shown:
        return []
    times = [from_rfc3339(event["timestamp"]) for event in shown]
    origin = min(times)
    whole = max(max(times) - origin, 1)
    return [
        _bar(event, at - origin, times[max(index - 1, 0)] - origin, whole)
        for index, (event, at) in enumerate(zip(shown, times, strict=True))
    ]


def _bar(event: Mapping[str, Any], end: int, previous: int, whole: int) -> Bar:
    name, details = event["event_type"], event.get("details") or {}
    label, kind = _STEPS.get(name, (trace_word(name), _POINTS.get(name, "point")))
    length = _length(name, details, end - previous)
    start = max(0, end - (length or 0))
    width = min(WIDTH, max(_LEAST, WIDTH * (end - start) / whole))
    return Bar(
        label=label,
        kind=kind,
        at=event["timestamp"],
        attempt=int(event.get("attempt") or 0),
        start_ms=start,
        length_ms=length,
        x=round(min(WIDTH * start / whole, WIDTH - width), 2),
        width=round(width, 2),
        note=_note(name, details),
    )


def _length(name: str, details: Mapping[str, Any], since_previous: int) -> int | None:
    """How long the step took, by its own measure where it brought one."""
    if name not in _STEPS:
        return None
    for key in ("duration_ms", "waited_ms"):
        if isinstance(details.get(key), int):
            return max(0, int(details[key]))
    return max(0, since_previous)


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
    if "reason" in details:
        wait = f"; again in at most {duration(details['delay_ms'])}" if details.get("delay_ms") else ""
        return reason_text(str(details["reason"])) + wait
    return ""
