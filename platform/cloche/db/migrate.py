"""Bring a database's schema up to date, or take it back, with Alembic. One at a time per database."""

from __future__ import annotations

import fcntl
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import DBAPIError

import cloche
from cloche import logs
from cloche.db.postgres_connection import open_engine
from cloche.db.postgres_errors import unavailable
from cloche.errors import EnvironmentProblem, Unavailable

_log = logs.get(__name__)
_LOCK = 0x636C6F636865  # "cloche": the advisory lock of whoever changes the schema
_STEPS = re.compile(r"-[1-9]\d{0,2}\Z")
_LOCK_WAIT_S = 300.0
_AWAIT_MAX_S = 5.0
_LOCK_TIMEOUT = (
    "10s"  # a migration that waits for a table makes everybody behind it wait too: better to give up and be run again
)


def upgrade(url: str, revision: str = "head") -> None:
    """Run the migrations up to ``revision``. Safe under two programs at once: the second waits, then finds nothing to do.

    Raises:
        EnvironmentProblem: the database belongs to a newer version, or its file cannot be opened.
        Unavailable: the server does not answer.
    """
    with _locked(url):
        at = current(url)
        if at is not None and at not in _known():
            raise _newer(at)
        _run(url, lambda config: command.upgrade(config, revision))


def downgrade(url: str, revision: str) -> None:
    """Take the schema back to ``revision``: one of its names, ``-1`` (one step), or ``base``, which removes everything.

    Raises:
        EnvironmentProblem: there is no such revision, or the database belongs to a newer version.
        Unavailable: the server does not answer.
    """
    with _locked(url):
        at = current(url)
        if at is not None and at not in _known():
            raise _newer(at)
        if revision != "base" and revision not in _known() and not _STEPS.match(revision):
            raise EnvironmentProblem(f"there is no schema {revision[:32]}; there are {', '.join(sorted(_known()))}")
        _run(url, lambda config: command.downgrade(config, revision))


def current(url: str) -> str | None:
    """The revision the database is at; None when it is empty.

    Raises:
        EnvironmentProblem: its file cannot be opened.
        Unavailable: the server does not answer.
    """
    with _engine(url) as engine, engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def check(url: str) -> str:
    """Refuse to work on a schema that is not this program's. Returns the revision.

    Raises:
        EnvironmentProblem: it is older, newer, or not there; the message says what to do.
        Unavailable: the server does not answer.
    """
    at, head = current(url), ScriptDirectory.from_config(_config()).get_current_head()
    if at is None:
        raise EnvironmentProblem("the database has no schema yet: run `cloche db upgrade`, or start `cloche web`")
    if at not in _known():
        raise _newer(at)
    if at != head:
        raise EnvironmentProblem(f"the database's schema is {at}, this program's is {head}: run `cloche db upgrade`")
    return at


def seen(connection: Connection) -> str:
    """The revision, as a unit of work sees it."""
    return str(connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one())


def patiently(step: Callable[[], Any]) -> Any:
    """Run ``step`` until the database answers, with growing pauses. For a process that starts before its database does."""
    pause = 0.25
    while True:
        try:
            return step()
        except Unavailable as error:
            _log.warning("waiting for the database", error=error.detail, again_in_s=pause)
            time.sleep(pause)
            pause = min(_AWAIT_MAX_S, pause * 2)


def _newer(at: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"the database was written by a newer version (schema {at}): update this program, or run that version"
    )


def _known() -> set[str]:
    return {item.revision for item in ScriptDirectory.from_config(_config()).walk_revisions()}


def _run(url: str, change: Callable[[Config], None]) -> None:
    with _engine(url) as engine:
        config = _config()
        config.attributes["engine"] = engine
        change(config)


def _config() -> Config:
    package = Path(cloche.__file__).parent
    checkout = package.parents[1] / "migrations"
    config = Config()
    config.set_main_option("script_location", str(checkout if checkout.is_dir() else package / "_migrations"))
    return config


@contextmanager
def _engine(url: str) -> Iterator[Engine]:
    """An engine that migrations may use: its own transactions, one statement as long as it takes."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        engine = create_engine(parsed)
        event.listen(engine, "connect", _on_sqlite)
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    else:
        engine = open_engine(parsed, pool=1).execution_options(isolation_level="READ COMMITTED")
        event.listen(engine, "begin", _on_postgresql)
    try:
        yield engine
    except DBAPIError as error:
        if parsed.get_backend_name() != "sqlite" and (known := unavailable(error)) is not None:
            raise known from None
        if isinstance(error, sqlalchemy.exc.OperationalError):
            raise EnvironmentProblem(f"cannot open the database {parsed.database}: {error.orig}") from None
        raise
    finally:
        engine.dispose()


def _on_sqlite(raw: Any, _record: object) -> None:
    raw.isolation_level = None
    raw.execute("PRAGMA journal_mode=WAL")
    raw.execute("PRAGMA busy_timeout=10000")


def _on_postgresql(connection: Connection) -> None:
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
    connection.exec_driver_sql("SET LOCAL statement_timeout = 0")


@contextmanager
def _locked(url: str) -> Iterator[None]:
    parsed = make_url(url)
    if not parsed.database:
        raise EnvironmentProblem("the database url names no database")
    if parsed.get_backend_name() != "sqlite":
        with _advisory_lock(url):
            yield
        return
    path = Path(f"{parsed.database}.lock")
    try:
        handle = path.open("a")
    except OSError as error:
        raise EnvironmentProblem(f"cannot write beside the database {parsed.database}: {error.strerror}") from None
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def _advisory_lock(url: str) -> Iterator[None]:
    """Held by a session of its own, so that it ends with this process whatever happens to it."""
    deadline = time.monotonic() + _LOCK_WAIT_S
    with _engine(url) as engine, engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        while not connection.exec_driver_sql(f"SELECT pg_try_advisory_lock({_LOCK})").scalar():
            if time.monotonic() > deadline:
                raise EnvironmentProblem("another program has been changing the database's schema for five minutes")
            time.sleep(0.1)
        yield
