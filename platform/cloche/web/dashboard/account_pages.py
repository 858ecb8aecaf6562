"""One's own account: who one is and what one may do, one's tenants, sessions and password."""

from __future__ import annotations

from typing import Any

from flask import request

from cloche.domain.permissions import Actor
from cloche.errors import Conflict, Invalid, NotFound, RateLimited, RequestError, Unauthenticated
from cloche.web import signin_models
from cloche.web.bodies import validated
from cloche.web.dashboard.agents import device
from cloche.web.dashboard.fields import Problems, beside
from cloche.web.dashboard.permission_words import grouped
from cloche.web.dashboard.site import Answer, Page, Site, go, say
from cloche.web.routing import SIGNED_IN

_FIELDS = ("current_password", "new_password", "again")
_CODES = {"bad-credentials": "current_password", "rate-limited": "current_password"}


def account(site: Site, actor: Actor) -> Answer:
    return _account(site, actor, {})


def _account(site: Site, actor: Actor, problems: Problems) -> str:
    return site.render(
        "account.html",
        at_account="account",
        tenants=site.services.access.tenants(actor),
        groups=grouped(actor.permissions),
        problems=problems,
        least=site.services.settings.signin.password_min,
    )


def change_password(site: Site, actor: Actor) -> Answer:
    """The form is shown again without what was typed where it is refused: no page repeats a password."""
    typed = {name: request.form.get(name, "") for name in ("current_password", "new_password")}
    try:
        if typed["new_password"] != request.form.get("again", ""):
            return _account(site, actor, {"again": ["This is not what stands above."]}), 422
        revoke = request.form.get("revoke_tokens") == "yes"
        body = validated(signin_models.NewPassword, {**typed, "revoke_tokens": revoke})
        site.auth.change_password(body.current_password, body.new_password, revoke_tokens=body.revoke_tokens)
    except (Unauthenticated, RateLimited, Conflict, Invalid) as refused:
        return _account(site, actor, beside(refused, _FIELDS, codes=_CODES)), refused.status, _wait(refused)
    say("The password is changed. Your other sessions have ended" + (", and your tokens too." if revoke else "."))
    return go("account")


def _wait(refused: RequestError) -> dict[str, str]:
    return {"Retry-After": str(refused.retry_after)} if isinstance(refused, RateLimited) else {}


def enter(site: Site, actor: Actor) -> Answer:
    try:
        site.services.access.enter(actor, request.form.get("tenant", "")[:256])
    except (NotFound, Conflict) as refused:
        say(refused.detail if isinstance(refused, Conflict) else "That tenant is none of yours.", good=False)
    return go("account")


def sessions(site: Site, actor: Actor) -> Answer:
    items = [_session(item) for item in site.services.access.list_sessions(actor)]
    return site.render("sessions.html", at_account="sessions", items=items)


def _session(item: dict[str, Any]) -> dict[str, Any]:
    return item | {"device": device(item["user_agent"])}


def end_session(site: Site, actor: Actor, session_id: str) -> Answer:
    try:
        site.services.access.end_session(actor, session_id)
        say("The session has ended.")
    except NotFound:
        say("That session had ended already.")
    return go("sessions")


def end_others(site: Site, actor: Actor) -> Answer:
    count = site.services.access.end_other_sessions(actor)
    say(f"{count} other session{'s have' if count > 1 else ' has'} ended." if count else "There was no other session.")
    return go("sessions")


PAGES = (
    Page("/ui/account", "account", account, SIGNED_IN),
    Page("/ui/account/password", "change_password", change_password, SIGNED_IN, methods=("POST",)),
    Page("/ui/account/tenant", "enter_tenant", enter, SIGNED_IN, methods=("POST",)),
    Page("/ui/account/sessions", "sessions", sessions, SIGNED_IN),
    Page("/ui/account/sessions/end-others", "end_others", end_others, SIGNED_IN, methods=("POST",)),
    Page("/ui/account/sessions/<session_id>/end", "end_session", end_session, SIGNED_IN, methods=("POST",)),
)
