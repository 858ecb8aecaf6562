"""``cloche callback-secret``: get, renew."""

from __future__ import annotations

from typing import Any

import click

from cloche.cli import output
from cloche.cli.client import Api, client_options


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
