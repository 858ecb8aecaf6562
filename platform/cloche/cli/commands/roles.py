"""``cloche role``: list, get, permissions, create, set, delete."""

from __future__ import annotations

import click

from cloche.cli import output
from cloche.cli.client import Api, client_options
from cloche.cli.pages import gathered, limit_option

_COLUMNS: output.Columns = (
    ("NAME", lambda role: role["name"]),
    ("USERS", lambda role: role["users"]),
    ("PERMISSIONS", lambda role: len(role["permissions"])),
    ("", lambda role: ("(built in) " if role["builtin"] else "") + role["summary"]),
)
_permission = click.option(
    "--permission", "-p", "permissions", multiple=True, help="What it allows; several may be given."
)


@click.group()
def role() -> None:
    """See, create, change and remove roles."""


@role.command("list")
@limit_option
@output.output_option
@client_options
def list_roles(url: str, token: str | None, form: str, limit: int) -> None:
    """List roles: the built-in ones, then one's tenant's own."""
    with Api(url, token) as api:
        data = gathered(api, "/roles", limit)
    output.show(form, data, rows=data["items"], columns=_COLUMNS, name=lambda row: str(row["name"]))


@role.command()
@click.argument("name")
@output.output_option
@client_options
def get(url: str, token: str | None, form: str, name: str) -> None:
    """Show one role. `cloche user list --role NAME` lists who has it."""
    with Api(url, token) as api:
        _show(form, api.get(_path(name)))


@role.command()
@output.output_option
@client_options
def permissions(url: str, token: str | None, form: str) -> None:
    """List every permission in words."""
    with Api(url, token) as api:
        data = api.get("/permissions")
    columns: output.Columns = (
        ("PERMISSION", lambda item: item["name"]),
        ("ROLES GIVE IT", lambda item: not item["platform"]),
        ("", lambda item: item["summary"]),
    )
    output.show(form, data, rows=data["items"], columns=columns, name=lambda row: str(row["name"]))


@role.command()
@click.argument("name")
@_permission
@click.option("--summary", default="", help="What it is for.")
@output.output_option
@client_options
def create(url: str, token: str | None, form: str, name: str, permissions: tuple[str, ...], summary: str) -> None:
    """Create a role of permissions that one holds oneself."""
    if not permissions:
        raise click.UsageError("say what it allows: --permission; `cloche role permissions` lists all")
    with Api(url, token) as api:
        _show(form, api.post("/roles", {"name": name, "summary": summary, "permissions": list(permissions)}))


@role.command("set")
@click.argument("name")
@_permission
@click.option("--add", multiple=True, metavar="PERMISSION", help="Allow this too; several may be given.")
@click.option("--remove", multiple=True, metavar="PERMISSION", help="Allow this no longer; several may be given.")
@click.option("--summary", help="What it is for.")
@output.output_option
@client_options
def set_role(
    url: str,
    token: str | None,
    form: str,
    name: str,
    permissions: tuple[str, ...],
    add: tuple[str, ...],
    remove: tuple[str, ...],
    summary: str | None,
) -> None:
    """Change a role: what it allows from now on (--permission), or more or less of it; for everybody who has it."""
    if permissions and (add or remove):
        raise click.UsageError("say either --permission or --add and --remove")
    if not (permissions or add or remove or summary is not None):
        raise click.UsageError("say what to change: --permission, --add, --remove or --summary")
    with Api(url, token) as api:
        found = api.get(_path(name))
        allowed = set(permissions) or (set(found["permissions"]) | set(add)) - set(remove)
        body = {"summary": found["summary"] if summary is None else summary, "permissions": sorted(allowed)}
        _show(form, api.put(_path(name), body, headers=_match(found)))


@role.command()
@click.argument("name")
@client_options
def delete(url: str, token: str | None, name: str) -> None:
    """Remove a role that nobody has."""
    with Api(url, token) as api:
        headers = _match(api.get(_path(name)))
        api.delete(_path(name), headers=headers)
    output.note(f"removed {name}")


def _match(found: output.Row) -> dict[str, str]:
    return {"If-Match": "*" if found["version"] is None else f'"v{found["version"]}"'}


def _path(name: str) -> str:
    """
    Raises:
        click.UsageError: no role can be called so; it would name another address.
    """
    if not name[:1].isalnum() or not all(one.isalnum() or one in "._-" for one in name) or not name.isascii():
        raise click.UsageError(f"{name!r} is no role's name")
    return f"/roles/{name.lower()}"


def _show(form: str, data: output.Row) -> None:
    lines = [
        ("name", data["name"]),
        ("summary", data["summary"]),
        ("built in", "yes" if data["builtin"] else "no"),
        ("users", str(data["users"])),
        ("permissions", "\n".join(data["permissions"])),
    ]
    output.details(form, data, lines, str(data["name"]))
