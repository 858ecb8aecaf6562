"""`audit.reads`: whoever is signed in and reads something is in the record before the answer is sent."""

from __future__ import annotations

from flask import Flask, Response, g, request

from cloche.domain.events import Action
from cloche.domain.permissions import Actor
from cloche.errors import Unavailable
from cloche.services.audit_reads import Reads
from cloche.web.problems import problem

_OWN = "/api/v1/audit"  # reads of the trail are recorded always, and there


def register(app: Flask, reads: Reads) -> None:
    """Successful GETs of somebody signed in, of the API and of pages; one event for the same read within a minute."""

    @app.after_request
    def record(response: Response) -> Response:
        actor: Actor | None = g.get("actor")
        if request.method != "GET" or actor is None or response.status_code >= 400 or request.endpoint == "static":
            return response
        if request.path.startswith(_OWN):
            return response
        try:
            reads.record(actor, Action.ACCESS_READ, f"GET {request.path}"[:255])
        except Unavailable as error:
            response.close()
            return problem(
                503, "unavailable", "Temporarily unavailable", f"The read cannot be recorded: {error.detail}"
            )
        return response
