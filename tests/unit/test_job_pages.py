"""Lists of jobs: which index answers, so that no page reads all of a tenant's jobs."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import create_engine, event

from cloche.clock import uuid7
from cloche.db import tables as t
from cloche.domain.permissions import system_actor
from cloche.services import job_pages
from cloche.services.cursors import encode_moment

_BY_TIME = "ix_job_tenant_id_created_at"


@pytest.mark.parametrize(
    ("filters", "index", "windowed"),
    [
        ({}, _BY_TIME, False),
        ({"since": "2026-01-01T00:00:00Z", "until": "2026-02-01T00:00:00Z"}, _BY_TIME, False),
        ({"status": "completed"}, "ix_job_tenant_id_state_created_at", False),
        ({"type": "noop", "since": "2026-01-01T00:00:00Z"}, "ix_job_tenant_id_type_created_at", False),
        ({"submitted_by": "anna"}, "ix_job_tenant_id_submitted_by_created_at", False),
        ({"label": "a=b"}, _BY_TIME, True),
        ({"priority": 0}, _BY_TIME, True),
        ({"version": "1.0.0", "until": "2026-02-01T00:00:00Z"}, _BY_TIME, True),
        ({"queue": "fast"}, _BY_TIME, True),
        ({"status": "completed", "type": "noop"}, "_created_at", True),
    ],
)
@pytest.mark.parametrize("cursor", [None, encode_moment(1_767_225_600_000, uuid7())])
def test_an_index_in_the_order_of_the_list_answers(
    filters: dict[str, Any], index: str, windowed: bool, cursor: str | None
) -> None:
    engine = create_engine("sqlite://")
    t.metadata.create_all(engine)
    said: list[tuple[str, Any]] = []
    event.listen(engine, "before_cursor_execute", lambda _c, _u, text, values, *_: said.append((text, values)))
    with engine.connect() as connection:
        assert job_pages.page(connection, system_actor("t"), filters, cursor, 50) == ([], None)
        asked = list(said)
        assert len(asked) == 1 + windowed
        for text, values in asked:
            rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", values)
            plan = "\n".join(row[3] for row in rows)
            assert f"{index} (tenant_id=?" in plan
            assert "TEMP B-TREE" not in plan
