"""``ETag`` and ``If-Match`` of what has a version that counts its changes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from flask import request

from cloche.errors import Conflict
from cloche.web.problems import PreconditionFailed, PreconditionRequired

_ETAG = re.compile(r'^"v([0-9]{1,9})"$')


def etag(shown: Mapping[str, Any]) -> dict[str, str]:
    """The header for an answer; empty where there is no version, as of what nobody can change."""
    return {} if shown["version"] is None else {"ETag": f'"v{shown["version"]}"'}


def expected(what: str) -> int | None:
    """The version named by If-Match; None for ``*``, which means whichever is there.

    Raises:
        PreconditionRequired, PreconditionFailed: there is no If-Match, or it is no ETag of ours.
    """
    given = request.headers.get("If-Match")
    if given is None:
        raise PreconditionRequired(f"Send If-Match with the {what}'s ETag, so that nobody's change is lost.")
    if given.strip() == "*":
        return None
    match = _ETAG.match(given.strip())
    if match is None:
        raise _changed(what)
    return int(match[1])


@contextmanager
def unchanged(what: str) -> Iterator[None]:
    """The version is compared where the change is made, in one transaction: its refusal, with code ``<what>-changed``, is a failed condition."""
    try:
        yield
    except Conflict as error:
        if error.code != f"{what}-changed":
            raise
        raise _changed(what) from None


def _changed(what: str) -> PreconditionFailed:
    return PreconditionFailed(f"The {what} has changed since; read it again.")
