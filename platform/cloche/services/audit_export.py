"""The lines of an export: the whole trail of a tenant, or what a filter finds with a proof for each event."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy import Connection, Select, select, union

from cloche.audit.chain import Chain
from cloche.audit.event import Event, canonical_bytes, leaf_bytes
from cloche.audit.export import ExportWriter
from cloche.audit.filtered import FilteredWriter
from cloche.audit.keys import KeyRing
from cloche.audit.merkle import leaf_hash
from cloche.audit.note import Checkpoint, open_checkpoint
from cloche.audit.trail import Batch, Person, Prune
from cloche.db import tables
from cloche.db.engine import now_ms
from cloche.services.audit_chain import SAYS, announcing_notes, stored_chain, stored_mark
from cloche.services.audit_pages import EVENT, matching
from cloche.services.proofs import Proofs

_event, _leaf, _batch, _person = tables.audit_event, tables.audit_leaf, tables.audit_batch, tables.audit_person
_prune = tables.audit_prune
_BATCH = tuple(_batch.c[name] for name in Batch._fields)
_STREAMED = {"yield_per": 500}
NEWEST = select(*_BATCH).order_by(_batch.c.number.desc()).limit(1)


def newest(connection: Connection, chain: Chain) -> tuple[Checkpoint, str] | None:
    """The newest checkpoint and its note; None before the first.

    Raises:
        BadNote: it is not signed by the key in force.
    """
    row = connection.execute(NEWEST).first()
    return None if row is None else (open_checkpoint(row.note, chain.of_batch(row.number)), row.note)


def whole(connection: Connection, keyring: KeyRing, tenant_id: str) -> Iterator[str]:
    """The tenant's trail as lines of :mod:`cloche.audit.export`.

    Raises:
        TamperedTrail: the batches' announcements do not hold.
        EnvironmentProblem: the key in force is not here.
    """
    chain = stored_chain(connection, keyring.verifier)
    writer = ExportWriter(keyring.origin, tenant_id, now_ms(connection))
    yield writer.head()
    upto = 0
    for row in connection.execute(select(*(_prune.c[name] for name in Prune._fields)).order_by(_prune.c.number)):
        yield writer.prune(Prune._make(row))
        upto = row.upto
    if upto:  # before those of the leaves that are left
        for row in connection.execute(select(*_BATCH).where(SAYS, _batch.c.size <= upto).order_by(_batch.c.number)):
            yield writer.batch(Batch._make(row))
    for row in connection.execute(_people([_event.c.tenant_id == tenant_id])):
        yield writer.person(Person._make(row))
    yield from _sealed(connection, writer, tenant_id, upto)
    fresh = ~select(_leaf.c.seq).where(_leaf.c.event_id == _event.c.id).exists()
    rest = select(*EVENT).where(_event.c.tenant_id == tenant_id, fresh).order_by(_event.c.id)
    for row in connection.execute(rest, execution_options=_STREAMED):
        yield writer.event(Event._make(row), None, None)
    yield writer.end(lambda body: keyring.sign_note(body, chain.last))


def some(connection: Connection, keyring: KeyRing, tenant_id: str, filters: Mapping[str, Any]) -> Iterator[str]:
    """What the filters find, oldest first, as lines of :mod:`cloche.audit.filtered`; raises as :func:`whole`."""
    chain = stored_chain(connection, keyring.verifier)
    writer = FilteredWriter(keyring.origin, tenant_id, now_ms(connection), filters)
    yield writer.head()
    for note in announcing_notes(connection):
        yield writer.announcement(note)
    head = newest(connection, chain)
    proofs = None
    if head is not None:
        yield writer.checkpoint(head[1])
        proofs = Proofs(connection, head[0], stored_mark(connection, chain))
    conditions = matching(connection, tenant_id, filters)
    for row in connection.execute(_people(conditions)):
        yield writer.person(Person._make(row))
    query = select(_leaf.c.seq, _leaf.c.hash, *EVENT).join_from(
        _event, _leaf, _leaf.c.event_id == _event.c.id, isouter=True
    )
    rows = connection.execute(query.where(*conditions).order_by(_event.c.id), execution_options=_STREAMED)
    for row in rows:
        path = None if row.seq is None or proofs is None else proofs.path(row.seq, bytes.fromhex(row.hash))
        yield writer.proven(Event._make(row[2:]), row.seq, row.hash, path)
    yield writer.end(lambda body: keyring.sign_note(body, chain.last))


def _people(conditions: list[Any]) -> Select[Any]:
    used = union(
        select(_event.c.actor).where(*conditions), select(_event.c.ip).where(*conditions, _event.c.ip.is_not(None))
    )
    return select(*(_person.c[name] for name in Person._fields)).where(_person.c.commitment.in_(used))


def _sealed(connection: Connection, writer: ExportWriter, tenant_id: str, upto: int) -> Iterator[str]:
    leaves = select(_leaf.c.seq, _leaf.c.hash, *EVENT).join_from(
        _leaf, _event, _leaf.c.event_id == _event.c.id, isouter=True
    )
    query = select(*_BATCH).where(_batch.c.size > upto).order_by(_batch.c.number)
    batches = connection.execute(query, execution_options=_STREAMED)
    following = next(batches, None)
    leaves = leaves.where(_leaf.c.seq >= upto).order_by(_leaf.c.seq)
    leaves = leaves.execution_options(across_tenants="of others' events the hashes alone are exported")
    rows = connection.execute(leaves, execution_options=_STREAMED)
    for row in rows:
        if row.tenant_id == tenant_id:
            yield writer.event(Event._make(row[2:]), row.seq, row.hash)
        elif _is_sealed(row):
            yield writer.foreign(row.seq, row.hash)
        else:
            yield writer.lost(row.seq, row.hash)
        while following is not None and following.size <= row.seq + 1:
            yield writer.batch(Batch._make(following))
            following = next(batches, None)


def _is_sealed(row: Any) -> bool:
    """Whether the event is there and the one its leaf covers. Else the tenant it names proves nothing: whoever removes an event, or gives it
    to another tenant, would have this tenant's export signed without it."""
    if row.id is None:
        return False
    event = Event._make(row[2:])
    try:
        return leaf_hash(leaf_bytes(canonical_bytes(event), event.mac)).hex() == str(row.hash)
    except (TypeError, ValueError, AttributeError):
        return False
