"""Queries about one job's parts: its attempts, trace, log and stream."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from cloche.web.models import MAX_LIMIT, Cursor, Reveal
from cloche.web.routing import Query

MAX_EVENTS = 1_000  # of a trace in one page: nearly every job's whole


class AttemptQuery(Reveal):
    cursor: Cursor | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_LIMIT)] = MAX_LIMIT


class TraceQuery(Query):
    cursor: Cursor | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_EVENTS)] = MAX_EVENTS


class LogQuery(Reveal):
    attempt: Annotated[int, Field(ge=1, le=1_000_000)] | None = None


class EventQuery(Query):
    last_event_id: Annotated[str, StringConstraints(max_length=40)] | None = Field(
        None, description="Where to go on, for clients that cannot send `Last-Event-ID`."
    )
