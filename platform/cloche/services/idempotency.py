"""``Idempotency-Key``: for 24 hours the same key with the same body gets the first answer, and nothing happens a second time.

The answer is kept in the transaction of what it tells of. A key belongs to one user of one tenant.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import Connection, insert, select

from cloche.db import tables as t
from cloche.db.engine import now_ms
from cloche.domain.permissions import Actor
from cloche.errors import Invalid

IDEMPOTENCY_MS = 24 * 3_600_000


def replayed(connection: Connection, actor: Actor, key: str | None, digests: Collection[str]) -> dict[str, Any] | None:
    """The answer the key got before; None for a new key, or none. ``digests``: what may stand for the body, as ``JobVault`` gives them.

    Raises:
        Invalid: the key was used with another body.
    """
    if key is None:
        return None
    seen = t.idempotency
    fresh = seen.c.created_at > now_ms(connection) - IDEMPOTENCY_MS
    row = connection.execute(select(seen).where(_mine(actor, key), fresh)).mappings().one_or_none()
    if row is None:
        return None
    if row["body_sha256"] not in digests:
        raise Invalid(
            "this Idempotency-Key was used with another body in the last 24 h; take a new key", code="key-reused"
        )
    return dict(row["response"])


def remember(
    connection: Connection, actor: Actor, key: str, body_sha256: str, view: Mapping[str, Any], now: int
) -> None:
    """Keep the answer ``view``, which has the ``id`` of the job or batch that was made."""
    seen = t.idempotency
    row = {
        "tenant_id": actor.tenant_id,
        "user_id": actor.user_id,
        "key": key,
        "body_sha256": body_sha256,
        "job_id": view["id"],
        "response": dict(view),
        "created_at": now,
    }
    # Only one that is too old: another request's of this moment makes the insert fail, and the unit run again or its caller look again.
    connection.execute(seen.delete().where(_mine(actor, key), seen.c.created_at <= now - IDEMPOTENCY_MS))
    connection.execute(insert(seen), row)


def _mine(actor: Actor, key: str) -> Any:
    seen = t.idempotency
    return (seen.c.tenant_id == actor.tenant_id) & (seen.c.user_id == actor.user_id) & (seen.c.key == key)
