"""Bodies and queries about users, roles and tenants. A field that is not here is refused: nobody sets what is not theirs to set by naming it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from cloche.services.members import MAX_ROLES_HELD
from cloche.web.models import Name, Page
from cloche.web.routing import Body, Query


class NewUser(Body):
    username: Annotated[str, StringConstraints(max_length=256)]
    password: Annotated[str, StringConstraints(max_length=2_048)] | None = Field(
        None, description="Of a person; a service account has none."
    )
    roles: Annotated[list[Name], Field(min_length=1, max_length=MAX_ROLES_HELD)]
    kind: Literal["person", "service"] = "person"


class ChangedUser(Body):
    disabled: bool = Field(description="`true` ends the user's sessions and tokens for good.")


class UserRoles(Body):
    roles: Annotated[list[Name], Field(min_length=1, max_length=MAX_ROLES_HELD)]


class RoleSaid(Body):
    """What is left out is emptied: a role is said anew as a whole."""

    summary: Annotated[str, StringConstraints(max_length=300, pattern=r"^[^\x00-\x1f\x7f]*$")] = ""
    permissions: Annotated[list[Name], Field(min_length=1, max_length=200)]


class NewRole(RoleSaid):
    name: Annotated[str, StringConstraints(max_length=256)]


class NewTenant(Body):
    name: Annotated[str, StringConstraints(max_length=256)]
    admin: Annotated[str, StringConstraints(max_length=256)] | None = Field(
        None, description="Name of a user who becomes its first administrator."
    )


class ChangedTenant(Body):
    suspended: bool


class EmptiedTenant(Body):
    confirm: Annotated[str, StringConstraints(max_length=64)] = Field(description="The tenant's name.")


class UserFilter(Page):
    username: Annotated[str, StringConstraints(max_length=256)] | None = None
    prefix: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = Field(
        None, description="What the user name begins with."
    )
    role: Name | None = None
    kind: Literal["person", "service"] | None = None
    scope: Literal["tenant", "platform"] = Field(
        "tenant", description="`platform`: users of every tenant; needs `tenant:manage`."
    )


class TenantFilter(Page):
    name: Annotated[str, StringConstraints(max_length=256)] | None = None


class UserScope(Query):
    scope: Literal["tenant", "platform"] = Field(
        "tenant", description="`platform`: reaches users of every tenant; needs `tenant:manage`."
    )
