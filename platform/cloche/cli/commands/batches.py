"""``cloche batch``: submit, get, list, jobs, wait, cancel, retry."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import IO, Any

import click

from cloche.cli import exits, output
from cloche.cli.client import Api, client_options
from cloche.cli.commands.jobs import Duration, path_part
from cloche.cli.jobview import COLUMNS
from cloche.cli.pages import gathered

_POLL_S = (0.25, 5.0)  # the first pause between two looks, and the longest
_BATCH_COLUMNS: output.Columns = (
    ("ID", lambda row: row["id"]),
    ("NAME", lambda row: row.get("name")),
    ("JOBS", lambda row: row["count"]),
    ("BY", lambda row: row.get("submitted_by")),
    ("CREATED", lambda row: row["created_at"]),
)


@click.group()
def batch() -> None:
    """Submit many jobs at once; watch and cancel them together."""


@batch.command()
@click.argument("file", type=click.File("r", encoding="utf-8"))
@click.option("--name", help="A name for people.")
@click.option("--idempotency-key", metavar="KEY", help="Submitting again with the same key makes no second batch.")
@output.output_option
@client_options
def submit(
    url: str, token: str | None, form: str, file: IO[str], name: str | None, idempotency_key: str | None
) -> None:
    """Submit the jobs in FILE (`-`: standard input): one a line as JSON, a JSON array, or a whole body. All are accepted, or none is."""
    body = read_jobs(file.read())
    if name is not None:
        body["name"] = name
    headers = {"Idempotency-Key": idempotency_key} if idempotency_key else None
    with Api(url, token) as api:
        made = api.post("/jobs/batch", body, headers=headers)
    output.details(form, made, _lines(made), str(made["id"]))


@batch.command()
@click.argument("batch_id")
@output.output_option
@client_options
def get(url: str, token: str | None, form: str, batch_id: str) -> None:
    """Print how far a batch is."""
    with Api(url, token) as api:
        _show(form, api.get(f"/batches/{path_part(batch_id)}"))


_limit = click.option(
    "--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="At most this many."
)


@batch.command("list")
@_limit
@output.output_option
@client_options
def list_batches(url: str, token: str | None, form: str, limit: int) -> None:
    """List batches, newest first."""
    with Api(url, token) as api:
        _pages(api, form, "/batches", limit, _BATCH_COLUMNS)


@batch.command()
@click.argument("batch_id")
@click.option("--status", help="Only jobs in this state.")
@_limit
@output.output_option
@client_options
def jobs(url: str, token: str | None, form: str, batch_id: str, status: str | None, limit: int) -> None:
    """List a batch's jobs in the order they were submitted in."""
    with Api(url, token) as api:
        _pages(api, form, f"/batches/{path_part(batch_id)}/jobs", limit, COLUMNS, status=status)


@batch.command()
@click.argument("batch_id")
@click.option("--timeout", type=Duration(), help="Stop waiting after this long; exit code 3.")
@output.output_option
@client_options
def wait(url: str, token: str | None, form: str, batch_id: str, timeout: float | None) -> int:
    """Wait until every job of a batch has ended: 0 all completed, 1 one failed, 3 one canceled or not yet ended."""
    deadline = None if timeout is None else time.monotonic() + timeout
    pause, longest = _POLL_S
    with Api(url, token) as api:
        while True:
            found = api.get(f"/batches/{path_part(batch_id)}")
            left = longest if deadline is None else deadline - time.monotonic()
            if found["status"] == "ended" or left <= 0:
                break
            time.sleep(min(pause, left))
            pause = min(longest, pause * 1.5)
    _show(form, found)
    if found["status"] != "ended":
        output.note(f"batch {found['id']} is still {found['status']}; it goes on")
        return exits.of_job("pending")
    worst = next((status for status in ("failed", "canceled") if found["jobs"][status]), "completed")
    return exits.of_job(worst)


@batch.command()
@click.argument("batch_id")
@output.output_option
@client_options
def cancel(url: str, token: str | None, form: str, batch_id: str) -> None:
    """Cancel every job of a batch that has not ended."""
    with Api(url, token) as api:
        _show(form, api.post(f"/batches/{path_part(batch_id)}/cancel"))


@batch.command()
@click.argument("batch_id")
@output.output_option
@client_options
def retry(url: str, token: str | None, form: str, batch_id: str) -> int:
    """Retry every job of a batch that has failed."""
    with Api(url, token) as api:
        found = api.post(f"/batches/{path_part(batch_id)}/retry")
    _show(form, found)
    for item in found["skipped"]:
        output.note(f"left {item['id']}: {item['detail']}")
    if (more := found["skipped_count"] - len(found["skipped"])) > 0:
        output.note(f"left {more} more")
    return exits.FAILED if found["skipped_count"] else exits.OK


def read_jobs(text: str) -> dict[str, Any]:
    """The body that the text means: one job a line, an array of jobs, or the body itself.

    Raises:
        click.UsageError: it is none of these; the message names the line.
    """
    try:
        whole = json.loads(text)
    except ValueError:
        return {"jobs": [_job(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]}
    if isinstance(whole, list):
        return {"jobs": whole}
    if isinstance(whole, dict):
        return whole if "jobs" in whole else {"jobs": [whole]}
    raise click.UsageError("FILE holds neither jobs one a line, nor an array of jobs, nor a body with 'jobs'")


def _job(number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise click.UsageError(f"FILE, line {number} is not a job as JSON: {error}") from None


def _pages(api: Api, form: str, path: str, limit: int, columns: output.Columns, **filters: Any) -> None:
    data = gathered(api, path, limit, **filters)
    output.show(form, data, rows=data["items"], columns=columns, name=lambda row: str(row["id"]))


def _show(form: str, found: Mapping[str, Any]) -> None:
    output.details(form, found, _lines(found), str(found["id"]))


def _lines(found: Mapping[str, Any]) -> list[tuple[str, Any]]:
    states = {status: count for status, count in (found.get("jobs") or {}).items() if count}
    if found.get("purged"):
        states["purged"] = found["purged"]
    status = found.get("status")
    return [
        ("id", found["id"]),
        ("name", found.get("name")),
        ("status", f"{status}: {100 * found['done']:.1f} % of {found['count']} have ended" if status else None),
        ("jobs", ", ".join(f"{count} {name}" for name, count in states.items()) or str(found["count"])),
        ("refs", "\n".join(f"{ref} {job_id}" for ref, job_id in (found.get("refs") or {}).items())),
        ("warning", "\n".join(found.get("warnings") or ())),
        ("created", found["created_at"]),
        ("started", found.get("started_at")),
        ("finished", found.get("finished_at")),
    ]
