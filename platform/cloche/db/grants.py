"""On PostgreSQL: what the platform's own role may do with tables that belong to another role.

Everything with its own tables. With the record: add to it and read it. It can neither change a row nor drop the trigger that would refuse
that. A name that is to be forgotten it may delete from the people, and nothing else.
"""

from __future__ import annotations

import psycopg
from psycopg import sql
from sqlalchemy import make_url

from cloche.db.tables import metadata
from cloche.errors import EnvironmentProblem, Unavailable

_ALL = "SELECT, INSERT, UPDATE, DELETE"
_RECORD = {
    "audit_event": "SELECT, INSERT",
    "audit_leaf": "SELECT, INSERT",
    "audit_batch": "SELECT, INSERT",
    "audit_node": "SELECT, INSERT",
    "audit_prune": "SELECT",
    "audit_person": "SELECT, INSERT, DELETE",
    "alembic_version": "SELECT",
}


def apply(owner_url: str, platform_url: str) -> None:
    """Make the owner's every table's owner, and grant the platform's role what it needs. Safe to run again.

    Raises:
        EnvironmentProblem: the two are one role, or the owner may not take the tables over; the message says what to run.
        Unavailable: the server does not answer.
    """
    role, owner = make_url(platform_url).username, make_url(owner_url).username
    if not role or not owner or role == owner:
        raise EnvironmentProblem(
            "CLOCHE_DATABASE_OWNER_URL names the platform's own role: give the tables to another one"
        )
    try:
        with psycopg.connect(
            owner_url.replace("postgresql+psycopg://", "postgresql://", 1), connect_timeout=5
        ) as session:
            _take_over(session, owner, role)
            _grant(session, role)
    except psycopg.errors.UndefinedObject:
        raise EnvironmentProblem(f"PostgreSQL has no role {role}: CREATE ROLE it first") from None
    except psycopg.OperationalError as error:
        raise Unavailable(f"the database does not answer ({type(error).__name__})") from None


def _take_over(session: psycopg.Connection, owner: str, role: str) -> None:
    others = session.execute(
        "SELECT tablename FROM pg_tables WHERE schemaname = current_schema() AND tableowner <> %s", (owner,)
    ).fetchall()
    ours = sorted(name for (name,) in others if name in {*metadata.tables, "alembic_version"})
    name = sql.Identifier
    try:
        for table in ours:
            session.execute(sql.SQL("ALTER TABLE {} OWNER TO {}").format(name(table), name(owner)))
    except psycopg.errors.InsufficientPrivilege:
        raise EnvironmentProblem(
            f"{owner} may not take over {ours[0]}: as a superuser run REASSIGN OWNED BY {role} TO {owner} in this database, then this again"
        ) from None


def _grant(session: psycopg.Connection, role: str) -> None:
    to, name = sql.Identifier(role), sql.Identifier
    session.execute(sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(name(_schema(session)), to))
    for table in sorted({*metadata.tables, "alembic_version"}):
        rights = sql.SQL(_RECORD.get(table, _ALL))
        session.execute(sql.SQL("REVOKE ALL ON {} FROM {}").format(name(table), to))
        session.execute(sql.SQL("GRANT {} ON {} TO {}").format(rights, name(table), to))
    session.execute(
        sql.SQL("GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA {} TO {}").format(name(_schema(session)), to)
    )


def _schema(session: psycopg.Connection) -> str:
    row = session.execute("SELECT current_schema()").fetchone()
    return str(row[0]) if row else "public"
