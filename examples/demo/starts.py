"""The same job twice: in a sandbox made for it, and in one that was made and waited before it came."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

from jobs import DATA
from rest import Rest
from screen import Screen

_SECONDS = 20


def compare(screen: Screen, user: Rest) -> None:
    """One job with a limit of its own, for which none can wait; and one as the plugin asks, once one waits."""
    table = user.upload(DATA / "airports.csv")
    body = {
        "type": "csv_profile",
        "inputs": [{"from": f"artifact:{table['id']}", "to": "airports.csv"}],
        "outputs": [{"match": "*"}],
    }
    screen.say(
        "  Jobs of this plugin came a moment ago, so sandboxes with the plugin loaded are kept ready for the next ones."
    )
    own = user.get("/plugins/csv_profile")["limits"]
    cold = _run(user, body | {"name": "cold", "limits": {"pids": own["pids"] - 1}})
    warm = _warm(user, body)
    screen.table(("start", "sandbox", "accepted to result", "why"), [_row(cold), _row(warm)])
    screen.check(cold["start"] == "cold", f"a job with limits of its own started cold: {cold.get('why')}")
    screen.check(warm["start"] == "warm", "a job with the plugin's own limits found a sandbox waiting")
    screen.check(cold["sandbox"] != warm["sandbox"], "each ran in a sandbox of its own, used once")


def _warm(user: Rest, body: dict[str, Any]) -> dict[str, Any]:
    """The first warm start; the last cold one when none waits within the time."""
    deadline = time.monotonic() + _SECONDS
    while True:
        found = _run(user, body | {"name": "warm"})
        if found["start"] == "warm" or time.monotonic() > deadline:
            return found


def _run(user: Rest, body: dict[str, Any]) -> dict[str, Any]:
    """One job; the details of its start, and how long it took from its acceptance to its end."""
    job = user.finished(user.post("/jobs", body)["id"])
    items = user.get(f"/trace/{job['id']}")["items"]
    moments = {item["event_type"]: datetime.fromisoformat(item["timestamp"]) for item in items}
    (started,) = [item["details"] for item in items if item["event_type"] == "sandbox_started"]
    took = (moments["completed"] - moments["accepted"]).total_seconds() * 1000
    return {**started, "took_ms": took}


def _row(found: dict[str, Any]) -> tuple[str, str, str, str]:
    return found["start"], f"{found['duration_ms']} ms", f"{found['took_ms']:.0f} ms", found.get("why") or ""
