"""Roles to choose from when somebody is given some."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cloche.domain.permissions import Actor, Permission
from cloche.web.dashboard.fields import lines
from cloche.web.dashboard.site import Site

_MOST = 100  # are offered to be ticked; of more, others are named


@dataclass(frozen=True)
class Choice:
    """``offered``: roles as ``RoleService.list`` shows them, each with ``ticked`` and ``beyond`` (it allows what the actor may not hand on).
    ``others``: names that are not among them, one a line; ``more``: there are roles that are not offered."""

    offered: Sequence[Mapping[str, Any]]
    others: str
    more: bool


def choice(site: Site, actor: Actor, held: Collection[str]) -> Choice:
    """What the actor may see of the tenant's roles, with those of ``held`` ticked."""
    page: Mapping[str, Any] = {"items": [], "next_cursor": "there may be"}
    if actor.may(Permission.ROLE_READ):
        page = site.services.roles.list(actor, None, _MOST)
    offered = [
        {**role, "ticked": role["name"] in held, "beyond": not actor.permissions.issuperset(role["permissions"])}
        for role in page["items"]
    ]
    names = {role["name"] for role in offered}
    others = "\n".join(sorted(name for name in held if name not in names))
    return Choice(offered, others, bool(others or page["next_cursor"]))


def chosen(ticked: Sequence[str], others: str) -> list[str]:
    """The names that a form holds, each once."""
    return list(dict.fromkeys([*ticked, *lines(others)]))
