"""Retention of the trail: old batches are deleted, up to a signed mark that the rest is verified from."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, insert, select, union

from cloche.audit.keys import KeyRing
from cloche.audit.merkle import Frontier
from cloche.audit.note import note_hash, open_checkpoint
from cloche.audit.offline import Trust, verify_store
from cloche.audit.prune import Mark
from cloche.clock import to_rfc3339
from cloche.db import tables
from cloche.db.audit_log import AuditEntry, AuditLog
from cloche.db.engine import Database, now_ms
from cloche.domain.events import Action
from cloche.errors import EnvironmentProblem
from cloche.services.audit_chain import SAYS, stored_chain, stored_mark
from cloche.services.audit_keeping import operator
from cloche.services.auditing import TRAIL

LEAST_MS = 86_400_000  # younger events stay whatever is asked
_CHUNK = 5_000  # leaves in one transaction, so that the sealer and everybody else come in between

_event, _leaf, _batch = tables.audit_event, tables.audit_leaf, tables.audit_batch
_person, _prune, _sink = tables.audit_person, tables.audit_prune, tables.audit_sink


@dataclass(frozen=True)
class Pruned:
    """Leaves before ``upto`` are deleted; ``events``: how many of them now."""

    upto: int
    events: int


def prune(db: Database, keyring: KeyRing, before_ms: int, *, least_ms: int = LEAST_MS) -> Pruned:
    """Delete every batch that was closed before ``before_ms``, with its events. What an earlier call left half done is finished.

    On PostgreSQL ``db`` is that of the tables' owner.

    Raises:
        EnvironmentProblem: too far: younger than ``least_ms``, not yet sent where checkpoints are sent to, or the trail does not verify.
        TamperedTrail: the trail is not what was signed.
        Unavailable: the database does not answer.
    """
    if before_ms > db.now_ms() - least_ms:
        raise EnvironmentProblem(
            f"too far: what is younger than {least_ms // 3_600_000} hours stays; give a time before {to_rfc3339(db.now_ms() - least_ms)}"
        )
    verdict = verify_store(db.url, Trust(keyring.verifier, keyring.hmac_keys(), keyring.held()))
    if verdict.first_bad is not None:
        raise EnvironmentProblem(
            f"the trail does not verify ({verdict.first_bad.why}): nothing is deleted, see `cloche audit verify`"
        )
    mark = db.read(lambda connection: _mark(connection, keyring, before_ms))
    if mark is not None:
        chain = db.read(lambda connection: stored_chain(connection, keyring.verifier))
        row = {
            "number": mark.number,
            "upto": mark.upto,
            "at": mark.at,
            "note": keyring.sign_note(mark.body(), chain.last),
        }
        audit = AuditLog(keyring.current_hmac_key)

        def unit(connection: Connection) -> None:
            connection.execute(insert(_prune), row)
            details = {"upto": mark.upto, "batch": mark.batch, "before": to_rfc3339(before_ms), "prune": mark.number}
            audit.record(connection, AuditEntry(operator(connection), Action.AUDIT_PRUNE, TRAIL, details=details))

        db.write(unit)
    upto = db.read(lambda connection: connection.scalar(select(func.max(_prune.c.upto)))) or 0
    return Pruned(upto, _delete(db, upto))


def _mark(connection: Connection, keyring: KeyRing, before_ms: int) -> Mark | None:
    """The mark to be made; None where nothing more is old enough."""
    chain = stored_chain(connection, keyring.verifier)
    last = stored_mark(connection, chain)
    newest = connection.scalar(select(func.max(_batch.c.number))) or 0
    query = select(_batch.c.number, _batch.c.size, _batch.c.at, _batch.c.note)
    found = connection.execute(
        query.where(_batch.c.at < before_ms, _batch.c.number < newest).order_by(_batch.c.number.desc()).limit(1)
    ).first()
    if found is None or (last is not None and found.size <= last.upto):
        return None
    _refuse_unsent(connection, found.number)
    point = open_checkpoint(found.note, chain.of_batch(found.number))
    frontier = Frontier() if last is None else last.frontier()
    hashes = select(_leaf.c.hash).where(_leaf.c.seq >= frontier.size, _leaf.c.seq < found.size).order_by(_leaf.c.seq)
    for digest in connection.scalars(hashes, execution_options={"yield_per": _CHUNK}):
        frontier.append(bytes.fromhex(digest))
    if (frontier.size, frontier.root()) != (point.size, point.root):
        raise EnvironmentProblem(
            "the leaves do not give the signed root: nothing is deleted, see `cloche audit verify`"
        )
    number = 0 if last is None else last.number + 1
    now = now_ms(connection)
    previous = note_hash(found.note)
    nodes = tuple(frontier.nodes)
    return Mark(keyring.origin, number, point.size, point.number + 1, previous, point.at, now, nodes)


def _refuse_unsent(connection: Connection, number: int) -> None:
    for place, sent in connection.execute(select(_sink.c.place, _sink.c.number)):
        if sent is None or sent < number:
            raise EnvironmentProblem(
                f"too far: batch {number} is not vouched for at {place} yet, where checkpoints are sent to"
            )


def _delete(db: Database, upto: int) -> int:
    """Events first: a leaf without its event says what is missing, an event without its leaf would look new."""
    count = 0
    while True:
        first = db.read(lambda connection: connection.scalar(select(func.min(_leaf.c.seq)).where(_leaf.c.seq < upto)))
        if first is None:
            break
        here = (_leaf.c.seq >= first) & (_leaf.c.seq < min(upto, first + _CHUNK))

        def unit(connection: Connection, here: object = here) -> int:
            ids = select(_leaf.c.event_id).where(here)  # type: ignore[arg-type]
            gone = connection.execute(delete(_event).where(_event.c.id.in_(ids))).rowcount
            connection.execute(delete(_leaf).where(here))  # type: ignore[arg-type]
            return gone

        count += db.write(unit)
    db.write(lambda connection: _tidy(connection, upto))
    return count


def _tidy(connection: Connection, upto: int) -> None:
    """Batches but for those that announce something, and people whom no event names any more."""
    connection.execute(delete(_batch).where(_batch.c.size <= upto, ~SAYS))
    if upto:
        named = union(select(_event.c.actor), select(_event.c.ip).where(_event.c.ip.is_not(None)))
        connection.execute(delete(_person).where(_person.c.commitment.not_in(named)))
