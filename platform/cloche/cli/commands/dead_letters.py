"""``cloche dead-letter``: list, replay, purge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from cloche.cli import exits, output
from cloche.cli.client import Api, client_options
from cloche.cli.pages import gathered

F = TypeVar("F", bound=Callable[..., Any])
_FILTERS = ("type", "queue", "reason", "label", "since", "until")
_COLUMNS: output.Columns = (
    ("ID", lambda job: job["id"]),
    ("TYPE", lambda job: job["type"]),
    ("NAME", lambda job: job.get("name")),
    ("REASON", lambda job: job["reason"]),
    ("ATTEMPTS", lambda job: len(job["attempts"])),
    ("FAILED", lambda job: job["finished_at"]),
    ("ERROR", lambda job: (job.get("error") or {}).get("message")),
)


@click.group("dead-letter")
def dead_letter() -> None:
    """See, replay and purge failed jobs."""


def filter_options(command: F) -> F:
    """Which dead letters; shared by all three."""
    options = [
        click.option("--type", help="Only jobs of this type."),
        click.option("--queue", help="Only jobs of this queue."),
        click.option("--reason", help="Only jobs that failed for this reason, such as timed_out or quarantined."),
        click.option("--label", metavar="KEY=VALUE", help="Only jobs with this label."),
        click.option("--since", metavar="TIME", help="Only those that failed at this time or later."),
        click.option("--until", metavar="TIME", help="Only those that failed before this time."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def choice_options(command: F) -> F:
    """By ids or by filter, and how many."""
    options = [
        click.argument("job_ids", nargs=-1, metavar="[JOB_ID]..."),
        click.option("--all", "everything", is_flag=True, help="All dead letters of the tenant."),
        click.option("--limit", type=click.IntRange(1, 1_000), help="At most this many, the oldest failures first."),
        click.option("--dry-run", is_flag=True, help="Only say how many there are."),
    ]
    for option in reversed(options):
        command = option(command)
    return filter_options(command)


@dead_letter.command("list")
@filter_options
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="At most this many, latest first."
)
@output.output_option
@client_options
def list_letters(url: str, token: str | None, form: str, limit: int, **filters: str | None) -> None:
    """List failed jobs with their error, the latest failure first."""
    with Api(url, token) as api:
        data = gathered(api, "/dead-letters", limit, **filters)
    output.show(form, data, rows=data["items"], columns=_COLUMNS, name=lambda row: str(row["id"]))


@dead_letter.command()
@choice_options
@output.output_option
@client_options
def replay(url: str, token: str | None, form: str, **chosen: Any) -> int:
    """Retry dead letters: those with these ids, those that fit the filter, or --all."""
    body = _choice(**chosen)
    with Api(url, token) as api:
        return _show(form, api.post("/dead-letters/replay", body), "replayed")


@dead_letter.command()
@choice_options
@output.output_option
@client_options
def purge(url: str, token: str | None, form: str, **chosen: Any) -> int:
    """Remove dead letters for good: those with these ids, those that fit the filter, or --all."""
    body = _choice(**chosen)
    with Api(url, token) as api:
        return _show(form, api.delete("/dead-letters", body), "purged")


def _choice(
    job_ids: Sequence[str], everything: bool, limit: int | None, dry_run: bool, **filters: str | None
) -> dict[str, Any]:
    """The request's body.

    Raises:
        click.UsageError: nothing is chosen, or more than one way is.
    """
    named = {key: filters[key] for key in _FILTERS if filters[key] is not None}
    if (bool(job_ids) + bool(named) + everything) != 1:
        raise click.UsageError("say which: ids, a filter such as --reason, or --all (one of the three)")
    if job_ids and limit is not None:
        raise click.UsageError("--limit goes with a filter or --all")
    body: dict[str, Any] = {"ids": list(job_ids)} if job_ids else {"filter": named}
    if limit is not None:
        body["limit"] = limit
    return body | ({"dry_run": True} if dry_run else {})


def _show(form: str, found: Any, done: str) -> int:
    lines = [
        ("fit", str(found["matched"])),
        (done, "none, this is a dry run" if found["dry_run"] else str(found["done"])),
        ("remaining", str(found["remaining"])),
    ]
    if form == "name":
        output.show(form, found, rows=found["ids"], columns=(), name=str)
    else:
        output.details(form, found, lines, "")
    for item in found["skipped"]:
        output.note(f"left {item['id']}: {item['detail']}")
    return exits.FAILED if found["skipped"] else exits.OK
