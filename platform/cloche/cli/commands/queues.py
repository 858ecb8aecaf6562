"""``cloche queue``: list, get, stats, create, set, pause, resume, delete."""

from __future__ import annotations

from typing import Any

import click

from cloche.cli import output
from cloche.cli.client import Api, client_options
from cloche.cli.commands.statistics import queue_stats

_COLUMNS: output.Columns = (
    ("NAME", lambda queue: queue["name"]),
    ("STATE", lambda queue: _state(queue)),
    ("PENDING", lambda queue: queue["depth"]["pending"]),
    ("RUNNING", lambda queue: queue["depth"]["processing"]),
    ("LIMIT", lambda queue: queue["max_concurrency"]),
    ("WORKERS", lambda queue: queue["worker_count"]),
    ("DESCRIPTION", lambda queue: queue["description"]),
)
_platform = click.option("--platform", is_flag=True, help="For every tenant, not for one's own alone (queue:manage).")
_limit = click.IntRange(1, 100_000)


@click.group()
def queue() -> None:
    """See, create, limit, pause, measure and remove queues."""


queue.add_command(queue_stats)


@queue.command("list")
@output.output_option
@client_options
def list_queues(url: str, token: str | None, form: str) -> None:
    """List queues; jobs are one's own tenant's."""
    with Api(url, token) as api:
        data = api.get("/queues")
    output.show(form, data, rows=data["items"], columns=_COLUMNS, name=lambda row: str(row["name"]))


@queue.command()
@click.argument("name")
@output.output_option
@client_options
def get(url: str, token: str | None, form: str, name: str) -> None:
    """Show one queue."""
    with Api(url, token) as api:
        _show(form, api.get(_path(name)))


@queue.command()
@click.argument("name")
@click.option("--description", help="What it is for.")
@click.option("--max-concurrency", type=_limit, help="Jobs of it that run at once at most, over all workers.")
@click.option("--paused", is_flag=True, help="Accept jobs, and start none.")
@output.output_option
@client_options
def create(
    url: str,
    token: str | None,
    form: str,
    name: str,
    description: str | None,
    max_concurrency: int | None,
    paused: bool,
) -> None:
    """Create a queue for every tenant (queue:manage). Workers take from it once their settings name it."""
    body = {"name": name, "description": description, "max_concurrency": max_concurrency, "paused": paused}
    with Api(url, token) as api:
        _show(form, api.post("/queues", body))


@queue.command("set")
@click.argument("name")
@click.option("--description", help="What it is for.")
@click.option("--max-concurrency", type=_limit, help="Jobs of it that run at once at most, over all workers.")
@click.option("--no-limit", is_flag=True, help="As many jobs as the workers have slots.")
@click.option("--weight", "weights", metavar="TENANT=N", multiple=True, help="A tenant's turns for one of the others'.")
@output.output_option
@client_options
def set_queue(
    url: str,
    token: str | None,
    form: str,
    name: str,
    description: str | None,
    max_concurrency: int | None,
    no_limit: bool,
    weights: tuple[str, ...],
) -> None:
    """Change a queue for every tenant (queue:manage)."""
    if no_limit and max_concurrency is not None:
        raise click.UsageError("say either --max-concurrency or --no-limit")
    body: dict[str, Any] = {} if description is None else {"description": description}
    if no_limit or max_concurrency is not None:
        body["max_concurrency"] = max_concurrency
    if weights:
        body["weights"] = dict(_weight(text) for text in weights)
    if not body:
        raise click.UsageError("say what to change: --description, --max-concurrency, --no-limit or --weight")
    _change(url, token, form, name, {"scope": "platform", **body})


@queue.command()
@click.argument("name")
@_platform
@output.output_option
@client_options
def pause(url: str, token: str | None, form: str, name: str, platform: bool) -> None:
    """Start no more jobs of a queue, for one's tenant. Jobs are still accepted, and what runs goes on."""
    _change(url, token, form, name, _pausing(platform, paused=True))


@queue.command()
@click.argument("name")
@_platform
@output.output_option
@client_options
def resume(url: str, token: str | None, form: str, name: str, platform: bool) -> None:
    """Start jobs of a queue again, for one's tenant."""
    _change(url, token, form, name, _pausing(platform, paused=False))


@queue.command()
@click.argument("name")
@client_options
def delete(url: str, token: str | None, name: str) -> None:
    """Remove a queue that no live job is in (queue:manage)."""
    with Api(url, token) as api:
        headers = _match(api.get(_path(name)))
        api.delete(_path(name), headers=headers)
    output.note(f"removed {name}")


def _pausing(platform: bool, *, paused: bool) -> dict[str, Any]:
    return {"scope": "platform" if platform else "tenant", "paused": paused}


def _change(url: str, token: str | None, form: str, name: str, body: dict[str, Any]) -> None:
    with Api(url, token) as api:
        headers = _match(api.get(_path(name)))
        _show(form, api.patch(_path(name), body, headers=headers))


def _match(queue: output.Row) -> dict[str, str]:
    return {"If-Match": f'"v{queue["version"]}"'}


def _path(name: str) -> str:
    """
    Raises:
        click.UsageError: no queue can be called so; it would name another address.
    """
    if not name.replace("-", "").replace("_", "").isalnum():
        raise click.UsageError(f"{name!r} is no queue's name")
    return f"/queues/{name}"


def _weight(text: str) -> tuple[str, int]:
    tenant, _, number = text.rpartition("=")
    if not tenant or not number.isascii() or not number.isdigit():
        raise click.UsageError(f"--weight is TENANT=N, not {text!r}")
    return tenant, int(number)


def _state(queue: output.Row) -> str:
    return f"paused ({', '.join(queue['paused_scopes'])})" if queue["paused"] else "open"


def _show(form: str, data: output.Row) -> None:
    depth = ", ".join(f"{count} {status}" for status, count in data["depth"].items() if count) or "none"
    lines = [
        ("name", data["name"]),
        ("description", data["description"]),
        ("state", _state(data)),
        ("limit", data["max_concurrency"] or "none"),
        ("running, of all tenants", str(data["current_load"])),
        ("jobs", depth),
        ("workers", f"{data['worker_count']} with {data['max_parallel_jobs']} slots"),
        ("weight", data["weight"]),
        ("version", data["version"]),
    ]
    output.details(form, data, lines, data["name"])
