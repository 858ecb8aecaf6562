"""``cloche tenant``: list, get, create, suspend, resume, empty, delete. For the platform's administrators."""

from __future__ import annotations

import time

import click

from cloche.cli import exits, output
from cloche.cli.client import Api, ApiFailure, client_options
from cloche.cli.pages import gathered, limit_option
from cloche.clock import is_uuid7

_AGAIN_S = 1.0  # what runs is being killed meanwhile
_COLUMNS: output.Columns = (
    ("ID", lambda tenant: tenant["id"]),
    ("NAME", lambda tenant: tenant["name"]),
    ("STATE", lambda tenant: _state(tenant)),
    ("USERS", lambda tenant: tenant["users"]),
    ("CREATED", lambda tenant: tenant["created_at"]),
)


@click.group()
def tenant() -> None:
    """See, create, suspend, empty and remove tenants (tenant:manage)."""


@tenant.command("list")
@limit_option
@output.output_option
@client_options
def list_tenants(url: str, token: str | None, form: str, limit: int) -> None:
    """List tenants, oldest first."""
    with Api(url, token) as api:
        data = gathered(api, "/tenants", limit)
    output.show(form, data, rows=data["items"], columns=_COLUMNS, name=lambda row: str(row["name"]))


@tenant.command()
@click.argument("name")
@output.output_option
@client_options
def get(url: str, token: str | None, form: str, name: str) -> None:
    """Show one tenant, by name or id."""
    with Api(url, token) as api:
        _show(form, _found(api, name))


@tenant.command()
@click.argument("name")
@click.option("--admin", help="Name of a user who becomes its first administrator.")
@output.output_option
@client_options
def create(url: str, token: str | None, form: str, name: str, admin: str | None) -> None:
    """Create a tenant."""
    with Api(url, token) as api:
        _show(form, api.post("/tenants", {"name": name, "admin": admin}))


@tenant.command()
@click.argument("name")
@output.output_option
@client_options
def suspend(url: str, token: str | None, form: str, name: str) -> None:
    """Refuse a tenant's users and tokens, and start none of its jobs. What runs ends by itself."""
    _suspended(url, token, form, name, suspended=True)


@tenant.command()
@click.argument("name")
@output.output_option
@client_options
def resume(url: str, token: str | None, form: str, name: str) -> None:
    """Take back a suspension."""
    _suspended(url, token, form, name, suspended=False)


@tenant.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Really: every job and file of the tenant goes.")
@client_options
def empty(url: str, token: str | None, name: str, yes: bool) -> None:
    """Cancel and remove every job of a suspended tenant, and its files. Goes on until all are gone."""
    if not yes:
        raise click.UsageError(f"this removes every job and file of '{name}' for good: add --yes")
    with Api(url, token) as api:
        found = _found(api, name)
        path = f"/tenants/{found['id']}/empty"
        while True:
            said = api.post(path, {"confirm": found["name"]}, headers=_match(found))
            left = said["left"]
            output.note(f"removed {said['removed']['jobs']} jobs and {said['removed']['files']} files")
            if said["done"]:
                break
            output.note(f"left: {left['jobs']} jobs, {left['files']} files")
            time.sleep(_AGAIN_S)
    output.note(f"{found['name']} is empty")


@tenant.command()
@click.argument("name")
@client_options
def delete(url: str, token: str | None, name: str) -> None:
    """Remove a tenant that is suspended and empty."""
    with Api(url, token) as api:
        found = _found(api, name)
        api.delete(f"/tenants/{found['id']}", headers=_match(found))
    output.note(f"removed {found['name']}")


def _suspended(url: str, token: str | None, form: str, name: str, *, suspended: bool) -> None:
    with Api(url, token) as api:
        found = _found(api, name)
        _show(form, api.patch(f"/tenants/{found['id']}", {"suspended": suspended}, headers=_match(found)))


def _found(api: Api, name: str) -> output.Row:
    """The tenant of that name or id.

    Raises:
        ApiFailure: there is none.
    """
    if is_uuid7(name):
        found: output.Row = api.get(f"/tenants/{name}")
        return found
    items = api.get("/tenants", name=name)["items"]
    if not items:
        raise ApiFailure(f"there is no tenant '{name}'", exits.NOT_FOUND, 404)
    return dict(items[0])


def _match(found: output.Row) -> dict[str, str]:
    return {"If-Match": f'"v{found["version"]}"'}


def _state(found: output.Row) -> str:
    return "suspended" if found["suspended"] else "active"


def _show(form: str, data: output.Row) -> None:
    lines = [
        ("name", data["name"]),
        ("id", data["id"]),
        ("state", _state(data)),
        ("users", str(data["users"])),
        ("created", data["created_at"]),
    ]
    output.details(form, data, lines, str(data["id"]))
