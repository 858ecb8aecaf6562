"""``cloche plugin``: list, get, enable, deprecate, disable, yank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from cloche.cli import output
from cloche.cli.client import Api, client_options
from cloche.domain.versions import MAX_REASON, VersionState

F = TypeVar("F", bound=Callable[..., Any])
_COLUMNS: output.Columns = (
    ("NAME", lambda row: row["name"]),
    ("VERSION", lambda row: row["version"]),
    ("DEFAULT", lambda row: row.get("default")),
    ("STATE", lambda row: _state(row)),
    ("DIGEST", lambda row: str(row["digest"])[:12]),
    ("SUMMARY", lambda row: row.get("summary")),
)


@click.group()
def plugin() -> None:
    """See which job types there are; enable, deprecate, disable and yank their versions."""


@plugin.command("list")
@output.output_option
@client_options
def list_plugins(url: str, token: str | None, form: str) -> None:
    """List every version of every plugin."""
    with Api(url, token) as api:
        data = api.get("/plugins")
    output.show(form, data, rows=data["items"], columns=_COLUMNS, name=_name)


@plugin.command()
@click.argument("name")
@click.argument("version")
@output.output_option
@client_options
def get(url: str, token: str | None, form: str, name: str, version: str) -> None:
    """Show one version of a plugin."""
    with Api(url, token) as api:
        _show(form, api.get(_path(name, version)))


def _changing(command: F) -> F:
    """What the commands that change a version take."""
    length = click.option(
        "--reason", metavar="TEXT", help=f"Why; whoever submits is told. At most {MAX_REASON} characters."
    )
    for each in (client_options, output.output_option, length, click.argument("version"), click.argument("name")):
        command = each(command)
    return command


@plugin.command()
@_changing
def enable(url: str, token: str | None, form: str, name: str, version: str, reason: str | None) -> None:
    """Have a version take jobs (plugin:manage)."""
    _change(url, token, form, name, version, VersionState.ENABLED, reason)


@plugin.command()
@_changing
def deprecate(url: str, token: str | None, form: str, name: str, version: str, reason: str | None) -> None:
    """Have a version take jobs, and each be told that it is deprecated (plugin:manage)."""
    _change(url, token, form, name, version, VersionState.DEPRECATED, reason)


@plugin.command()
@_changing
def disable(url: str, token: str | None, form: str, name: str, version: str, reason: str | None) -> None:
    """Accept no new jobs for a version, and retry none by hand; those that were accepted run on (plugin:manage)."""
    _change(url, token, form, name, version, VersionState.DISABLED, reason)


@plugin.command()
@_changing
def yank(url: str, token: str | None, form: str, name: str, version: str, reason: str | None) -> None:
    """Accept no new jobs for a version; those that were accepted run on and are retried (plugin:manage)."""
    _change(url, token, form, name, version, VersionState.YANKED, reason)


def _change(
    url: str, token: str | None, form: str, name: str, version: str, state: VersionState, reason: str | None
) -> None:
    path = _path(name, version)
    with Api(url, token) as api:
        match = {"If-Match": f'"v{api.get(path)["revision"]}"'}
        _show(form, api.patch(path, {"state": state.value, "reason": reason}, headers=match))


def _path(name: str, version: str) -> str:
    """
    Raises:
        click.UsageError: no version can be called so; it would name another address.
    """
    for part in (name, version):
        if not part.strip(".") or not all(letter.isalnum() or letter in "._-" for letter in part):
            raise click.UsageError(f"{part!r} is no name and no version of a plugin")
    return f"/plugins/{name}/{version}"


def _state(row: output.Row) -> str:
    """A version whose files changed takes no jobs either, whatever its state."""
    state = str(row["state"])
    return state if row["enabled"] or state in (VersionState.DISABLED, VersionState.YANKED) else f"{state}, changed"


def _name(row: output.Row) -> str:
    return f"{row['name']}=={row['version']}"


def _show(form: str, data: output.Row) -> None:
    lines = [
        ("name", data["name"]),
        ("version", data["version"]),
        ("summary", data["summary"]),
        ("state", _state(data)),
        ("reason", data["state_reason"]),
        ("since", data["state_changed_at"]),
        ("default", data["default"]),
        ("no new jobs", data["disabled_reason"]),
        ("digest", data["digest"]),
        ("isolation", data["isolation"]),
        ("first seen", data["first_seen_at"]),
    ]
    output.details(form, data, lines, _name(data))
