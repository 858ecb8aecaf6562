"""A job's trace as bars on one time axis. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cloche.clock import from_rfc3339
from cloche.web.dashboard.show import trace_word

WIDTH = 1000  # units of the drawing; the page scales it
_LEAST = 4  # units, so that a short step can still be seen
# A point in the trace that ends a step, and what that step was spent on.
_ENDED = {
    "claimed": ("Waited in its queue", "wait"),
    "staged_in": ("Inputs brought in", "stage"),
    "sandbox_started": ("Sandbox started", "start"),
    "started": ("Plugin loaded", "start"),
    "finished": ("Plugin ran", "run"),
    "staged_out": ("Outputs taken out", "stage"),
    "due": ("Waited for the next attempt", "wait"),
}


@dataclass(frozen=True)
class Bar:
    """One line of the waterfall: ``x`` and ``width`` in units of :data:`WIDTH`; times in ms from the first event."""

    label: str
    kind: str
    at: str
    attempt: int
    start_ms: int
    length_ms: int
    x: float
    width: float
    details: Mapping[str, Any]


def bars(events: Sequence[Mapping[str, Any]]) -> list[Bar]:
    """Each event as a bar from the event before it (or a point), in order. Progress events are left to the progress bar."""
    shown = [event for event in events if event["event_type"] != "progress"]
    if not shown:
        return []
    times = [from_rfc3339(event["timestamp"]) for event in shown]
    origin = times[0]
    whole = max(times[-1] - origin, 1)
    found = []
    for index, (event, at) in enumerate(zip(shown, times, strict=True)):
        name = event["event_type"]
        label, kind = _ENDED.get(name, (trace_word(name), _point(name)))
        previous = times[index - 1] if index and name in _ENDED else at
        start, length = previous - origin, max(0, at - previous)
        width = max(_LEAST, WIDTH * length / whole)
        x = min(WIDTH * start / whole, WIDTH - width)
        found.append(
            Bar(
                label=label,
                kind=kind,
                at=event["timestamp"],
                attempt=int(event.get("attempt") or 0),
                start_ms=start,
                length_ms=length,
                x=round(x, 2),
                width=round(width, 2),
                details={k: v for k, v in (event.get("details") or {}).items() if v is not None},
            )
        )
    return found


def _point(name: str) -> str:
    if name in ("failed", "attempt_abandoned"):
        return "bad"
    return "good" if name == "completed" else "point"
