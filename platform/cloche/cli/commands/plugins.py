"""``cloche plugin``: list."""

from __future__ import annotations

import click

from cloche.cli import output
from cloche.cli.client import Api, client_options

_COLUMNS: output.Columns = (
    ("NAME", lambda row: row["name"]),
    ("VERSION", lambda row: row["version"]),
    ("DEFAULT", lambda row: row.get("default")),
    ("ENABLED", lambda row: row.get("enabled")),
    ("DIGEST", lambda row: str(row["digest"])[:12]),
    ("SUMMARY", lambda row: row.get("summary")),
)


@click.group()
def plugin() -> None:
    """See which job types there are."""


@plugin.command("list")
@output.output_option
@client_options
def list_plugins(url: str, token: str | None, form: str) -> None:
    """List every version of every plugin."""
    with Api(url, token) as api:
        data = api.get("/plugins")
    output.show(form, data, rows=data["items"], columns=_COLUMNS, name=lambda row: f"{row['name']}=={row['version']}")
