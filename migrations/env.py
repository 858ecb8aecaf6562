"""Alembic's entry: each migration runs in one transaction, on the URL that ``cloche.db.migrate`` hands over."""

from alembic import context
from sqlalchemy import create_engine, event

from cloche.db.tables import metadata


def _on_connect(raw, _record):
    raw.isolation_level = None
    raw.execute("PRAGMA journal_mode=WAL")
    raw.execute("PRAGMA busy_timeout=10000")


def run() -> None:
    engine = create_engine(context.config.attributes["url"])
    event.listen(engine, "connect", _on_connect)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    with engine.connect() as connection:
        context.configure(
            connection=connection, target_metadata=metadata, render_as_batch=True, transaction_per_migration=True
        )
        with context.begin_transaction():
            context.run_migrations()
    engine.dispose()


run()
