"""``cloche job``: submit, run, get, list, wait, cancel, retry, delete, logs, attempts, trace, callbacks, outputs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from cloche.cli import exits, output
from cloche.cli.client import Api, client_options
from cloche.cli.jobview import (
    ATTEMPT_COLUMNS,
    CALLBACK_COLUMNS,
    COLUMNS,
    TERMINAL,
    TRACE_COLUMNS,
    Progress,
    job_lines,
    outputs_columns,
)
from cloche.cli.pages import gathered, limit_option
from cloche.cli.request import callback_body, job_body
from cloche.clock import parse_duration
from cloche.domain.dependencies import Condition, OnFailure
from cloche.domain.retries import BACKOFFS

F = TypeVar("F", bound=Callable[..., Any])
_INPUT_HELP = "A local file, artifact:ID or remote:path; NAME is its place in the job."
_PAUSE_S = 0.5
_POLL_S = 25.0  # one long poll; the server may answer sooner


@click.group()
def job() -> None:
    """Submit, watch, list, cancel, retry and remove jobs."""


class Duration(click.ParamType):
    """A duration such as 30s or 5m, as seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        try:
            return parse_duration(int(value) if str(value).isdigit() else value) / 1000
        except ValueError as error:
            self.fail(str(error), param, ctx)


_RETRY_OPTIONS = (
    click.option("--backoff", type=click.Choice(BACKOFFS), help="How the longest wait before a retry grows."),
    click.option("--initial-delay", metavar="DURATION", help="Longest wait before the first retry."),
    click.option("--max-delay", metavar="DURATION", help="Longest wait before any retry."),
    click.option("--retry-on", multiple=True, metavar="REASON", help="Retry only after this failure; may be repeated."),
)
_WAITING_OPTIONS = (
    click.option("--schedule-at", metavar="TIME", help="Not before then, such as 2026-01-31T12:00:00Z."),
    click.option("--expires-at", metavar="TIME", help="Cancel it when it has not been started by then."),
    click.option("--expires-in", metavar="DURATION", help="The same, from now on."),
    click.option("--depends-on", multiple=True, metavar="JOB_ID", help="A job that has to end first; may be repeated."),
    click.option(
        "--depends-on-condition", type=click.Choice([one.value for one in Condition]), help="When the wait is over."
    ),
    click.option(
        "--on-upstream-failure",
        type=click.Choice([one.value for one in OnFailure]),
        help="What the failure of a job that it depends on means.",
    ),
)


