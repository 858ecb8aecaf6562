"""``cloche session``: list, revoke."""

from __future__ import annotations

import click

from cloche.cli import output
from cloche.cli.client import Api, client_options, segment

_COLUMNS: output.Columns = (
    ("ID", lambda row: row["id"]),
    ("SINCE", lambda row: row["created_at"]),
    ("LAST SEEN", lambda row: row["last_seen_at"]),
    ("ADDRESS", lambda row: row["ip"]),
    ("BROWSER", lambda row: row["user_agent"]),
)


@click.group()
def session() -> None:
    """See and end one's sessions in browsers."""


@session.command("list")
@output.output_option
@client_options
def list_sessions(url: str, token: str | None, form: str) -> None:
    """List one's sessions, the newest first. The token has to name token:manage."""
    with Api(url, token) as api:
        data = api.get("/sessions")
    output.show(form, data, rows=data["items"], columns=_COLUMNS, name=lambda row: str(row["id"]))


@session.command()
@click.argument("session_id", required=False)
@click.option("--all", "every", is_flag=True, help="End all of them.")
@client_options
def revoke(url: str, token: str | None, session_id: str | None, every: bool) -> None:
    """End the session with this id, or all with --all."""
    if every == (session_id is not None):
        raise click.UsageError("name a session, or give --all")
    with Api(url, token) as api:
        if session_id is None:
            output.note(f"{api.delete('/sessions')['ended']} ended.")
        else:
            api.delete(f"/sessions/{segment(session_id)}")
            output.note(f"{session_id} ended.")
