"""``cloche worker list|stats|drain``: workers as the API shows them."""

from __future__ import annotations

from typing import Any

import click

from cloche.cli import output
from cloche.cli.client import Api, client_options
from cloche.cli.commands.statistics import slots_line, window_option
from cloche.clock import is_uuid7


def _labels(worker: output.Row) -> str:
    return " ".join(f"{name}={value}" for name, value in sorted(worker["labels"].items()))


def _left(worker: output.Row, name: str) -> str:
    """``7.5 GB of 16.0 GB``."""
    found = worker["resources"] or {}
    if found.get(f"{name}_free") is None or found.get(f"{name}_total") is None:
        return ""
    return f"{output.size(found[f'{name}_free'])} of {output.size(found[f'{name}_total'])}"


def _load(worker: output.Row) -> str:
    found = worker["resources"] or {}
    return "" if found.get("load") is None else f"{found['load']:.2f} / {found.get('cpu_count') or '?'}"


_COLUMNS: output.Columns = (
    ("ID", lambda row: row["id"]),
    ("HOST", lambda row: row["host"]),
    ("PID", lambda row: row["pid"]),
    ("STATUS", lambda row: row["status"]),
    ("BUSY", lambda row: f"{row['busy']}/{row['slots']}"),
    ("QUEUES", lambda row: ",".join(row["queues"])),
    ("LABELS", _labels),
    ("LOAD/CPUS", _load),
    ("MEMORY LEFT", lambda row: _left(row, "memory")),
    ("DISK LEFT", lambda row: _left(row, "disk")),
    ("WHY", lambda row: row["status_reason"]),
)
_FINISHED: output.Columns = (
    ("ID", lambda row: row["id"]),
    ("HOST", lambda row: row["host"]),
    ("STATUS", lambda row: row["status"]),
    ("BUSY", lambda row: f"{row['busy']}/{row['slots']}"),
    ("COMPLETED", lambda row: row["completed"]),
    ("FAILED", lambda row: row["failed"]),
)


@click.command("list")
@output.output_option
@client_options
def list_workers(url: str, token: str | None, form: str) -> None:
    """List workers, newest first; those gone for an hour are forgotten."""
    with Api(url, token) as api:
        data = api.get("/workers")
    output.show(form, data, rows=data["items"], columns=_COLUMNS, name=lambda row: str(row["id"]))


@click.command()
@window_option
@output.output_option
@client_options
def stats(url: str, token: str | None, form: str, window: str) -> None:
    """Say how busy workers are, and how many of one's tenant's jobs each has finished within the window."""
    with Api(url, token) as api:
        data = api.get("/workers/stats", window=window)
    output.show(form, data, rows=data["workers"], columns=_FINISHED, name=lambda row: str(row["id"]))
    if form == "table":
        output.note(slots_line(data["count"], data["slots"]))
        if not data["complete"]:
            output.note(f"finished: of the newest {data['jobs_looked_at']} jobs alone")


@click.command()
@click.argument("worker_id")
@output.output_option
@client_options
def drain(url: str, token: str | None, form: str, worker_id: str) -> None:
    """Have a worker take nothing more, finish what it runs, and leave. Under `cloche up` its place stays empty."""
    if not is_uuid7(worker_id):
        raise click.UsageError("that is no id of a worker; `cloche worker list` shows them")
    with Api(url, token) as api:
        data: dict[str, Any] = api.post(f"/workers/{worker_id}/drain")
    lines = [
        ("id", data["id"]),
        ("host", data["host"]),
        ("status", data["status"]),
        ("still running", str(data["busy"])),
    ]
    output.details(form, data, lines, data["id"])
