"""``cloche db``: upgrade, downgrade."""

from __future__ import annotations

import click

from cloche.cli import output
from cloche.cli.settings import load_settings, settings_options


@click.group()
def db() -> None:
    """Bring the database's schema up to date, or take it back."""


@db.command()
@settings_options
def upgrade(home: str | None, config: str | None) -> None:
    """Apply every migration that is missing. Safe to run again; `cloche up` does it at each start.

    With CLOCHE_DATABASE_OWNER_URL it works as that role, to which the tables then belong, and grants the platform's own role what it needs.
    """
    settings = load_settings("db", home, config)
    from cloche.db import grants, migrate
    from cloche.db.engine import check_home

    check_home(settings.home)
    migrate.upgrade(settings.owner_url)
    if settings.owner_url != settings.database_url:
        grants.apply(settings.owner_url, settings.database_url)
    output.note("the database's schema is up to date")


@db.command()
@settings_options
@click.argument("revision")
@click.option("--yes", is_flag=True, help="Do it: what the newer schema holds and the older does not is lost.")
def downgrade(home: str | None, config: str | None, revision: str, yes: bool) -> None:
    """Take the schema back to REVISION (`-1` for one step, `base` removes everything). Stop Cloche first."""
    settings = load_settings("db", home, config)
    from cloche.db import migrate

    if not yes:
        raise click.UsageError(
            "this loses what only the newer schema holds: take a backup, stop Cloche, and give --yes"
        )
    migrate.downgrade(settings.owner_url, revision)
    output.note(f"the database's schema is {migrate.current(settings.owner_url) or 'empty'}")
