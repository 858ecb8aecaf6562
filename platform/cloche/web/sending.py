"""Answers that are sent bit by bit hold a thread each, for as long as their client likes. This bounds how many, in all and per address.

Short files (the dashboard's own among them) are read whole and handed over at once: they hold nobody.
"""

from __future__ import annotations

from flask import Flask, Response, request

from cloche.errors import Unavailable
from cloche.web.edge import client_key
from cloche.web.problems import problem
from cloche.web.reading import Readers

_WHOLE = 1 << 20  # bytes
_STREAMS = "text/event-stream"  # web/slots.py bounds these


def register(app: Flask, places: Readers) -> None:
    """Call it after what puts headers on answers: those of its own refusals are to have them too."""

    @app.after_request
    def bound(response: Response) -> Response:
        if not response.is_streamed or response.mimetype == _STREAMS or request.method == "HEAD":
            return response
        response.direct_passthrough = False  # or nobody would tell the response that it has been sent
        length = response.content_length
        if length is not None and length <= _WHOLE:
            response.set_data(response.get_data())
            return response
        key = client_key()
        try:
            places.enter(key)
        except Unavailable:
            response.close()
            detail = "Too many downloads are on their way at once. Try again in a moment."
            return problem(503, "unavailable", "Temporarily unavailable", detail, headers={"Retry-After": "1"})
        response.call_on_close(lambda: places.leave(key))
        return response
