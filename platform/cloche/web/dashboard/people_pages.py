"""Users: who there is, what each could do and why, and what those who manage users do with one."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from flask import request, url_for

from cloche.domain.permissions import Actor, Permission
from cloche.errors import RequestError
from cloche.services.user_tokens import looks_after
from cloche.web import people_models
from cloche.web.bodies import validated
from cloche.web.dashboard.fields import Problems, beside, version_of
from cloche.web.dashboard.permission_words import by_resource
from cloche.web.dashboard.role_choice import choice, chosen
from cloche.web.dashboard.site import MANAGE, Answer, Page, Site, go, say
from cloche.web.dashboard.token_forms import by_life

_PAGE = 50
_CODES = {"grant-exceeds-own": "roles"}
_CHANGED = "Somebody else has changed this user since the page was loaded. Below stands how they are now."


def reaches(actor: Actor) -> bool:
    """Whether the actor reaches users of every tenant."""
    return actor.may(Permission.TENANT_MANAGE)


def users(site: Site, actor: Actor) -> Answer:
    filters = {name: request.args.get(name, "").strip()[:64] or None for name in ("prefix", "role", "kind")}
    if filters["kind"] not in ("person", "service"):
        filters["kind"] = None
    everywhere = reaches(actor) and request.args.get("scope") == "platform"
    cursor = request.args.get("cursor") or None
    found = site.services.users.list(actor, {**filters, "everywhere": everywhere}, cursor, _PAGE)
    kept = {**filters, "scope": "platform" if everywhere else None}
    return site.render(
        "users.html",
        items=found["items"],
        next_cursor=found["next_cursor"],
        cursor=cursor,
        filters=filters,
        kept=kept,
        everywhere=everywhere,
        reaches=reaches(actor),
        may_manage=actor.may(Permission.USER_MANAGE),
    )


def user(site: Site, actor: Actor, user_id: str) -> Answer:
    return one(site, actor, user_id)


def one(
    site: Site,
    actor: Actor,
    user_id: str,
    *,
    problems: Problems | None = None,
    typed: Collection[str] | None = None,
    made: dict[str, Any] | None = None,
) -> str:
    """The page of one user. ``typed``: roles that a refused form held. ``made``: ``link`` or ``token``, shown this once."""
    services, far = site.services, reaches(actor)
    found = services.users.get(actor, user_id, everywhere=far)
    could = services.users.permissions(actor, user_id, everywhere=far)["items"]
    here = bool(found["roles"])
    may_see = here and actor.may(Permission.USER_MANAGE) and looks_after(actor)
    tokens = services.users.tokens(actor, user_id) if may_see else []
    valid, over = by_life(tokens, services.db.now_ms())
    return site.render(
        "user.html",
        user=found,
        here=here,
        may=by_resource(item for item in could if item["granted"]),
        may_not=by_resource(item for item in could if not item["granted"]),
        choice=choice(site, actor, found["roles"] if typed is None else typed),
        problems=problems or {},
        made=made,
        valid=valid,
        over=over,
        me=user_id == actor.user_id,
        reaches=far,
        may_manage=actor.may(Permission.USER_MANAGE),
        may_appoint=actor.may(Permission.PLATFORM_MANAGE),
    )


def set_roles(site: Site, actor: Actor, user_id: str) -> Answer:
    version = version_of(request.form)
    roles = chosen(request.form.getlist("role"), request.form.get("others", ""))
    try:
        body = validated(people_models.UserRoles, {"roles": roles})
        site.services.users.set_roles(actor, user_id, body.roles, version, everywhere=reaches(actor))
    except RequestError as refused:
        return _refused(site, actor, user_id, refused, roles)
    say("The roles are set. They hold from the next request on.")
    return go("user", user_id=user_id)


def disable(site: Site, actor: Actor, user_id: str) -> Answer:
    return _disabled(site, actor, user_id, True, "The account is disabled. Its sessions and tokens have ended.")


def enable(site: Site, actor: Actor, user_id: str) -> Answer:
    return _disabled(site, actor, user_id, False, "The account is enabled. Sessions and tokens that it had stay ended.")


def _disabled(site: Site, actor: Actor, user_id: str, disabled: bool, words: str) -> Answer:
    version, users = version_of(request.form), site.services.users
    return _done(
        site, actor, user_id, words, lambda far: users.set_disabled(actor, user_id, disabled, version, everywhere=far)
    )


def appoint(site: Site, actor: Actor, user_id: str) -> Answer:
    return _appointed(site, actor, user_id, True, "They administer the platform from now on.")


def dismiss(site: Site, actor: Actor, user_id: str) -> Answer:
    return _appointed(site, actor, user_id, False, "They administer the platform no more.")


def _appointed(site: Site, actor: Actor, user_id: str, appointed: bool, words: str) -> Answer:
    version, users = version_of(request.form), site.services.users
    return _done(
        site,
        actor,
        user_id,
        words,
        lambda far: users.set_platform_admin(actor, user_id, appointed, version, everywhere=far),
    )


def _done(site: Site, actor: Actor, user_id: str, words: str, act: Callable[[bool], Any]) -> Answer:
    try:
        act(reaches(actor))
    except RequestError as refused:
        return _refused(site, actor, user_id, refused)
    say(words)
    return go("user", user_id=user_id)


def remove(site: Site, actor: Actor, user_id: str) -> Answer:
    """Out of this tenant; those who reach every tenant may choose to delete the account."""
    everywhere = request.form.get("from") == "everywhere"
    try:
        site.services.users.remove(actor, user_id, version_of(request.form), everywhere=everywhere)
    except RequestError as refused:
        return _refused(site, actor, user_id, refused)
    say("The account is deleted." if everywhere else "The user is out of this tenant.")
    return go("users")


def reset(site: Site, actor: Actor, user_id: str) -> Answer:
    """The link is in this answer and nowhere else; what opens a new password stands behind its #, where no server sees it."""
    try:
        code = site.services.access.create_reset(actor, user_id)
    except RequestError as refused:
        return _refused(site, actor, user_id, refused)
    return one(site, actor, user_id, made={"link": link_of(code), "expires_at": code["expires_at"]})


