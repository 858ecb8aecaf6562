"""Answers about users, roles and tenants, as OpenAPI describes them."""

from __future__ import annotations

from typing import Literal

from cloche.web.routing import Shape
from cloche.web.shapes import PermissionOut


class UserOut(Shape):
    id: str
    username: str
    kind: Literal["person", "service"]
    roles: list[str]
    tenants: list[str] | None
    platform_admin: bool
    disabled: bool
    version: int
    created_at: str


class HeldOut(PermissionOut):
    granted: bool
    roles: list[str]


class UserPermissionsOut(Shape):
    id: str
    username: str
    disabled: bool
    platform_admin: bool
    roles: list[str]
    items: list[HeldOut]


class RoleOut(Shape):
    name: str
    builtin: bool
    summary: str
    permissions: list[str]
    users: int
    version: int | None
    created_at: str | None
    updated_at: str | None


class TenantOut(Shape):
    id: str
    name: str
    suspended: bool
    users: int
    version: int
    created_at: str


class HoldingsOut(Shape):
    jobs: int
    files: int


class EmptiedOut(Shape):
    removed: HoldingsOut
    left: HoldingsOut
    done: bool
