"""What one may use and has used; what the tenant has used, by day or by user; and forms that set quotas."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flask import redirect, request

from cloche.domain.permissions import Actor, Permission
from cloche.domain.quotas import Kind, day_of
from cloche.errors import NotFound, RequestError
from cloche.web.bodies import validated
from cloche.web.dashboard import quota_words
from cloche.web.dashboard.fields import Problems, beside, version_of
from cloche.web.dashboard.site import MANAGE, Answer, Page, Site, say
from cloche.web.quota_shapes import QuotaBody
from cloche.web.routing import SIGNED_IN

_DAYS = (7, 30, 90)
_KINDS = tuple(kind.value for kind in Kind)
_CHANGED = "Somebody else has changed this quota since the page was loaded. Saving again replaces what they did."


def usage(site: Site, actor: Actor) -> Answer:
    """Everybody's own; with ``usage:read`` the tenant's too; platform administrators see every tenant's by tenant."""
    own, platform = site.services.quotas.own(actor), actor.may(Permission.QUOTA_MANAGE)
    groups = ("day", "user", "tenant") if platform else ("day", "user")
    group = next((name for name in groups if name == request.args.get("group")), "day")
    days = next((days for days in _DAYS if request.args.get("days") == str(days)), _DAYS[1])
    report = None
    if actor.may(Permission.USAGE_READ):
        until = day_of(site.services.db.now_ms()) + 1
        report = site.services.usage.report(actor, until - days, until, group, platform=group == "tenant")
        report["items"].sort(key=lambda row: row["day"] if group == "day" else row["cpu_seconds"], reverse=True)
    return site.render(
        "usage.html",
        mine=quota_words.own_lines(own["user"]),
        ours=quota_words.own_lines(own["tenant"]),
        report=report,
        group=group,
        groups=groups,
        days=days,
        choices=_DAYS,
        cpu=quota_words.cpu,
    )


def tenant_quota(site: Site, _actor: Actor, tenant_id: str) -> Answer:
    return _tenant(site, tenant_id, None, {})


def _tenant(site: Site, tenant_id: str, typed: Mapping[str, str] | None, problems: Problems) -> str:
    name = site.services.tenants.get(tenant_id)["name"]
    found = site.services.quotas.tenant(tenant_id)
    return _form(site, found, typed, problems, {"of": "tenant", "name": name, "tenant_id": tenant_id})


def user_quota(site: Site, actor: Actor, user_id: str) -> Answer:
    return _user(site, actor, user_id, None, {})


def _user(site: Site, actor: Actor, user_id: str, typed: Mapping[str, str] | None, problems: Problems) -> str:
    name = site.services.users.get(actor, user_id)["username"]
    found = site.services.quotas.user(actor, user_id)
    return _form(site, found, typed, problems, {"of": "user", "name": name, "user_id": user_id})


def _form(
    site: Site, found: Mapping[str, Any], typed: Mapping[str, str] | None, problems: Problems, whose: Mapping[str, str]
) -> str:
    fields = [
        {
            "name": kind.value,
            "label": quota_words.KIND_WORD[kind],
            "hint": quota_words.HINTS[kind],
            "holds": quota_words.amount(kind, found["effective"][kind.value]),
        }
        for kind in Kind
    ]
    values = typed or quota_words.typed(found["limits"])
    return site.render("quota.html", quota=found, fields=fields, typed=values, problems=problems, whose=whose)


def set_tenant_quota(site: Site, actor: Actor, tenant_id: str) -> Answer:
    def put(asked: dict[str, Any], version: int) -> None:
        site.services.quotas.set_tenant(actor, tenant_id, asked, version)

    return _set(site, put, lambda problems: _tenant(site, tenant_id, request.form, problems))


def set_user_quota(site: Site, actor: Actor, user_id: str) -> Answer:
    def put(asked: dict[str, Any], version: int) -> None:
        site.services.quotas.set_user(actor, user_id, asked, version)

    return _set(site, put, lambda problems: _user(site, actor, user_id, request.form, problems))


def _set(site: Site, put: Callable[[dict[str, Any], int], None], shown: Callable[[Problems], str]) -> Answer:
    version = version_of(request.form)
    made, problems = quota_words.body(request.form)
    if problems:
        return shown(problems), 422
    try:
        put(validated(QuotaBody, made).model_dump(), version)
    except NotFound:
        raise
    except RequestError as refused:
        return shown(_told(site, refused)), refused.status
    say("The quota is set. It holds from the next request on.")
    return redirect(request.path.removesuffix("/set"), 303)


def _told(site: Site, refused: RequestError) -> Problems:
    site.refused(refused)
    return {"form": [_CHANGED]} if refused.code == "quota-changed" else beside(refused, _KINDS)


PAGES = (
    Page("/ui/usage", "usage", usage, SIGNED_IN, label="Usage", section=MANAGE),
    Page("/ui/tenants/<tenant_id>/quota", "tenant_quota", tenant_quota, Permission.QUOTA_MANAGE),
    Page("/ui/users/<user_id>/quota", "user_quota", user_quota, Permission.QUOTA_ASSIGN),
    Page(
        "/ui/tenants/<tenant_id>/quota/set",
        "set_tenant_quota",
        set_tenant_quota,
        Permission.QUOTA_MANAGE,
        methods=("POST",),
    ),
    Page("/ui/users/<user_id>/quota/set", "set_user_quota", set_user_quota, Permission.QUOTA_ASSIGN, methods=("POST",)),
)
