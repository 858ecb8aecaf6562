"""``cloche quota``: mine, get, set, clear. ``cloche usage``."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import click

from cloche.cli import output
from cloche.cli.client import Api, client_options
from cloche.domain.quotas import KIND_TEXT, UNLIMITED, Kind
from cloche.units import parse_size

_OPTIONS = {
    "jobs": Kind.JOBS,
    "submissions": Kind.SUBMISSIONS,
    "storage": Kind.STORAGE,
    "cpu": Kind.CPU,
}
_DEFAULT = "default"
_COLUMNS: output.Columns = (
    ("DAY", lambda row: row.get("day")),
    ("TENANT", lambda row: row.get("tenant") or row.get("tenant_id")),
    ("USER", lambda row: row.get("user") or row.get("user_id")),
    ("ATTEMPTS", lambda row: row["attempts"]),
    ("CPU S", lambda row: f"{row['cpu_seconds']:.1f}"),
    ("GB S", lambda row: f"{row['memory_gb_seconds']:.1f}"),
    ("WALL S", lambda row: f"{row['wall_seconds']:.1f}"),
    ("IN", lambda row: output.size(row["bytes_in"])),
    ("OUT", lambda row: output.size(row["bytes_out"])),
    ("STORED", lambda row: output.size(row["bytes_stored"])),
)


@click.command()
@click.option(
    "--since", metavar="DAY", help="The first day (UTC), such as 2026-01-31; 30 days before the last when absent."
)
@click.option("--until", metavar="DAY", help="The day after the last; tomorrow when absent.")
@click.option(
    "--group",
    type=click.Choice(("tenant", "user", "day")),
    default="day",
    show_default=True,
    help="What each row is of.",
)
@click.option("--platform", is_flag=True, help="Of every tenant (quota:manage).")
@output.output_option
@client_options
def usage(
    url: str, token: str | None, form: str, since: str | None, until: str | None, group: str, platform: bool
) -> None:
    """Say what jobs have used, summed over whole days."""
    asked = {"since": since, "until": until, "group": group, "scope": "platform" if platform else None}
    with Api(url, token) as api:
        data = api.get("/usage", **{name: value for name, value in asked.items() if value is not None})
    columns = [one for one in _COLUMNS if one[0] not in ("DAY", "TENANT", "USER") or one[0] in _keys(group)]
    rows = [*data["items"], {"day": "total", "tenant": "total", "user": "total", **data["total"]}]
    output.show(form, data, rows=rows, columns=columns, name=lambda row: str(row.get(group)))
    if not data["complete"]:
        output.note("there are more rows than this; ask for fewer days")


def _keys(group: str) -> tuple[str, ...]:
    return {"day": ("DAY",), "tenant": ("TENANT",), "user": ("TENANT", "USER")}[group]


@click.group()
def quota() -> None:
    """See and set what tenants and users may use at most."""


@quota.command()
@output.output_option
@client_options
def mine(url: str, token: str | None, form: str) -> None:
    """Show what oneself and one's tenant may use, and have used."""
    with Api(url, token) as api:
        data = api.get("/usage/limits")
    lines = [
        (f"{whose}: {KIND_TEXT[kind]}", _used(data[whose][kind.value])) for whose in ("tenant", "user") for kind in Kind
    ]
    output.details(form, data, lines, "\n".join(f"{label}\t{value}" for label, value in lines))


def _used(one: dict[str, Any]) -> str:
    used = "" if one["used"] is None else f"{one['used']:g} of "
    resets = "" if one["resets_at"] is None else f" until {one['resets_at']}"
    return f"{used}{one['limit']}{resets}"


def whose_options(command: Any) -> Any:
    """Adds ``--tenant`` and ``--user`` to a command."""
    command = click.option("--tenant", metavar="ID", help="Of this tenant (quota:manage).")(command)
    return click.option("--user", metavar="ID", help="Of this user of one's tenant (quota:assign).")(command)


@quota.command("get")
@whose_options
@output.output_option
@client_options
def get_quota(url: str, token: str | None, form: str, tenant: str | None, user: str | None) -> None:
    """Show what was set for a tenant or a user, and what holds."""
    path = _path(tenant, user)
    with Api(url, token) as api:
        _show(form, api.get(path))


@quota.command("set")
@whose_options
@click.option("--jobs", metavar="N", help="Jobs that have not ended: a number, `unlimited` or `default`.")
@click.option("--submissions", metavar="N", help="Jobs submitted within any minute.")
@click.option("--storage", metavar="SIZE", help="Bytes of stored files, such as 10GB.")
@click.option("--cpu", metavar="SECONDS", help="CPU-seconds of one day of UTC.")
@output.output_option
@client_options
def set_quota(
    url: str, token: str | None, form: str, tenant: str | None, user: str | None, **asked: str | None
) -> None:
    """Set limits of a tenant or a user; what is not named stays as it is."""
    path = _path(tenant, user)
    changed = {_OPTIONS[name].value: _limit(name, text) for name, text in asked.items() if text is not None}
    if not changed:
        raise click.UsageError("name a limit: --jobs, --submissions, --storage, --cpu")
    with Api(url, token) as api:
        before = api.get(path)
        headers = {"If-Match": f'"v{before["version"]}"'}
        _show(form, api.put(path, {**before["limits"], **changed}, headers=headers))


@quota.command()
@click.option("--user", metavar="ID", required=True, help="Of this user of one's tenant (quota:assign).")
@client_options
def clear(url: str, token: str | None, user: str) -> None:
    """Let the default hold for a user again."""
    path = _path(None, user)
    with Api(url, token) as api:
        version = api.get(path)["version"]
        api.delete(path, headers={"If-Match": f'"v{version}"'})


def _path(tenant: str | None, user: str | None) -> str:
    if (tenant is None) == (user is None):
        raise click.UsageError("name either --tenant or --user")
    kind, name = ("tenants", tenant) if tenant is not None else ("users", user)
    if not str(name).strip(". "):
        raise click.UsageError("that is no id")
    return f"/{kind}/{quote(str(name), safe='')}/quotas"


def _limit(name: str, text: str) -> int | str | None:
    if text == _DEFAULT:
        return None
    if text == UNLIMITED:
        return UNLIMITED
    try:
        return parse_size(text) if name == "storage" and not text.isdigit() else int(text)
    except ValueError:
        raise click.UsageError(f"--{name}: write a number, `unlimited` or `default`") from None


def _show(form: str, data: dict[str, Any]) -> None:
    lines: list[tuple[str, Any]] = []
    for kind in Kind:
        own = "" if data["limits"][kind.value] is not None else " (default)"
        lines.append((KIND_TEXT[kind], f"{data['effective'][kind.value]}{own}"))
    output.details(form, data, [*lines, ("version", str(data["version"]))], str(data["version"]))
