"""What the stored batches say of keys and restores, and the newest mark of retention."""

from __future__ import annotations

from sqlalchemy import Connection, or_, select

from cloche.audit.chain import Chain
from cloche.audit.event import TamperedTrail
from cloche.audit.note import BadNote, PublicKey
from cloche.audit.prune import Mark
from cloche.db import tables

_batch, _prune = tables.audit_batch, tables.audit_prune
_SAYS = or_(_batch.c.note.like("%\nkey %"), _batch.c.note.like("%\nrestored %"))
_ANNOUNCING = select(_batch.c.number, _batch.c.note).where(_SAYS).order_by(_batch.c.number)
_NEWEST = select(_prune.c.note).order_by(_prune.c.number.desc()).limit(1)
SAYS = _SAYS  # of a row of audit_batch: it announces something, and outlives retention


def announcing_notes(connection: Connection) -> list[str]:
    """The notes that lead from the first key to the one in force, and those that declare a restore, in order."""
    return [row.note for row in connection.execute(_ANNOUNCING)]


def stored_chain(connection: Connection, pinned: PublicKey) -> Chain:
    """
    Raises:
        TamperedTrail: a batch that announces something is not signed by the key that was in force.
    """
    chain = Chain.of(pinned)
    for number, note in connection.execute(_ANNOUNCING):
        if not chain.follow(note):
            raise TamperedTrail(f"batch {number} announces a key or a restore, and is not signed by the key in force")
    return chain


def stored_mark(connection: Connection, chain: Chain) -> Mark | None:
    """
    Raises:
        TamperedTrail: the newest mark is not signed by a key of the trail.
    """
    note = connection.scalar(_NEWEST)
    if note is None:
        return None
    try:
        return chain.mark(note)
    except BadNote as error:
        raise TamperedTrail(f"the newest prune mark: {error}") from None
