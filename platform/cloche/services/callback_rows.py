"""The delivery of a job's end, written in the transaction of that end: both are there, or neither."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, case, func, insert, select

from cloche.clock import to_rfc3339, uuid7
from cloche.db import tables as t
from cloche.domain.callbacks import Delivery, parse_url
from cloche.domain.states import REASON_TEXT, Reason

_JOBS = "/api/v1/jobs"


def add(connection: Connection, rows: Sequence[Mapping[str, Any]], now: int) -> None:
    """A delivery for each of the jobs, which have just ended and ask for one. ``rows``: the columns of ``job`` as they are now.

    A job whose receiver has answered 410 gets none any more.
    """
    delivery = t.callback_delivery
    gone = func.sum(case((delivery.c.status == Delivery.GONE.value, 1), else_=0))
    counted = select(delivery.c.job_id, func.count(), gone).group_by(delivery.c.job_id)
    query = counted.where(delivery.c.job_id.in_([row["id"] for row in rows]))
    known = {job_id: (count, refused) for job_id, count, refused in connection.execute(query)}
    new = []
    for row in rows:
        count, refused = known.get(row["id"], (0, 0))
        if not refused:
            new.append(_delivery(row, count + 1, now))
    if new:
        connection.execute(insert(delivery), new)


def _delivery(row: Mapping[str, Any], number: int, now: int) -> dict[str, Any]:
    delivery_id = uuid7()
    return {
        "id": delivery_id,
        "tenant_id": row["tenant_id"],
        "job_id": row["id"],
        "number": number,
        "event": row["state"],
        "receiver": parse_url(row["callback"]["url"]).authority,
        "body": json.dumps(event_of(row, delivery_id, number), separators=(",", ":")),
        "status": Delivery.PENDING.value,
        "attempts": 0,
        "created_at": now,
        "next_try_at": now,
        "claimed_until": 0,
    }


def event_of(row: Mapping[str, Any], delivery_id: str, number: int) -> dict[str, Any]:
    """The CloudEvent (1.0) that the receiver gets. Nothing in it was written by the plugin or by whoever submitted the job but the plugin's
    name: payload, result, error, name and labels stay here, and are to be had at ``links`` with a credential."""
    here = f"{_JOBS}/{row['id']}"
    return {
        "specversion": "1.0",
        "id": delivery_id,
        "source": _JOBS,
        "type": f"cloche.job.{row['state']}",
        "subject": row["id"],
        "time": to_rfc3339(row["finished_at"]),
        "datacontenttype": "application/json",
        "data": {
            "id": row["id"],
            "batch_id": row["batch_id"],
            "tenant_id": row["tenant_id"],
            "type": row["type"],
            "version": row["plugin_version"],
            "status": row["state"],
            "reason": row["reason"],
            "reason_text": REASON_TEXT[Reason(row["reason"])],
            "attempt": row["attempt"],
            "number": number,
            "created_at": to_rfc3339(row["created_at"]),
            "started_at": to_rfc3339(row["started_at"]),
            "finished_at": to_rfc3339(row["finished_at"]),
            "links": {"job": here, "outputs": f"{here}/outputs", "logs": f"{here}/logs"},
        },
    }
