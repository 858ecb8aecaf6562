"""``cloche password``: change, reset, use-reset."""

from __future__ import annotations

import click

from cloche.cli import output
from cloche.cli.client import DEFAULT_URL, Api, client_options, segment
from cloche.cli.passwords import read_password

_url = click.option("--url", envvar="CLOCHE_URL", default=DEFAULT_URL, show_default=True, help="Address of Cloche.")
_tokens = click.option("--revoke-tokens", is_flag=True, help="Revoke all of the user's tokens, too.")


@click.group()
def password() -> None:
    """Change a password, make a reset for somebody, or use one."""


@password.command()
@click.option("--user", required=True, help="Whose password it is.")
@click.option("--password-stdin", is_flag=True, help="Read the old and the new one from two lines of stdin.")
@_tokens
@_url
def change(url: str, user: str, password_stdin: bool, revoke_tokens: bool) -> None:
    """Change one's own password. All of one's sessions end."""
    old = read_password(password_stdin, "Old password")
    new = read_password(password_stdin, "New password", confirm=True)
    with Api(url, basic=(user, old)) as api:
        api.put("/me/password", {"current_password": old, "new_password": new, "revoke_tokens": revoke_tokens})
    output.note("The password is changed.")


@password.command()
@click.argument("user_id")
@output.output_option
@client_options
def reset(url: str, token: str | None, form: str, user_id: str) -> None:
    """Make a code with which the user with this id sets a new password, and print it. It is shown this once."""
    with Api(url, token) as api:
        made = api.post(f"/users/{segment(user_id)}/password-reset")
    output.details(form, made, [("code", made["code"]), ("expires", made["expires_at"])], str(made["code"]))


@password.command("use-reset")
@click.option("--password-stdin", is_flag=True, help="Read the code and the new password from two lines of stdin.")
@_tokens
@_url
def use_reset(url: str, password_stdin: bool, revoke_tokens: bool) -> None:
    """Set a new password with a code of an administrator's."""
    code = read_password(password_stdin, "Code")
    new = read_password(password_stdin, "New password", confirm=True)
    with Api(url) as api:
        api.post("/password-resets", {"code": code, "new_password": new, "revoke_tokens": revoke_tokens})
    output.note("The password is set.")
