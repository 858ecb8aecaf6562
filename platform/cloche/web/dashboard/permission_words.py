"""Permissions as people read them: grouped by what they are about, each with its sentence. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cloche.domain.permissions import NAMED_ONLY, PERMISSION_TEXT, PLATFORM_PERMISSIONS, Permission

_RESOURCE_WORD = {
    "token": "Tokens and sessions",
    "egress": "Egress",
    "usage": "Usage",
    "audit": "Audit",
    "platform": "Platform",
}


@dataclass(frozen=True)
class Named:
    """One permission. ``hands_on``: it hands on power, so that a token has it only where its scopes name it."""

    name: str
    summary: str
    hands_on: bool
    platform: bool


@dataclass(frozen=True)
class Group:
    """Permissions about one resource."""

    resource: str
    title: str
    items: tuple[Named, ...]


def grouped(permissions: Iterable[str] = tuple(Permission)) -> list[Group]:
    """The permissions by resource, in the order in which they are declared; a name that is none is left out."""
    wanted = set(permissions)
    groups: dict[str, list[Named]] = {}
    for one in Permission:
        if one in wanted:
            named = Named(one.value, PERMISSION_TEXT[one], one in NAMED_ONLY, one in PLATFORM_PERMISSIONS)
            groups.setdefault(one.value.partition(":")[0], []).append(named)
    return [Group(resource, _title(resource), tuple(items)) for resource, items in groups.items()]


@dataclass(frozen=True)
class Held:
    """What somebody could do with one resource: each permission with the roles that give it."""

    title: str
    items: tuple[Mapping[str, Any], ...]


def by_resource(items: Iterable[Mapping[str, Any]]) -> list[Held]:
    """``items`` as ``UserService.permissions`` gives them, in their order."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for item in items:
        groups.setdefault(str(item["name"]).partition(":")[0], []).append(item)
    return [Held(_title(resource), tuple(found)) for resource, found in groups.items()]


def _title(resource: str) -> str:
    return _RESOURCE_WORD.get(resource) or f"{resource.replace('_', ' ').capitalize()}s"
