"""``cloche user``: list, get, create, roles, permissions, disable, enable, delete, appoint, dismiss, tokens, revoke-token."""

from __future__ import annotations

from typing import Any

import click

from cloche.cli import exits, output
from cloche.cli.client import Api, ApiFailure, client_options
from cloche.cli.pages import gathered, limit_option
from cloche.cli.passwords import password_option, read_password
from cloche.clock import is_uuid7

_COLUMNS: output.Columns = (
    ("ID", lambda user: user["id"]),
    ("NAME", lambda user: user["username"]),
    ("KIND", lambda user: user["kind"]),
    ("ROLES", lambda user: ", ".join(user["roles"])),
    ("STATE", lambda user: _state(user)),
)
_everywhere = click.option(
    "--everywhere", is_flag=True, help="Users of every tenant, not of one's own (tenant:manage)."
)


@click.group()
def user() -> None:
    """See, create, disable and remove users and service accounts; give them roles."""


@user.command("list")
@click.option("--role", help="Only those who have it.")
@click.option("--kind", type=click.Choice(["person", "service"]), help="Only people, or only service accounts.")
@_everywhere
@limit_option
@output.output_option
@client_options
def list_users(
    url: str, token: str | None, form: str, role: str | None, kind: str | None, everywhere: bool, limit: int
) -> None:
    """List users of one's tenant, oldest first."""
    with Api(url, token) as api:
        data = gathered(api, "/users", limit, role=role, kind=kind, scope=_scope(everywhere))
    output.show(form, data, rows=data["items"], columns=_COLUMNS, name=lambda row: str(row["username"]))


@user.command()
@click.argument("name")
@_everywhere
@output.output_option
@client_options
def get(url: str, token: str | None, form: str, name: str, everywhere: bool) -> None:
    """Show one user, by name or id."""
    with Api(url, token) as api:
        _show(form, _found(api, name, everywhere))


@user.command()
@click.argument("name")
@click.option("--role", "roles", multiple=True, required=True, help="A role; several may be given.")
@click.option("--service", is_flag=True, help="A service account: no password, tokens alone.")
@password_option
@output.output_option
@client_options
def create(
    url: str, token: str | None, form: str, name: str, roles: tuple[str, ...], service: bool, password_stdin: bool
) -> None:
    """Create a user with roles that allow no more than one's own."""
    body: dict[str, Any] = {"username": name, "roles": list(roles), "kind": "service" if service else "person"}
    if not service:
        body["password"] = read_password(password_stdin, confirm=True)
    with Api(url, token) as api:
        _show(form, api.post("/users", body))


@user.command("roles")
@click.argument("name")
@click.argument("roles", nargs=-1, required=True)
@_everywhere
@output.output_option
@client_options
def set_roles(url: str, token: str | None, form: str, name: str, roles: tuple[str, ...], everywhere: bool) -> None:
    """Set the roles of a user in one's tenant, all of them. With --everywhere it brings in users of other tenants."""
    with Api(url, token) as api:
        found = _found(api, name, everywhere)
        path = f"/users/{found['id']}/roles" + _query(everywhere)
        _show(form, api.put(path, {"roles": list(roles)}, headers=_match(found)))


@user.command()
@click.argument("name")
@_everywhere
@output.output_option
@client_options
def permissions(url: str, token: str | None, form: str, name: str, everywhere: bool) -> None:
    """Say what a user could do in one's tenant, and by which roles."""
    with Api(url, token) as api:
        found = _found(api, name, everywhere)
        data = api.get(f"/users/{found['id']}/permissions", scope=_scope(everywhere))
    rows = [item for item in data["items"] if item["granted"]]
    columns: output.Columns = (
        ("PERMISSION", lambda item: item["name"]),
        ("BY", lambda item: ", ".join(item["roles"]) or "platform administrator"),
        ("", lambda item: item["summary"]),
    )
    output.show(form, data, rows=rows, columns=columns, name=lambda row: str(row["name"]))
    if data["disabled"]:
        output.note(f"{data['username']} is disabled, and can do nothing of it until enabled")


@user.command()
@click.argument("name")
@_everywhere
@output.output_option
@client_options
def disable(url: str, token: str | None, form: str, name: str, everywhere: bool) -> None:
    """Disable a user: sessions and tokens end at once, and for good."""
    _disabled(url, token, form, name, everywhere, disabled=True)


@user.command()
@click.argument("name")
@_everywhere
@output.output_option
@client_options
def enable(url: str, token: str | None, form: str, name: str, everywhere: bool) -> None:
    """Enable a user who was disabled."""
    _disabled(url, token, form, name, everywhere, disabled=False)


