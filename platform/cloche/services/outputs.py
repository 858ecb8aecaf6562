"""A finished attempt's files become artifacts of its tenant, in the transaction that accepts the result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from sqlalchemy import Connection, insert

from cloche.db import tables as t
from cloche.domain.jobs import ClaimedJob, OutputFile
from cloche.domain.quotas import NO_QUOTAS, Quotas
from cloche.domain.states import Reason
from cloche.errors import PluginFailure, QuotaExceeded
from cloche.services import quota_rows
from cloche.staging.accept import media_type


def record_outputs(
    connection: Connection, job: ClaimedJob, outputs: Sequence[OutputFile], now: int, defaults: Quotas = NO_QUOTAS
) -> None:
    """Insert the artifact rows of the outputs that are kept here; those sent to a remote have none. ``defaults``: the platform's quotas.

    Raises:
        PluginFailure: ``storage_quota``: they are more than the tenant, or whoever submitted the job, may store.
    """
    rows: list[dict[str, Any]] = [
        {
            "id": out.artifact_id,
            "tenant_id": job.tenant_id,
            "sha256": out.sha256,
            "size": out.size,
            "name": PurePosixPath(out.path).name[:255],
            "media_type": media_type(out.path),
            "created_by": job.submitted_by,
            "created_at": now,
            "job_id": job.id,
        }
        for out in outputs
        if out.artifact_id is not None
    ]
    if rows:
        connection.execute(insert(t.artifact), rows)
        owner = job.tenant_id, job.submitted_by
        quotas = quota_rows.in_force(connection, defaults, *owner)
        try:
            quota_rows.store(connection, quotas, *owner, sum(row["size"] for row in rows))
        except QuotaExceeded as error:
            raise PluginFailure(Reason.STORAGE_QUOTA, error.detail) from None
