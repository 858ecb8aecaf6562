"""One number that is another one after every change of who may do what, so that actors can be remembered between requests.

Whoever remembers reads the number *before* what they remember, and asks for it again before they use it: the same number means that nothing
was committed in between. The value is random, so that a database that was restored never comes to a number that somebody still remembers.
"""

from __future__ import annotations

import secrets

from sqlalchemy import Connection

from cloche.db.credential_tables import access_epoch
from cloche.db.dialect import insert_or

QUERY = "SELECT value FROM access_epoch WHERE id = 1"
_BITS = 62


def move(connection: Connection) -> None:
    """Say that something changed, in the transaction that changes it. On PostgreSQL changers wait here for each other's commit."""
    statement = insert_or(connection, access_epoch).values(id=1, value=secrets.randbits(_BITS))
    connection.execute(statement.on_conflict_do_update(index_elements=["id"], set_={"value": statement.excluded.value}))
