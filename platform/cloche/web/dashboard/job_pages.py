"""The list of jobs and one job's page, each also as the part that renews itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from flask import Response, current_app, request, url_for

from cloche.domain.permissions import Actor, Permission
from cloche.domain.states import RETRIABLE, TERMINAL, State
from cloche.errors import Conflict, NotFound
from cloche.services.sealing import JobSeal
from cloche.web.dashboard import show
from cloche.web.dashboard.site import Answer, Page, Site, go, is_part
from cloche.web.dashboard.waterfall import bars

_PAGE = 50
_STEPS = 500  # attempts, and steps of the trace: the last ones; the API has all of them
_LOG_PIECES = 2_000  # shown at first; the API has the whole log
_STATUSES = (
    State.PENDING,
    State.PROCESSING,
    State.SCHEDULED,
    State.BLOCKED,
    State.COMPLETED,
    State.FAILED,
    State.CANCELED,
)


def home(_site: Site, _actor: Actor) -> Answer:
    return go("jobs")


def jobs(site: Site, actor: Actor) -> Answer:
    last_event = site.last_event()
    filters = {name: request.args.get(name) or None for name in ("status", "type")}
    cursor = request.args.get("cursor") or None
    found = site.services.jobs.list(actor, filters, cursor, _PAGE)
    values = {
        "items": found["items"],
        "next_cursor": found["next_cursor"],
        "filters": filters,
        "cursor": cursor,
        "may_submit": actor.may(Permission.JOB_SUBMIT),
    }
    if is_part():
        return site.render("_jobs.html", **values)
    types = (
        sorted({item["name"] for item in site.services.plugins.list(actor)})
        if actor.may(Permission.PLUGIN_READ)
        else []
    )
    here = url_for(".jobs", cursor=cursor, status=filters["status"], type=filters["type"])
    return site.render("jobs.html", statuses=_STATUSES, types=types, here=here, last_event=last_event, **values)


def job(site: Site, actor: Actor, job_id: str) -> Answer:
    last_event = site.last_event()
    found = site.services.jobs.get(actor, job_id)
    mine = found["submitted_by"] == actor.username
    own = mine and actor.may(Permission.JOB_CANCEL)
    retries = (mine and actor.may(Permission.JOB_RETRY)) or actor.may(Permission.JOB_RETRY_ANY)
    attempts, trace = site.services.jobs.latest(actor, job_id, _STEPS)
    values = {
        "job": found,
        "terminal": TERMINAL,
        "may_cancel": found["status"] not in TERMINAL and (own or actor.may(Permission.JOB_CANCEL_ANY)),
        "may_retry": found["status"] in RETRIABLE and retries,
        "may_reveal": actor.may(Permission.JOB_REVEAL_ANY)
        or (found["submitted_by"] == actor.username and actor.may(Permission.JOB_REVEAL)),
        "inputs": _inputs(site, actor, found, trace[-_STEPS:]),
        "outputs": [_output(actor, item) for item in site.services.jobs.outputs(actor, job_id)],
        "attempts": attempts[-_STEPS:],
        "attempts_cut": len(attempts) > _STEPS,
        "trace_cut": len(trace) > _STEPS,
        "steps": _STEPS,
        "deliveries": site.services.jobs.callbacks(actor, job_id) if found["callback"] else [],
        "bars": bars(trace[-_STEPS:], site.services.db.now_ms() if found["status"] == State.PROCESSING else None),
    }
    if is_part():
        return site.render("_job.html", **values)
    pieces, mark = _pieces(site, actor, found, "")
    cut = len(pieces) > _LOG_PIECES
    lines = _marked(pieces[-_LOG_PIECES:])
    return site.render("job.html", last_event=last_event, lines=lines, mark=mark, cut=cut, **values)


def log(site: Site, actor: Actor, job_id: str) -> Answer:
    """The log's pieces after a mark (``attempt.seq``), and a new end that asks again while the job runs."""
    found = site.services.jobs.get(actor, job_id)  # before the log, so that an ended job's log is whole
    before = request.args.get("after", "")
    pieces, mark = _pieces(site, actor, found, before)
    return site.render("_log.html", job=found, terminal=TERMINAL, lines=_marked(pieces, before), mark=mark, cut=False)


def cancel(site: Site, actor: Actor, job_id: str) -> Answer:
    try:
        site.services.jobs.cancel(actor, job_id)
    except Conflict:
        pass  # it ended in the meantime; its page says how
    return go("job", job_id=job_id)


def reveal(site: Site, actor: Actor, job_id: str) -> Answer:
    """What a sensitive job holds. By POST alone: no link, preview or reload of a tab shall read it by itself."""
    reveals = site.services.reveals
    found, seal = reveals.job(actor, job_id), reveals.log(actor, job_id)
    pieces, _ = _pieces(site, actor, found, "", seal)
    return site.render("revealed.html", job=found, lines=pieces[-_LOG_PIECES:], cut=len(pieces) > _LOG_PIECES)


