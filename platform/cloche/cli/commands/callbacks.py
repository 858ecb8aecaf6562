"""``cloche callback``: list. ``cloche callback-secret``: get, renew."""

from __future__ import annotations

from typing import Any

import click

from cloche.cli import output
from cloche.cli.client import Api, client_options
from cloche.cli.jobview import CALLBACK_COLUMNS
from cloche.cli.pages import gathered
from cloche.domain.callbacks import Delivery


@click.group()
def callback() -> None:
    """See what the callbacks of jobs were told."""


@callback.command("list")
@click.option("--status", type=click.Choice([one.value for one in Delivery]), help="Only deliveries that are so.")
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="At most this many, newest first."
)
@output.output_option
@client_options
def list_deliveries(url: str, token: str | None, form: str, limit: int, status: str | None) -> None:
    """List what the callbacks of all jobs of the tenant were told, and what they are still to be told, newest first."""
    with Api(url, token) as api:
        data = gathered(api, "/callbacks", limit, status=status)
    columns = (("JOB", lambda row: row["job_id"]), *CALLBACK_COLUMNS)
    output.show(form, data, rows=data["items"], columns=columns, name=lambda row: str(row["id"]))


@click.group("callback-secret")
def secret() -> None:
    """See and renew the secret that callbacks are signed with."""


@secret.command()
@output.output_option
@client_options
def get(url: str, token: str | None, form: str) -> None:
    """Show the secret; that it was read is recorded."""
    with Api(url, token) as api:
        _show(form, api.get("/callback-secret"))


@secret.command()
@output.output_option
@client_options
def renew(url: str, token: str | None, form: str) -> None:
    """Make a new secret and show it; the one before signs beside it for 24 hours."""
    with Api(url, token) as api:
        _show(form, api.post("/callback-secret/renew"))


def _show(form: str, data: dict[str, Any]) -> None:
    lines = [
        ("secret", data["secret"]),
        ("version", data["version"]),
        ("created", data["created_at"]),
        ("the one before signs until", data["previous_until"]),
    ]
    output.details(form, data, lines, data["secret"])
