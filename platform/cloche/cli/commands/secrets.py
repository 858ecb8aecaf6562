"""``cloche secret``: set, list, get, delete, grant, revoke."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from cloche.cli import exits, output
from cloche.cli.client import Api, ApiFailure, client_options
from cloche.domain.secrets import MAX_VALUE


@click.group()
def secret() -> None:
    """Set secrets that jobs get, and say which plugin versions get them. Values go in and are never shown."""


@secret.command("set")
@click.argument("name")
@click.option("--file", "path", type=click.Path(path_type=Path), help="Read the value from this file, not from stdin.")
@click.option("--description", help="What it is for; everybody who may see secrets reads it.")
@click.option("--keep-newline", is_flag=True, help="Keep the newline at the value's end; otherwise one is left out.")
@output.output_option
@client_options
def set_secret(
    url: str, token: str | None, form: str, name: str, path: Path | None, description: str | None, keep_newline: bool
) -> None:
    """Create the secret NAME, or give it another value, from stdin or a file: never from the command line, which others can see."""
    value = _read(path, keep_newline)
    body: dict[str, Any] = {"value": value} if description is None else {"value": value, "description": description}
    with Api(url, token) as api:
        try:
            version = api.get(f"/secrets/{name}")["version"]
        except ApiFailure as failure:
            if failure.status != 404:
                raise
            _show(form, api.post("/secrets", {"name": name, **body}))
            return
        _show(form, api.put(f"/secrets/{name}", body, headers=_match(version)))


@secret.command("list")
@output.output_option
@client_options
def list_secrets(url: str, token: str | None, form: str) -> None:
    """List the tenant's secrets, without their values."""
    with Api(url, token) as api:
        data = api.get("/secrets")
    columns = [
        ("NAME", lambda row: row["name"]),
        ("VALUE", lambda row: f"v{row['value_version']}"),
        ("GRANTED TO", lambda row: ", ".join(_granted(row)) or "nobody"),
        ("UPDATED", lambda row: row["updated_at"]),
        ("LAST USED", lambda row: row["last_used_at"]),
        ("DESCRIPTION", lambda row: row["description"]),
    ]
    output.show(form, data, rows=data["items"], columns=columns, name=lambda row: row["name"])


@secret.command("get")
@click.argument("name")
@output.output_option
@client_options
def get_secret(url: str, token: str | None, form: str, name: str) -> None:
    """Show what is known of a secret; never its value."""
    with Api(url, token) as api:
        _show(form, api.get(f"/secrets/{name}"))


@secret.command("delete")
@click.argument("name")
@client_options
def delete_secret(url: str, token: str | None, name: str) -> None:
    """Remove a secret. Jobs of plugins that name it fail as `secret_denied` when they begin."""
    with Api(url, token) as api:
        api.delete(f"/secrets/{name}", headers=_match(api.get(f"/secrets/{name}")["version"]))
    output.note(f"{name} is removed")


@secret.command("grant")
@click.argument("name")
@click.argument("plugin")
@click.argument("versions")
@output.output_option
@client_options
def grant(url: str, token: str | None, form: str, name: str, plugin: str, versions: str) -> None:
    """Give the secret NAME to these VERSIONS of PLUGIN: '==1.2.0', '>=1,<2', or '*' for every one, those to come among them."""
    with Api(url, token) as api:
        found = api.get(f"/secrets/{name}")
        kept = [*_asked(found), {"plugin": plugin, "versions": versions}]
        _show(form, api.put(f"/secrets/{name}/grants", {"grants": kept}, headers=_match(found["version"])))


@secret.command("revoke")
@click.argument("name")
@click.argument("plugin")
@click.argument("versions", required=False)
@output.output_option
@client_options
def revoke(url: str, token: str | None, form: str, name: str, plugin: str, versions: str | None) -> None:
    """Take the grants to PLUGIN away, or the one that says VERSIONS as `secret get` shows it. Jobs that run keep what they have."""
    with Api(url, token) as api:
        found = api.get(f"/secrets/{name}")
        asked = _asked(found)
        kept = [one for one in asked if one["plugin"] != plugin or versions not in (None, one["versions"])]
        if kept == asked:
            raise ApiFailure(f"{name} is not granted to {plugin} {versions or ''}".rstrip(), exits.NOT_FOUND)
        _show(form, api.put(f"/secrets/{name}/grants", {"grants": kept}, headers=_match(found["version"])))


def _read(path: Path | None, keep_newline: bool) -> str:
    try:
        data = sys.stdin.buffer.read(MAX_VALUE + 3) if path is None else _file(path)
        text = data.decode("utf-8")
    except OSError as error:
        raise click.UsageError(f"the value cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise click.UsageError("the value is not UTF-8 text; encode it, for example in base64") from None
    if not keep_newline:
        text = text[:-2] if text.endswith("\r\n") else text.removesuffix("\n")
    return text


def _file(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(MAX_VALUE + 3)  # a longer one is refused, whatever its end


def _match(version: int) -> dict[str, str]:
    return {"If-Match": f'"v{version}"'}


def _asked(found: dict[str, Any]) -> list[dict[str, str]]:
    return [{"plugin": one["plugin"], "versions": one["versions"]} for one in found["grants"]]


def _granted(row: Any) -> list[str]:
    return [f"{one['plugin']} {one['versions']}" for one in row["grants"]]


def _show(form: str, data: dict[str, Any]) -> None:
    lines = [
        ("name", data["name"]),
        ("description", data["description"]),
        ("value", f"version {data['value_version']}" + ("" if data["masked"] else ", too short to be masked in logs")),
        ("granted to", "\n".join(_granted(data)) or "nobody"),
        ("created", f"{data['created_at']} by {data['created_by'] or '?'}"),
        ("updated", f"{data['updated_at']} by {data['updated_by'] or '?'}"),
        ("last used", data["last_used_at"] or "never"),
    ]
    output.details(form, data, lines, data["name"])
