"""What an operator does to the trail itself, on the home's own files and database: a new key, and the word that a backup was restored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from cloche.audit.chain import Chain, open_kept
from cloche.audit.keys import KeyRing, hmac_key_id
from cloche.audit.note import Checkpoint, Gap, PublicKey, note_hash, notes_in
from cloche.clock import uuid7
from cloche.db import tables
from cloche.db.audit_log import AuditEntry, AuditLog
from cloche.db.engine import Database
from cloche.domain.events import Action
from cloche.domain.permissions import Actor, system_actor
from cloche.errors import EnvironmentProblem
from cloche.services.audit_chain import stored_chain
from cloche.services.auditing import TRAIL
from cloche.services.sealer import Said, Sealer

_batch, _tenant = tables.audit_batch, tables.tenant


@dataclass(frozen=True)
class Lost:
    """Events ``first`` to ``last`` were lost, says the trail from now on."""

    first: int
    last: int


def operator(connection: Connection) -> Actor:
    """Who acts on the machine itself. The first tenant's trail has what concerns the platform.

    Raises:
        EnvironmentProblem: there is no tenant yet.
    """
    tenant_id = connection.scalar(select(_tenant.c.id).order_by(_tenant.c.created_at, _tenant.c.id).limit(1))
    if tenant_id is None:
        raise EnvironmentProblem("there is no tenant yet: start the platform once")
    return system_actor(tenant_id, "operator")


def rotate_signing_key(db: Database, keyring: KeyRing) -> PublicKey:
    """Announce a new signing key in a batch that the old one signs; from the next batch on it signs. The old private key is removed.

    The new key is on the disk before the trail knows it: whatever ends this half way is put right by doing it again.

    Raises:
        TamperedTrail: the sealer refuses to sign on.
        EnvironmentProblem: the keys cannot be used.
        Unavailable: the database does not answer.
    """
    before = db.read(lambda connection: stored_chain(connection, keyring.verifier)).last
    made = keyring.add_signing_key()
    audit, details = AuditLog(keyring.current_hmac_key), {"before": before.id.hex(), "after": made.id.hex()}

    def record(connection: Connection) -> None:
        audit.record(connection, _rotated(operator(connection), "key:audit", details))

    Sealer(db, keyring, uuid7()).announce(Said(key=made), record)
    keyring.drop_signing_keys(made)
    return made


def rotate_hmac_key(db: Database, keyring: KeyRing) -> None:
    """Put a new HMAC key in the place of the one in use. What the old one signed is sealed for another day, and verified for ever.

    Raises: as :func:`rotate_signing_key`.
    """
    before = hmac_key_id(keyring.current_hmac_key())
    keyring.rotate_hmac(db.now_ms())
    audit = AuditLog(keyring.current_hmac_key)
    details = {"before": before, "after": hmac_key_id(keyring.current_hmac_key())}
    db.write(lambda c: audit.record(c, _rotated(operator(c), "key:audit-hmac", details)))


def _rotated(actor: Actor, key: str, ids: Mapping[str, str]) -> AuditEntry:
    return AuditEntry(actor, Action.KEY_ROTATE, key, before=ids["before"], after=ids["after"], details=ids)


def declare_restore(db: Database, keyring: KeyRing, kept: str) -> Lost:
    """Say in a signed batch that the database was restored from a backup older than a checkpoint kept elsewhere.

    Args:
        kept: the checkpoint's note, or several: the newest counts.

    Raises:
        EnvironmentProblem: nothing was lost, or the checkpoint is of the time after the restore.
        TamperedTrail: the checkpoint is none of this platform's.
        Unavailable: the database does not answer.
    """

    def unit(connection: Connection) -> tuple[Checkpoint, str, int]:
        chain = stored_chain(connection, keyring.verifier)
        point, note = _newest(kept, chain, keyring)
        here = connection.scalar(select(_batch.c.note).where(_batch.c.number == point.number))
        if here == note:
            raise EnvironmentProblem("the trail holds this checkpoint: nothing after it was lost that it could show")
        older = select(func.max(_batch.c.size)).where(_batch.c.at <= point.at)
        return point, note, connection.scalar(older) or 0

    point, note, first = db.read(unit)
    if first >= point.size:
        raise EnvironmentProblem(
            "the trail has other events from before that checkpoint: that is no restored backup, see `cloche audit verify --checkpoint`"
        )
    audit = AuditLog(keyring.current_hmac_key)
    details = {"first": first, "last": point.size - 1, "batch": point.number, "note_sha256": note_hash(note)}

    def record(connection: Connection) -> None:
        audit.record(connection, AuditEntry(operator(connection), Action.AUDIT_RESTORE, TRAIL, details=details))

    Sealer(db, keyring, uuid7()).announce(Said(gap=Gap(first, point.size, point.root)), record)
    return Lost(first, point.size - 1)


def _newest(kept: str, chain: Chain, keyring: KeyRing) -> tuple[Checkpoint, str]:
    opened = [(open_kept(note, chain, keyring.known()), note) for note in notes_in(kept)]
    return max(opened, key=lambda one: one[0].number)
