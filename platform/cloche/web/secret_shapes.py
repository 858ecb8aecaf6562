"""Bodies and answers of secrets. No answer has a field for a value."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from cloche.domain.secrets import MAX_DESCRIPTION, MAX_GRANTS, MAX_VALUE, MAX_VERSIONS, NAME_PATTERN, PLUGIN_PATTERN
from cloche.web.routing import Body, Shape

SecretName = Annotated[str, StringConstraints(pattern=rf"^{NAME_PATTERN}$")]
Description = Annotated[str, StringConstraints(max_length=MAX_DESCRIPTION, pattern=r"^[^\x00-\x1f\x7f]*$")]
Value = Annotated[str, Field(description=f"Text of 1 to {MAX_VALUE} bytes of UTF-8. It is never answered.")]


class NewSecret(Body):
    name: SecretName
    value: Value
    description: Description = ""


class ChangedSecret(Body):
    value: Value
    description: Description | None = Field(None, description="Absent: as it is.")


class Grant(Body):
    plugin: Annotated[str, StringConstraints(pattern=rf"^{PLUGIN_PATTERN}$")]
    versions: Annotated[str, StringConstraints(max_length=MAX_VERSIONS)] = Field(
        description="A PEP 440 specifier such as `==1.2.0` or `>=1,<2`; `*`: every version."
    )


class Grants(Body):
    grants: Annotated[list[Grant], Field(max_length=MAX_GRANTS)]


class GrantOut(Shape):
    plugin: str
    versions: str
    granted_at: str


class SecretOut(Shape):
    id: str
    name: str
    description: str
    value_version: int
    masked: bool
    grants: list[GrantOut]
    version: int
    created_by: str | None
    created_at: str
    updated_by: str | None
    updated_at: str
    last_used_at: str | None
