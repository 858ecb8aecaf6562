"""``cloche token``: create."""

from __future__ import annotations

import sys
from typing import Any

import click

from cloche.cli import output
from cloche.cli.client import DEFAULT_URL, Api


@click.group()
def token() -> None:
    """Make access tokens."""


@token.command()
@click.argument("name")
@click.option("--user", required=True, help="Whose token it is.")
@click.option(
    "--password-stdin", is_flag=True, help="Read the password from the first line of stdin instead of asking."
)
@click.option("--scope", "scopes", multiple=True, metavar="PERMISSION", help="Allow only this; several may be given.")
@click.option("--expires-in", metavar="DURATION", help="How long it lives, such as 30d.")
@click.option("--url", envvar="CLOCHE_URL", default=DEFAULT_URL, show_default=True, help="Address of Cloche.")
@output.output_option
def create(
    url: str, form: str, name: str, user: str, password_stdin: bool, scopes: tuple[str, ...], expires_in: str | None
) -> None:
    """Make a token called NAME and print it. It is shown this once; `-o name` prints it alone."""
    body: dict[str, Any] = {"name": name}
    if scopes:
        body["scopes"] = list(scopes)
    if expires_in:
        body["expires_in"] = expires_in
    with Api(url, basic=(user, _password(password_stdin))) as api:
        made = api.post("/tokens", body)
    lines = [("token", made["token"]), ("id", made["id"]), ("expires", made.get("expires_at"))]
    output.details(form, made, lines, str(made["token"]))
    if form == "table":
        output.note("It is not shown again: export CLOCHE_TOKEN=… or keep it in a secret store.")


def _password(from_stdin: bool) -> str:
    if from_stdin:
        line = sys.stdin.readline().rstrip("\r\n")
        if not line:
            raise click.UsageError("--password-stdin: stdin holds no password")
        return line
    if not sys.stdin.isatty():
        raise click.UsageError("no terminal to ask for the password on: use --password-stdin")
    return str(click.prompt("Password", hide_input=True, err=True))
