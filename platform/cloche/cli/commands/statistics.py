"""``cloche stats`` and ``cloche queue stats``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import quote

import click

from cloche.cli import output
from cloche.cli.client import Api, client_options

F = TypeVar("F", bound=Callable[..., Any])


def window_option(command: F) -> F:
    """Adds ``--window`` to a command."""
    text = "How far back: 30s, 5m, 1h; between 10s and 24h."
    return click.option("--window", default="5m", show_default=True, help=text)(command)


def slots_line(count: Mapping[str, int], slots: Mapping[str, Any]) -> str:
    """Workers and slots in one line."""
    workers = ", ".join(f"{count[status]} {status}" for status in ("alive", "draining", "dead"))
    return f"workers: {workers}; slots: {slots['busy']} busy, {slots['free']} free"


def _flow(window: str, flow: Mapping[str, Any]) -> list[tuple[str, Any]]:
    share = flow["failure_share"]
    ends = f"{flow['completed']} completed, {flow['failed']} failed, {flow['canceled']} canceled"
    rates = f"{flow['arrival_rate']:.2f} came and {flow['completion_rate']:.2f} ended a second"
    failed = "" if share is None else f"; {share:.1%} of those that were judged failed"
    some = "" if flow["complete"] else " (of the newest alone)"
    return [(f"in {window}", f"{flow['arrived']} came, {ends}{some}"), ("", f"{rates}{failed}")]


def _times(times: Mapping[str, Any]) -> list[tuple[str, Any]]:
    def line(found: Mapping[str, float] | None) -> str:
        return "–" if found is None else ", ".join(f"{name} {value:.3f} s" for name, value in found.items())

    some = "" if times["complete"] else ", the newest"
    seen = f"{times['jobs_looked_at']} jobs{some}"
    return [("waited", line(times["wait_s"])), ("ran", line(times["run_s"])), ("of", seen)]


def _depth(depth: Mapping[str, int], complete: bool) -> str:
    return ", ".join(f"{count} {state}" for state, count in depth.items()) + ("" if complete else " (at least)")


@click.command()
@output.output_option
@client_options
def stats(url: str, token: str | None, form: str) -> None:
    """Say in numbers what comes, waits and ends in one's tenant, and how busy workers are."""
    with Api(url, token) as api:
        data = api.get("/stats")
    lines: list[tuple[str, Any]] = [
        ("jobs", _depth(data["jobs"], data["counts_complete"])),
        ("dead letters", str(data["dead_letters"])),
    ]
    for window, flow in data["windows"].items():
        lines += _flow(window, flow)
    lines += _times(data["times"])
    if data["workers"] is not None:
        lines.append(("platform", slots_line(data["workers"], data["slots"])))
    lines += [(f"queue {item['name']}", _depth(item["depth"], True)) for item in data["queues"]]
    output.details(form, data, lines, data["generated_at"])


@click.command("stats")
@click.argument("name")
@window_option
@output.output_option
@client_options
def queue_stats(url: str, token: str | None, form: str, name: str, window: str) -> None:
    """Say what waits in a queue, and what came and ended within the window."""
    if not name.strip(". "):
        raise click.UsageError("that is no name of a queue")
    with Api(url, token) as api:
        data = api.get(f"/queues/{quote(name, safe='')}/stats", window=window)
    age = data["oldest_age_s"]
    lines: list[tuple[str, Any]] = [
        ("queue", data["name"]),
        ("jobs", _depth(data["depth"], data["depth_complete"])),
        ("oldest waits", None if age is None else f"{age:.1f} s"),
        *_flow(window, data["flow"]),
        *_times(data["times"]),
    ]
    output.details(form, data, lines, data["name"])
