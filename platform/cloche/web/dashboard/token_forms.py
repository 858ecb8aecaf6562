"""The form that asks for a token, as typed and as the API's body. Pure but for the time, which it is given."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cloche.clock import from_rfc3339
from cloche.web.dashboard.fields import lines

LIVES = {"7d": "7 days", "30d": "30 days", "90d": "90 days", "365d": "a year", "": "for ever"}
FIELDS = ("name", "expires_in", "scopes", "addresses")


@dataclass(frozen=True)
class TypedToken:
    """As the person left it. ``reach``: ``these`` are the ticked permissions, anything else all that need no naming."""

    name: str = ""
    expires_in: str = "90d"
    reach: str = "these"
    permission: Sequence[str] = field(default=())
    addresses: str = ""

    @classmethod
    def read(cls, form: Mapping[str, str], ticked: Sequence[str]) -> TypedToken:
        text = {name: form.get(name, "") for name in ("name", "expires_in", "reach", "addresses")}
        return cls(permission=tuple(ticked), **text)

    def fault(self) -> str | None:
        """What the API would take, and nobody means: a token that may do nothing."""
        return "Tick at least one." if self.reach == "these" and not self.permission else None

    def body(self) -> dict[str, Any]:
        """What ``POST /tokens`` would take."""
        made: dict[str, Any] = {"name": self.name.strip()}
        if self.expires_in:
            made["expires_in"] = self.expires_in
        if self.reach == "these":
            made["scopes"] = list(self.permission)
        if networks := lines(self.addresses):
            made["addresses"] = networks
        return made


def by_life(items: Collection[Mapping[str, Any]], now_ms: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Tokens that are valid, and those that have ended, each with how (``ended``)."""
    valid: list[dict[str, Any]] = []
    over: list[dict[str, Any]] = []
    for item in items:
        ends = item["expires_at"]
        ended = "revoked" if item["revoked_at"] else "expired" if ends and from_rfc3339(ends) <= now_ms else None
        (over if ended else valid).append({**item, "ended": ended})
    return valid, over