def link_of(code: dict[str, Any]) -> str:
    return f"{url_for('dashboard.reset', _external=True)}#{code['code']}"


def _refused(
    site: Site, actor: Actor, user_id: str, refused: RequestError, typed: Collection[str] | None = None
) -> Answer:
    """Beside the roles, or above all; who is not there (any more) is a page of its own."""
    site.services.users.get(actor, user_id, everywhere=reaches(actor))
    site.refused(refused)
    problems = beside(refused, ("roles",), about={"roles": list(typed or ())}, codes=_CODES)
    if refused.code == "user-changed":
        problems = {"form": [_CHANGED]}
    return one(site, actor, user_id, problems=problems, typed=typed), refused.status


_OF_ONE = (
    *("user", "new_user", "user_token", "set_roles", "disable", "enable", "remove", "reset_user", "appoint", "dismiss"),
    *("user_quota", "set_user_quota"),
)
PAGES = (
    Page("/ui/users", "users", users, Permission.USER_READ, label="Users", under=_OF_ONE, section=MANAGE),
    Page("/ui/users/<user_id>", "user", user, Permission.USER_READ),
    Page("/ui/users/<user_id>/roles", "set_roles", set_roles, Permission.USER_MANAGE, methods=("POST",)),
    Page("/ui/users/<user_id>/disable", "disable", disable, Permission.USER_MANAGE, methods=("POST",)),
    Page("/ui/users/<user_id>/enable", "enable", enable, Permission.USER_MANAGE, methods=("POST",)),
    Page("/ui/users/<user_id>/remove", "remove", remove, Permission.USER_MANAGE, methods=("POST",)),
    Page("/ui/users/<user_id>/password-reset", "reset_user", reset, Permission.USER_MANAGE, methods=("POST",)),
    Page("/ui/users/<user_id>/appoint", "appoint", appoint, Permission.PLATFORM_MANAGE, methods=("POST",)),
    Page("/ui/users/<user_id>/dismiss", "dismiss", dismiss, Permission.PLATFORM_MANAGE, methods=("POST",)),
)
