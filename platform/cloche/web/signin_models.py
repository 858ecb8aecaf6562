"""Bodies of what one signs in with: sessions, tokens, passwords."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from cloche.services.tokens import MAX_ADDRESSES
from cloche.web.models import Duration, Name
from cloche.web.routing import Body


class SignIn(Body):
    username: Annotated[str, StringConstraints(max_length=256)]
    password: Annotated[str, StringConstraints(max_length=2_048)]


class NewToken(Body):
    name: Name
    scopes: (
        Annotated[
            list[Name],
            Field(
                max_length=64,
                description="Permissions; when absent all of one's own that need no naming.",
            ),
        ]
        | None
    ) = None
    expires_in: Duration | None = Field(None, description="How long it is valid; for ever when absent.")
    addresses: (
        Annotated[
            list[Annotated[str, StringConstraints(max_length=49)]],
            Field(
                min_length=1, max_length=MAX_ADDRESSES, description="Networks it is taken from; anywhere when absent."
            ),
        ]
        | None
    ) = None


class NewPassword(Body):
    current_password: Annotated[str, StringConstraints(max_length=2_048)]
    new_password: Annotated[str, StringConstraints(max_length=2_048)]
    revoke_tokens: bool = Field(False, description="Revoke all of one's tokens, too.")


class UsedReset(Body):
    code: Annotated[str, StringConstraints(max_length=200)]
    new_password: Annotated[str, StringConstraints(max_length=2_048)]
    revoke_tokens: bool = Field(False, description="Revoke all of the user's tokens, too.")
