"""``cloche token``: create, list, revoke."""

from __future__ import annotations

from typing import Any

import click

from cloche.cli import output
from cloche.cli.client import DEFAULT_URL, Api, client_options, segment
from cloche.cli.passwords import password_option, read_password
from cloche.clock import is_uuid7

_COLUMNS: output.Columns = (
    ("ID", lambda row: row["id"]),
    ("NAME", lambda row: row["name"]),
    ("STATE", lambda row: _state(row)),
    ("SCOPES", lambda row: "all" if row["scopes"] is None else " ".join(row["scopes"])),
    ("EXPIRES", lambda row: row["expires_at"]),
    ("LAST USED", lambda row: row["last_used_at"]),
)


@click.group()
def token() -> None:
    """Make, list and revoke access tokens."""


@token.command()
@click.argument("name")
@click.option("--user", required=True, help="Whose token it is.")
@password_option
@click.option("--tenant", help="The tenant it is for; the user's first when absent.")
@click.option(
    "--for", "account", metavar="ID", help="Of this service account, for no more than both hold (user:manage)."
)
@click.option("--scope", "scopes", multiple=True, metavar="PERMISSION", help="Allow only this; several may be given.")
@click.option("--expires-in", metavar="DURATION", help="How long it lives, such as 30d.")
@click.option(
    "--address", "addresses", multiple=True, metavar="NETWORK", help="Take it only from here; several may be given."
)
@click.option("--url", envvar="CLOCHE_URL", default=DEFAULT_URL, show_default=True, help="Address of Cloche.")
@output.output_option
def create(
    url: str,
    form: str,
    name: str,
    user: str,
    password_stdin: bool,
    tenant: str | None,
    account: str | None,
    scopes: tuple[str, ...],
    expires_in: str | None,
    addresses: tuple[str, ...],
) -> None:
    """Make a token called NAME and print it. It is shown this once; `-o name` prints it alone."""
    body: dict[str, Any] = {"name": name}
    if scopes:
        body["scopes"] = list(scopes)
    if expires_in:
        body["expires_in"] = expires_in
    if addresses:
        body["addresses"] = list(addresses)
    if account is not None and not is_uuid7(account):
        raise click.UsageError("--for is a service account's id; `cloche user get` shows it")
    path = "/tokens" if account is None else f"/users/{account}/tokens"
    with Api(url, basic=(user, read_password(password_stdin))) as api:
        made = api.post(path, body, headers={} if tenant is None else {"X-Cloche-Tenant": tenant})
    lines = [("token", made["token"]), ("id", made["id"]), ("expires", made.get("expires_at"))]
    output.details(form, made, lines, str(made["token"]))
    if form == "table":
        output.note("It is not shown again: export CLOCHE_TOKEN=… or keep it in a secret store.")


@token.command("list")
@output.output_option
@client_options
def list_tokens(url: str, token: str | None, form: str) -> None:
    """List one's tokens, the newest first. The token that asks has to name token:manage."""
    with Api(url, token) as api:
        data = api.get("/tokens")
    output.show(form, data, rows=data["items"], columns=_COLUMNS, name=lambda row: str(row["id"]))


@token.command()
@click.argument("token_id")
@client_options
def revoke(url: str, token: str | None, token_id: str) -> None:
    """Revoke the token with this id, with those that it made."""
    with Api(url, token) as api:
        api.delete(f"/tokens/{segment(token_id)}")
    output.note(f"{token_id} is revoked.")


def _state(row: Any) -> str:
    return "revoked" if row["revoked_at"] else "valid"
