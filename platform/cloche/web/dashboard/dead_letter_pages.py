"""Failed jobs on one page: looked at, replayed, purged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import request

from cloche.clock import is_uuid7
from cloche.domain.permissions import Actor, Permission
from cloche.domain.states import EDGES, State
from cloche.errors import Conflict, Invalid, Problem
from cloche.web.dashboard.show import reason_text
from cloche.web.dashboard.site import Answer, Page, Site, go, say

_PAGE = 50
_REASONS = sorted(((reason.value, reason_text(reason)) for reason in EDGES[State.PROCESSING, State.FAILED]), key=str)


def dead_letters(site: Site, actor: Actor) -> Answer:
    reason, cursor = request.args.get("reason") or None, request.args.get("cursor") or None
    found = site.services.ended.dead_letters(actor, {"reason": reason}, cursor, _PAGE)
    return site.render(
        "dead_letters.html",
        items=found["items"],
        next_cursor=found["next_cursor"],
        cursor=cursor,
        reason=reason,
        reasons=_REASONS,
        may_replay=actor.may(Permission.JOB_RETRY_ANY),
        may_purge=actor.may(Permission.JOB_PURGE),
    )


def replay(site: Site, actor: Actor) -> Answer:
    return _acted(actor, site.services.ended.replay, "replayed")


def purge(site: Site, actor: Actor) -> Answer:
    return _acted(actor, site.services.ended.purge_dead_letters, "removed")


def _acted(actor: Actor, act: Callable[[Actor, dict[str, Any]], dict[str, Any]], word: str) -> Answer:
    """Do it with the jobs that were ticked, and say what came of it above the list."""
    ids = request.form.getlist("id")
    back = go("dead_letters", reason=request.args.get("reason") or None)
    if not ids:
        say("Nothing was ticked.", good=False)
        return back
    if len(ids) > _PAGE or not all(is_uuid7(one) for one in ids):
        raise Invalid("the form is not one of this page", problems=[Problem("/id", "tick jobs of one page")])
    found = act(actor, {"ids": ids})
    jobs = "1 job was" if found["done"] == 1 else f"{found['done']} jobs were"
    say(f"{jobs} {word}.", good=not found["skipped"], skipped=found["skipped"])
    return back


def retry(site: Site, actor: Actor, job_id: str) -> Answer:
    try:
        site.services.ended.retry(actor, job_id)
    except Conflict as refused:
        if refused.code not in ("job-not-ended", "job-completed"):
            raise
        # Somebody was faster; the job's page says how it is now.
    return go("job", job_id=job_id)


PAGES = (
    Page(
        "/ui/dead-letters",
        "dead_letters",
        dead_letters,
        Permission.JOB_READ,
        label="Dead letters",
        under=("replay", "purge"),
    ),
    Page("/ui/dead-letters/replay", "replay", replay, Permission.JOB_RETRY_ANY, methods=("POST",)),
    Page("/ui/dead-letters/purge", "purge", purge, Permission.JOB_PURGE, methods=("POST",)),
    Page("/ui/jobs/<job_id>/retry", "retry", retry, Permission.JOB_RETRY, methods=("POST",)),
)
