"""Rate limits at the door: refused before anything is looked up where that is known, counted once it is known who asks, told in each answer.

The headers are those of draft-ietf-httpapi-ratelimit-headers-10: ``RateLimit-Policy: "user";q=30000;w=60``, ``RateLimit: "user";r=29990;t=1``.
"""

from __future__ import annotations

from flask import Flask, Response, g, request

from cloche.errors import RateLimited
from cloche.services.rate_limits import WINDOW_MS, RateLimits, Standing
from cloche.web.edge import client_key

_FREE = frozenset({"/healthz"})


def register(app: Flask, limits: RateLimits) -> None:
    """Nothing is registered when no limit is set."""
    if not limits.policies:
        return
    policy = ", ".join(f'"{name}";q={limit};w={WINDOW_MS // 1000}' for name, limit in limits.policies.items())

    @app.before_request
    def gate() -> None:
        if request.path not in _FREE:
            known = limits.refused("address", client_key())
            if known is not None:
                g.standings = [known]
                _refuse(known)

    @app.after_request
    def tell(response: Response) -> Response:
        if request.path in _FREE:
            return response
        if "standings" not in g:  # nobody asked who it was
            g.standings = limits.charge([("address", client_key())])
        if g.standings:
            tightest = min(g.standings, key=lambda one: (-one.wait_s, one.left / one.limit))
            response.headers["RateLimit-Policy"] = policy
            response.headers["RateLimit"] = _told(tightest)
        return response


def charge(limits: RateLimits, user_id: str | None = None, token_id: str | None = None) -> None:
    """Count the current request for its address and, where they are known, its user and token. Once per request.

    Raises:
        RateLimited: one of them has asked too often.
    """
    if "standings" in g or request.path in _FREE:
        return
    who = [("address", client_key())]
    if user_id is not None:
        who.append(("user", user_id))
    if token_id is not None:
        who.append(("token", token_id))
    g.standings = limits.charge(who)
    for standing in g.standings:
        if standing.wait_s:
            _refuse(standing)


def _refuse(standing: Standing) -> None:
    whose = {"address": "this address", "user": "this user", "token": "this token"}[standing.policy]
    detail = f"More than {standing.limit} requests a minute came from {whose}. Try again in {standing.wait_s} s."
    raise RateLimited(detail, retry_after=standing.wait_s)


def _told(standing: Standing) -> str:
    """``t``: seconds until all of the limit is there again, or until there is anything at all."""
    used = standing.limit - standing.left
    again = standing.wait_s or -(-used * WINDOW_MS // (standing.limit * 1000))
    return f'"{standing.policy}";r={max(0, standing.left)};t={max(0, again)}'
