"""What Cloche refuses, and what a sandbox keeps in."""

from __future__ import annotations

from typing import Any

import httpx
from rest import Rest
from screen import Screen

HOSTILE = {
    "open_socket": "a plugin that opens a socket to the outside",
    "read_host": "a plugin that reads the host's files",
}


def at_the_door(screen: Screen, url: str, user: Rest, viewer: Rest) -> None:
    """Refused before anything runs: each with its status, and a problem document that says why."""
    nobody = Rest(url)
    job = {"type": "text_stats", "inputs": []}
    cases = [
        ("the viewer submits a job", viewer, job, 403),
        ("somebody without a token", nobody, job, 401),
        (
            "a width that is no number",
            user,
            {
                "type": "thumbnail",
                "payload": {"width": "wide"},
                "inputs": [{"from": "archive:photos/grace_hopper.jpg"}],
            },
            422,
        ),
        ("a path out of the remote", user, {"type": "text_stats", "inputs": [{"from": "archive:../secret.txt"}]}, 422),
        ("a plugin that does not exist", user, {"type": "mine_bitcoin"}, 422),
    ]
    answers = [(what, caller.raw("POST", "/jobs", json=body), status) for what, caller, body, status in cases]
    nobody.close()
    screen.table(("who or what", "status", "why", "where"), [_row(what, answer) for what, answer, _ in answers])
    for what, answer, status in answers:
        kind = answer.headers.get("content-type", "")
        screen.check(answer.status_code == status and kind.startswith("application/problem+json"), f"{what}: {status}")
    screen.check(
        _pointers(answers[2][1].json()) == "/payload/width",
        "the wrong parameter is named by a JSON pointer: /payload/width",
    )


def inside(screen: Screen, user: Rest, admin: Rest) -> None:
    """Hostile plugins fail in their sandboxes, and the platform goes on."""
    ids = {
        name: user.post("/jobs", {"type": name, "retry": {"max_retries": 0}, "name": what})["id"]
        for name, what in HOSTILE.items()
    }
    jobs = {name: user.finished(job_id) for name, job_id in ids.items()}
    screen.table(("plugin", "status", "why"), [(name, job["status"], job["reason_text"]) for name, job in jobs.items()])
    for name, what in HOSTILE.items():
        job = jobs[name]
        screen.check(
            job["status"] == "failed" and job["reason"] == "plugin_failed", f"{what}: fails inside its sandbox"
        )
        screen.value(
            "what it says itself",
            user.raw("GET", f"/jobs/{job['id']}/logs").text or str((job["error"] or {}).get("message")),
            4,
        )
    workers = [item for item in admin.get("/workers")["items"] if item["status"] != "dead"]
    screen.check(workers and all(item["status"] == "alive" for item in workers), "every worker is alive")
    after = user.finished(user.post("/jobs", {"type": "text_stats", "inputs": _text(user)})["id"])
    screen.check(after["status"] == "completed", "the next job completes as if nothing had happened")


def _text(user: Rest) -> list[dict[str, str]]:
    stored = user.raw("POST", "/files", files={"file": ("after.txt", b"Life goes on.\n", "text/plain")}).json()
    return [{"from": f"artifact:{stored['id']}"}]


def _row(what: str, answer: httpx.Response) -> tuple[str, int, str, str]:
    problem = answer.json()
    why = "; ".join(item["detail"] for item in problem.get("errors", ())) or problem["detail"]
    return what, answer.status_code, why, _pointers(problem)


def _pointers(problem: dict[str, Any]) -> str:
    return ", ".join(item.get("pointer", item.get("parameter", "")) for item in problem.get("errors", ()))
