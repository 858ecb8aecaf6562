"""A request begins and ends in nobody's tenant. In between ``web/auth.py`` says whose it is; see :mod:`cloche.db.scope`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from flask import Flask

from cloche.db import scope


def register(app: Flask) -> None:
    """Wrap the app. What it returns is made after the request has been taken down, bit by bit: that, and what is called when it is closed,
    belongs to the tenant that the request acted in. The thread itself belongs to the server."""
    inner: Callable[[dict[str, Any], Any], Iterable[bytes]] = app.wsgi_app

    def wrapped(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        with scope.nobodys():
            return scope.Kept(inner(environ, start_response))

    app.wsgi_app = wrapped  # type: ignore[method-assign]
