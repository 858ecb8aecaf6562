"""Alembic's entry: each migration runs in one transaction, on the engine that ``cloche.db.migrate`` hands over."""

from alembic import context

from cloche.db.tables import metadata


def run() -> None:
    with context.config.attributes["engine"].connect() as connection:
        context.configure(
            connection=connection, target_metadata=metadata, render_as_batch=True, transaction_per_migration=True
        )
        with context.begin_transaction():
            context.run_migrations()


run()
