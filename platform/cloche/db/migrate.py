"""Bring a database's schema up to date, or take it back, with Alembic. One at a time per database."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, make_url

import cloche
from cloche.errors import EnvironmentProblem


def upgrade(url: str, revision: str = "head") -> None:
    """Run the migrations up to ``revision``. Safe under two programs at once: the second waits, then finds nothing to do.

    Raises:
        EnvironmentProblem: the database belongs to a newer version, or its file cannot be opened.
    """
    with _locked(url):
        known = {item.revision for item in ScriptDirectory.from_config(_config(url)).walk_revisions()}
        at = current(url)
        if at is not None and at not in known:
            raise EnvironmentProblem(f"the database was written by a newer version (schema {at}); run that version")
        command.upgrade(_config(url), revision)


def downgrade(url: str, revision: str) -> None:
    """Take the schema back to ``revision`` (``base`` removes everything)."""
    with _locked(url):
        command.downgrade(_config(url), revision)


def current(url: str) -> str | None:
    """The revision the database is at; None when it is empty."""
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision()
    except sqlalchemy.exc.OperationalError as error:
        raise EnvironmentProblem(f"cannot open the database {make_url(url).database}: {error.orig}") from None
    finally:
        engine.dispose()


def _config(url: str) -> Config:
    package = Path(cloche.__file__).parent
    checkout = package.parents[1] / "migrations"
    config = Config()
    config.set_main_option("script_location", str(checkout if checkout.is_dir() else package / "_migrations"))
    config.attributes["url"] = url
    return config


@contextmanager
def _locked(url: str) -> Iterator[None]:
    database = make_url(url).database
    if not database:
        raise EnvironmentProblem("the database url names no file")
    path = Path(f"{database}.lock")
    try:
        handle = path.open("a")
    except OSError as error:
        raise EnvironmentProblem(f"cannot write beside the database {database}: {error.strerror}") from None
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