@user.command()
@click.argument("name")
@click.option("--everywhere", is_flag=True, help="Out of every tenant, and delete the account (tenant:manage).")
@client_options
def delete(url: str, token: str | None, name: str, everywhere: bool) -> None:
    """Take a user out of one's tenant; who is in no other is deleted."""
    with Api(url, token) as api:
        found = _found(api, name, everywhere)
        api.delete(f"/users/{found['id']}" + _query(everywhere), headers=_match(found))
    output.note(f"removed {found['username']}")


@user.command()
@click.argument("name")
@_everywhere
@output.output_option
@client_options
def appoint(url: str, token: str | None, form: str, name: str, everywhere: bool) -> None:
    """Make a user an administrator of the platform (platform:manage)."""
    with Api(url, token) as api:
        found = _found(api, name, everywhere)
        path = f"/users/{found['id']}/platform-admin" + _query(everywhere)
        _show(form, api.put(path, None, headers=_match(found)))


@user.command()
@click.argument("name")
@_everywhere
@output.output_option
@client_options
def dismiss(url: str, token: str | None, form: str, name: str, everywhere: bool) -> None:
    """Dismiss an administrator of the platform (platform:manage)."""
    with Api(url, token) as api:
        found = _found(api, name, everywhere)
        path = f"/users/{found['id']}/platform-admin" + _query(everywhere)
        _show(form, api.delete(path, headers=_match(found)))


@user.command()
@click.argument("name")
@output.output_option
@client_options
def tokens(url: str, token: str | None, form: str, name: str) -> None:
    """List a user's tokens in one's tenant. `cloche token create --for` issues one of a service account."""
    with Api(url, token) as api:
        data = api.get(f"/users/{_found(api, name)['id']}/tokens")
    columns: output.Columns = (
        ("ID", lambda row: row["id"]),
        ("NAME", lambda row: row["name"]),
        ("SCOPES", lambda row: "all" if row["scopes"] is None else ", ".join(row["scopes"])),
        ("EXPIRES", lambda row: row["expires_at"]),
        ("LAST USED", lambda row: row["last_used_at"]),
        ("REVOKED", lambda row: row["revoked_at"]),
    )
    output.show(form, data, rows=data["items"], columns=columns, name=lambda row: str(row["id"]))


@user.command("revoke-token")
@click.argument("name")
@click.argument("token_id")
@client_options
def revoke_token(url: str, token: str | None, name: str, token_id: str) -> None:
    """Revoke one of a user's tokens in one's tenant."""
    if not is_uuid7(token_id):
        raise click.UsageError(f"{token_id!r} is no token's id")
    with Api(url, token) as api:
        api.delete(f"/users/{_found(api, name)['id']}/tokens/{token_id}")
    output.note(f"revoked {token_id}")


def _disabled(url: str, token: str | None, form: str, name: str, everywhere: bool, *, disabled: bool) -> None:
    with Api(url, token) as api:
        found = _found(api, name, everywhere)
        path = f"/users/{found['id']}" + _query(everywhere)
        _show(form, api.patch(path, {"disabled": disabled}, headers=_match(found)))


def _found(api: Api, name: str, everywhere: bool = False) -> output.Row:
    """The user of that name or id.

    Raises:
        ApiFailure: there is none.
    """
    if is_uuid7(name):
        found: output.Row = api.get(f"/users/{name}", scope=_scope(everywhere))
        return found
    items = api.get("/users", username=name, scope=_scope(everywhere))["items"]
    if not items:
        raise ApiFailure(f"there is no user '{name}' in your tenant", exits.NOT_FOUND, 404)
    return dict(items[0])


def _scope(everywhere: bool) -> str | None:
    return "platform" if everywhere else None


def _query(everywhere: bool) -> str:
    return "?scope=platform" if everywhere else ""


def _match(found: output.Row) -> dict[str, str]:
    return {"If-Match": f'"v{found["version"]}"'}


def _state(found: output.Row) -> str:
    words = ["disabled"] if found["disabled"] else []
    return ", ".join([*words, "platform administrator"] if found["platform_admin"] else words)


def _show(form: str, data: output.Row) -> None:
    lines = [
        ("name", data["username"]),
        ("id", data["id"]),
        ("kind", data["kind"]),
        ("roles", ", ".join(data["roles"])),
        ("tenants", ", ".join(data["tenants"] or [])),
        ("state", _state(data) or "enabled"),
        ("created", data["created_at"]),
    ]
    output.details(form, data, lines, str(data["id"]))
