"""``cloche db``: upgrade."""

from __future__ import annotations

import click

from cloche.cli import output
from cloche.cli.settings import load_settings, settings_options


@click.group()
def db() -> None:
    """Bring the database's schema up to date."""


@db.command()
@settings_options
def upgrade(home: str | None, config: str | None) -> None:
    """Apply every migration that is missing. Safe to run again; `cloche up` does it at each start."""
    settings = load_settings("db", home, config)
    from cloche.db import migrate
    from cloche.db.engine import check_home

    check_home(settings.home)
    migrate.upgrade(settings.database_url)
    output.note("the database's schema is up to date")