def submit_options(command: F) -> F:
    """The options that describe a job, shared by ``submit`` and ``run``."""
    options = [
        click.argument("job_type", metavar="TYPE"),
        click.option("--version", help="Which version of the plugin: 1.2.0, ~=1.2, ==1.* …; its default when absent."),
        click.option(
            "-p", "params", multiple=True, metavar="KEY=VALUE", help="One parameter; VALUE is JSON, or else text."
        ),
        click.option("--payload", metavar="JSON|@FILE", help="All parameters as one JSON object, or from a file."),
        click.option("-i", "inputs", multiple=True, metavar="SOURCE[=NAME]", help=_INPUT_HELP),
        click.option(
            "--output", "outputs", multiple=True, metavar="MATCH[=REMOTE:FOLDER]", help="Where matching outputs go."
        ),
        click.option("--name", help="A name for people."),
        click.option("--priority", type=click.IntRange(0, 9), help="9 goes first."),
        click.option("--queue", help="The queue it waits in; `cloche queue list` shows them."),
        click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="A label to find the job by."),
        click.option(
            "--sensitive",
            is_flag=True,
            help="Encrypt at rest what the job holds, and mask it in every answer and page.",
        ),
        click.option("--timeout", metavar="DURATION", help="Time limit of one attempt, such as 30s."),
        click.option("--max-retries", type=click.IntRange(0, 100), help="Retries after a failure of the plugin."),
        *_RETRY_OPTIONS,
        *_WAITING_OPTIONS,
        click.option("--callback", metavar="URL", help="Told of the job's end by a signed POST."),
        click.option(
            "--callback-on", multiple=True, type=click.Choice(("completed", "failed", "canceled")), help="Only then."
        ),
        click.option(
            "--idempotency-key", metavar="KEY", help="Submitting again with the same key makes no second job."
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def reveal_option(command: F) -> F:
    """The option that shows what a sensitive job holds."""
    text = "Show what a sensitive job holds; the audit trail records that you read it."
    return click.option("--reveal", is_flag=True, help=text)(command)


def _submit(api: Api, options: Mapping[str, Any]) -> Any:
    options = dict(options)
    key = options.pop("idempotency_key")
    callback = callback_body(options.pop("callback"), options.pop("callback_on"))
    more = {"callback": callback, "queue": options.pop("queue")}
    body = job_body(api, **options) | {key: value for key, value in more.items() if value is not None}
    return api.post("/jobs", body, headers={"Idempotency-Key": key} if key else None)


def _show(form: str, found: Mapping[str, Any]) -> None:
    output.details(form, found, job_lines(found), str(found["id"]))


@job.command()
@submit_options
@output.output_option
@client_options
def submit(url: str, token: str | None, form: str, **options: Any) -> None:
    """Submit a job of TYPE and print it, without waiting. Local files are uploaded first."""
    with Api(url, token) as api:
        _show(form, _submit(api, options))


@job.command()
@submit_options
@click.option("--wait-timeout", type=Duration(), help="Stop waiting after this long (the job goes on); exit code 3.")
@click.option(
    "--save", type=click.Path(path_type=Path, file_okay=False), help="Download the output files into this folder."
)
@reveal_option
@output.output_option
@client_options
def run(
    url: str,
    token: str | None,
    form: str,
    wait_timeout: float | None,
    save: Path | None,
    reveal: bool,
    **options: Any,
) -> int:
    """Submit a job of TYPE, wait for its end, and exit with its verdict: 0 completed, 1 failed, 3 canceled."""
    with Api(url, token) as api:
        accepted = _submit(api, options)
        output.note(f"job {accepted['id']} accepted")
        found = follow(api, accepted, wait_timeout)
        _show(form, _read(api, str(found["id"]), True) if reveal else found)
        if save and found["status"] == "completed":
            _save(api, str(found["id"]), save)
        return exits.of_job(str(found["status"]))


@job.command()
@click.argument("job_id")
@reveal_option
@output.output_option
@client_options
def get(url: str, token: str | None, form: str, job_id: str, reveal: bool) -> None:
    """Print one job."""
    with Api(url, token) as api:
        _show(form, _read(api, job_id, reveal))


@job.command("list")
@click.option("--status", help="Only jobs in this state.")
@click.option("--type", help="Only jobs of this type.")
@click.option("--version", help="Only jobs of this version of their plugin, such as 1.2.0.")
@click.option("--queue", help="Only jobs of this queue.")
@click.option("--priority", type=click.IntRange(0, 9), help="Only jobs with this priority.")
@click.option("--label", metavar="KEY[=VALUE]", help="Only jobs with this label.")
@click.option("--submitted-by", metavar="USERNAME", help="Only this user's jobs.")
@click.option("--since", metavar="TIME", help="Only those submitted at this time or later.")
@click.option("--until", metavar="TIME", help="Only those submitted before this time.")
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="At most this many, newest first."
)
@output.output_option
@client_options
def list_jobs(url: str, token: str | None, form: str, limit: int, **filters: Any) -> None:
    """List jobs, newest first."""
    with Api(url, token) as api:
        data = gathered(api, "/jobs", limit, **filters)
    output.show(form, data, rows=data["items"], columns=COLUMNS, name=lambda row: str(row["id"]))


@job.command()
@click.argument("job_id")
@click.option("--timeout", type=Duration(), help="Stop waiting after this long; exit code 3.")
@output.output_option
@client_options
def wait(url: str, token: str | None, form: str, job_id: str, timeout: float | None) -> int:
    """Wait for a job's end and exit with its verdict: 0 completed, 1 failed, 3 canceled or not yet ended."""
    with Api(url, token) as api:
        found = follow(api, api.get(f"/jobs/{path_part(job_id)}"), timeout)
    _show(form, found)
    return exits.of_job(str(found["status"]))


@job.command()
@click.argument("job_id")
@output.output_option
@client_options
def cancel(url: str, token: str | None, form: str, job_id: str) -> None:
    """Cancel a job; one that runs is stopped within a second."""
    with Api(url, token) as api:
        _show(form, api.post(f"/jobs/{path_part(job_id)}/cancel"))


@job.command()
@click.argument("job_id")
@output.output_option
@client_options
def retry(url: str, token: str | None, form: str, job_id: str) -> None:
    """Begin the next run of a job that has failed or was canceled. Its old attempts stay."""
    with Api(url, token) as api:
        _show(form, api.post(f"/jobs/{path_part(job_id)}/retry"))


