"""A request begins and ends in nobody's tenant. In between ``web/auth.py`` says whose it is; see :mod:`cloche.db.scope`."""

from __future__ import annotations

from collections.abc import Generator

from flask import Flask, Response

from cloche.db import scope


def register(app: Flask) -> None:
    """Call it before anything that may look at a credential."""

    @app.before_request
    def begin() -> None:
        scope.act_in(None)  # the thread comes from somebody else's request

    @app.after_request
    def keep(response: Response) -> Response:
        if isinstance(response.response, Generator):  # it runs on after the request has been taken down
            response.response = scope.kept(response.response)
        return response

    @app.teardown_request
    def end(_error: BaseException | None) -> None:
        scope.act_in(None)