def events(site: Site, actor: Actor) -> Answer:
    job_id = request.args.get("job") or None
    after = request.headers.get("Last-Event-ID") or request.args.get("after") or None
    allowed = partial(site.services.access.still_may, actor, Permission.JOB_READ)
    stream = site.streams.open(current_app.extensions["cloche_slots"], actor, after, job_id, allowed)
    response = Response(stream, mimetype="text/event-stream", headers={"X-Accel-Buffering": "no"})
    response.call_on_close(stream.close)
    return response


def _pieces(
    site: Site, actor: Actor, found: Mapping[str, Any], mark: str, seal: JobSeal | None = None
) -> tuple[list[dict[str, Any]], str]:
    """The log after ``mark``, in order, and the mark of its end. Sequence numbers start anew with each attempt."""
    attempt, seq = _parse(mark)
    pieces: list[dict[str, Any]] = []
    for number in range(attempt, found["attempt"] + 1):
        after = seq if number == attempt else None
        while page := site.services.jobs.logs(actor, found["id"], number, after, seal=seal):
            pieces += page
            after = page[-1]["seq"]
    if pieces:
        mark = f"{pieces[-1]['attempt']}.{pieces[-1]['seq']}"
    return pieces, mark


def _parse(mark: str) -> tuple[int, int | None]:
    attempt, _, seq = mark.partition(".")
    if attempt.isascii() and attempt.isdigit() and seq.isascii() and seq.isdigit() and len(mark) < 20:
        return int(attempt), int(seq)
    return 0, None


def _marked(pieces: Sequence[dict[str, Any]], before: str = "") -> list[dict[str, Any]]:
    """The pieces, each knowing whether a later attempt begins with it."""
    current = _parse(before)[0] or 1
    lines = []
    for piece in pieces:
        lines.append(piece | {"new_attempt": piece["attempt"] > current})
        current = max(current, piece["attempt"])
    return lines


def _inputs(
    site: Site, actor: Actor, found: Mapping[str, Any], trace: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The files that were brought in, once they have been; before that, what the job asks for."""
    for event in reversed(trace):
        if event["event_type"] == "staged_in":
            return [_staged(actor, file) for file in event["details"].get("files", ())]
    return [_asked(site, actor, item) for item in found["inputs"]]


def _staged(actor: Actor, file: Mapping[str, Any]) -> dict[str, Any]:
    kind, _, rest = str(file["source"]).partition(":")
    own = kind == "artifact" and actor.may(Permission.FILE_READ)
    links = _links(rest, file["path"], None) if own else {}
    return {"name": file["path"], "note": None if own else f"from {file['source']}", **file, **links}


def _asked(site: Site, actor: Actor, item: Mapping[str, Any]) -> dict[str, Any]:
    source = str(item["from"])
    kind, _, rest = source.partition(":")
    if kind != "artifact" or not actor.may(Permission.FILE_READ):
        return {"name": item.get("to") or source, "note": "a stored file" if kind == "artifact" else f"from {source}"}
    try:
        file = site.services.files.get(actor, rest)
    except NotFound:
        return {"name": item.get("to") or source, "note": "deleted since"}
    shown = {"name": item.get("to") or file["name"], "size": file["size"], "sha256": file["sha256"], "note": None}
    return shown | _links(rest, file["name"], file["media_type"])


def _output(actor: Actor, item: Mapping[str, Any]) -> dict[str, Any]:
    links = {}
    if item["artifact_id"] and actor.may(Permission.FILE_READ):
        links = _links(item["artifact_id"], item["path"], None)
    return {**item, **links}


def _links(file_id: str, name: str, media_type: str | None) -> dict[str, Any]:
    address = f"/api/v1/files/{file_id}/content"
    return {"url": address, "preview": f"{address}?inline=1" if show.previewable(name, media_type) else None}


PAGES = (
    Page("/", "root", home, Permission.JOB_READ),
    Page("/ui/", "home", home, Permission.JOB_READ),
    Page("/ui/jobs", "jobs", jobs, Permission.JOB_READ, label="Jobs", under=("job",)),
    Page("/ui/jobs/<job_id>", "job", job, Permission.JOB_READ),
    Page("/ui/jobs/<job_id>/log", "log", log, Permission.JOB_READ),
    Page("/ui/jobs/<job_id>/cancel", "cancel", cancel, Permission.JOB_CANCEL, methods=("POST",)),
    Page("/ui/jobs/<job_id>/reveal", "reveal", reveal, Permission.JOB_READ, methods=("POST",)),
    Page("/ui/events", "events", events, Permission.JOB_READ),
)