@job.command()
@click.argument("job_ids", nargs=-1, required=True, metavar="JOB_ID...")
@client_options
def delete(url: str, token: str | None, job_ids: tuple[str, ...]) -> None:
    """Remove jobs that have ended, with attempts, logs and trace. Their audit events stay."""
    with Api(url, token) as api:
        for job_id in job_ids:
            api.delete(f"/jobs/{path_part(job_id)}")
            output.note(f"removed {job_id}")


@job.command()
@click.argument("job_id")
@click.option("--attempt", type=click.IntRange(1), help="Only this attempt's output.")
@reveal_option
@client_options
def logs(url: str, token: str | None, job_id: str, attempt: int | None, reveal: bool) -> None:
    """Print what a job wrote to its standard output and error. On a terminal, control characters are written out."""
    with Api(url, token) as api:
        text = api.text(f"/jobs/{path_part(job_id)}/logs", attempt=attempt, reveal="true" if reveal else None)
    # Not click.echo, which would drop escape sequences from what is piped elsewhere.
    sys.stdout.write(output.printable(text) if sys.stdout.isatty() else text)


@job.command()
@click.argument("job_id")
@reveal_option
@limit_option
@output.output_option
@client_options
def attempts(url: str, token: str | None, form: str, job_id: str, limit: int, reveal: bool) -> None:
    """List a job's attempts, of all its runs, the first one first."""
    with Api(url, token) as api:
        path = f"/jobs/{path_part(job_id)}/attempts"
        data = gathered(api, path, limit, reveal="true" if reveal else None)
    output.show(form, data, rows=data["items"], columns=ATTEMPT_COLUMNS, name=lambda row: str(row["number"]))


@job.command()
@click.argument("job_id")
@limit_option
@output.output_option
@client_options
def trace(url: str, token: str | None, form: str, job_id: str, limit: int) -> None:
    """List what happened to a job, step by step."""
    with Api(url, token) as api:
        data = gathered(api, f"/trace/{path_part(job_id)}", limit)
    output.show(form, data, rows=data["items"], columns=TRACE_COLUMNS, name=lambda row: str(row["event_type"]))


@job.command()
@click.argument("job_id")
@output.output_option
@client_options
def callbacks(url: str, token: str | None, form: str, job_id: str) -> None:
    """List what the job's callback was told, and what it is still to be told."""
    with Api(url, token) as api:
        data = api.get(f"/jobs/{path_part(job_id)}/callbacks")
    output.show(form, data, rows=data["items"], columns=CALLBACK_COLUMNS, name=lambda row: str(row["id"]))


@job.command()
@click.argument("job_id")
@click.option(
    "--save", type=click.Path(path_type=Path, file_okay=False), help="Download them into this folder, with their paths."
)
@output.output_option
@client_options
def outputs(url: str, token: str | None, form: str, job_id: str, save: Path | None) -> None:
    """List a job's output files."""
    with Api(url, token) as api:
        data = api.get(f"/jobs/{path_part(job_id)}/outputs")
        output.show(form, data, rows=data["items"], columns=outputs_columns(), name=lambda row: str(row["path"]))
        if save:
            _save(api, job_id, save)


def _read(api: Api, job_id: str, reveal: bool) -> Any:
    return api.get(f"/jobs/{path_part(job_id)}", reveal="true" if reveal else None)


def follow(api: Api, found: Any, timeout_s: float | None) -> Any:
    """Wait for the job's end with long polls, showing progress on a terminal; the job as it was last seen."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    with Progress() as progress:
        while found["status"] not in TERMINAL:
            left = _POLL_S if deadline is None else deadline - time.monotonic()
            if left <= 0:
                output.note(f"job {found['id']} is still {found['status']}; it goes on")
                break
            progress.update(found)
            asked, started = min(left, progress.interval_s or _POLL_S), time.monotonic()
            found = api.wait(str(found["id"]), asked)
            # A server with no room for one more long poll answers at once; asking again at once would make that worse.
            if found["status"] not in TERMINAL and time.monotonic() - started < asked / 2:
                time.sleep(min(_PAUSE_S, max(0.0, left)))
    return found


def path_part(text: str) -> str:
    """An id as part of a URL's path; refuses what cannot be one."""
    if not text or not all(letter.isalnum() or letter in "-_" for letter in text):
        raise click.BadParameter(f"'{output.printable(text)}' is not an id")
    return text


def _save(api: Api, job_id: str, folder: Path) -> None:
    from cloche.cli.download import save_outputs

    for target in save_outputs(api, api.get(f"/jobs/{path_part(job_id)}/outputs")["items"], folder):
        output.note(f"saved {target}")
