"""``cloche doctor``: what this machine can and cannot do; with ``--sandbox``, what its sandboxes withstand."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import click
from sqlalchemy import Connection, make_url

from cloche import logs
from cloche.cli import exits, output
from cloche.cli.settings import load_settings, settings_options
from cloche.cli.up import valkey
from cloche.cli.up.checks import free_port
from cloche.config import Settings
from cloche.db import migrate
from cloche.db.engine import Database
from cloche.domain.egress import platform_egress
from cloche.domain.runtimes import RUNC, RUNTIMES
from cloche.errors import ClocheError, EnvironmentProblem
from cloche.isolation.spec import CONTAINER, LEVELS
from cloche.queueing.redis_broker import RedisBroker
from cloche.sandboxd.doctor import Check, checks
from cloche.sandboxd.probes.bench import open_bench
from cloche.sandboxd.probes.probe import Finding, Verdict
from cloche.sandboxd.probes.run import run_all
from cloche.sandboxd.probes.table import for_level, for_runtime

_MARKS = {"ok": "✓", "warn": "!", "fail": "✗"}
_WORDS = {Verdict.HELD: "held", Verdict.FAILED: "FAILED", Verdict.NOT_APPLICABLE: "not applicable"}
_COLUMNS: output.Columns = (
    ("", lambda row: _MARKS.get(row["status"], row["status"])),
    ("CHECK", lambda row: row["name"]),
    ("FOUND", lambda row: row["detail"]),
    ("DO", lambda row: row["advice"]),
)


@click.command()
@settings_options
@click.option(
    "--sandbox", is_flag=True, help="Run the hostile probes in real sandboxes instead; one that does not hold exits 1."
)
@click.option(
    "--runtime",
    type=click.Choice(RUNTIMES),
    default=RUNC,
    help="Runtime of the sandboxes for --sandbox; runc unless given.",
)
@click.option(
    "--level", type=click.Choice(LEVELS), default=CONTAINER, help="Isolation level of the sandboxes for --sandbox."
)
@output.output_option
def doctor(home: str | None, config: str | None, sandbox: bool, runtime: str, level: str, form: str) -> int:
    """Say what this machine can and cannot do. Exits 1 when something that jobs need is missing."""
    settings = load_settings("doctor", home, config)
    if runtime != RUNC and level != CONTAINER:
        raise click.UsageError(
            "--level namespace is for runtime runc: cells are made of the host kernel's own namespaces"
        )
    if sandbox:
        return _probe(settings, runtime, level, form)

    rows = [asdict(check) for check in [*checks(settings), *_platform(settings)]]
    output.show(form, {"checks": rows}, rows=rows, columns=_COLUMNS, name=lambda row: f"{row['name']} {row['status']}")
    return exits.FAILED if any(row["status"] == "fail" for row in rows) else exits.OK


def _probe(settings: Settings, runtime: str, level: str, form: str) -> int:
    """Every probe on a sandboxd of our own with this machine's engine and image; the home and its jobs are not touched."""
    logs.setup("error", "console", "doctor")
    findings: list[Finding] = []
    probes = for_runtime(runtime) if level == CONTAINER else for_level(level)
    with open_bench(settings, runtime, level) as bench:
        for finding in run_all(bench, probes):
            findings.append(finding)
            if form == "table":
                click.echo(_line(finding))
    rows = [
        {
            "id": finding.probe.id,
            "group": finding.probe.group,
            "tries": finding.probe.tries,
            "expects": finding.probe.expects,
            "verdict": str(finding.verdict),
            "found": finding.found,
        }
        for finding in findings
    ]
    if form != "table":
        output.show(form, {"probes": rows}, rows=rows, columns=(), name=lambda row: f"{row['id']} {row['verdict']}")
    counts = {verdict: sum(finding.verdict == verdict for finding in findings) for verdict in Verdict}
    click.echo(", ".join(f"{number} {_WORDS[verdict]}" for verdict, number in counts.items()), err=True)
    return exits.FAILED if counts[Verdict.FAILED] else exits.OK


def _line(finding: Finding) -> str:
    probe = finding.probe
    text = f"{_WORDS[finding.verdict]:<14}  {probe.group}: {probe.id}  {probe.tries} → {probe.expects}"
    return output.one_line(f"{text}  FOUND {finding.found}" if finding.found else text)


def _platform(settings: Settings) -> list[Check]:
    return [_home(settings), _database(settings), _redis(settings), _port(settings), _egress(settings)]


def _home(settings: Settings) -> Check:
    folder = settings.home
    while not folder.exists():
        folder = folder.parent
    try:
        valkey.check_socket_path(settings.sandboxd_socket)
    except EnvironmentProblem as error:
        return Check("home", "fail", str(error), "Set CLOCHE_HOME to a shorter path.")
    if not os.access(folder, os.W_OK | os.X_OK):
        return Check("home", "fail", f"{folder} cannot be written", "Set CLOCHE_HOME to a folder of your own.")
    return Check(
        "home", "ok", f"{settings.home} can be written" if folder == settings.home else f"{settings.home} can be made"
    )


def _database(settings: Settings) -> Check:
    url = make_url(settings.database_url)
    if url.get_backend_name() != "sqlite":
        return _server(settings.database_url, f"PostgreSQL, {url.host or 'local'}, database {url.database}")
    path = Path(url.database or "")
    if not path.exists():
        return Check("database", "ok", f"{path} will be made")
    try:
        at = migrate.current(settings.database_url)
    except ClocheError as error:
        return Check("database", "fail", str(error), "Set CLOCHE_DATABASE_URL, or bring the file back.")
    return Check("database", "ok", f"{path}, schema {at or 'empty'}")


def _server(url: str, name: str) -> Check:
    """What is promised of a commit holds only where the server keeps its word to the disk."""
    try:
        at = migrate.current(url)
        with closing(Database(url, pool=2)) as db:
            unsafe, room = db.read(_server_facts)
    except ClocheError as error:
        return Check("database", "fail", f"{name}: {error}", "Start it, or correct CLOCHE_DATABASE_URL.")
    if unsafe:
        advice = "Set it to on: after a crash of its host accepted jobs could be gone, or the database unreadable."
        return Check("database", "fail", f"{name}: {' and '.join(unsafe)} off", advice)
    return Check("database", "ok", f"{name}, schema {at or 'empty'}, {room}")


def _server_facts(connection: Connection) -> tuple[list[str], str]:
    asked = "SELECT name, setting FROM pg_settings WHERE name IN ('fsync', 'full_page_writes', 'server_version', 'max_connections')"
    facts: dict[str, str] = {name: setting for name, setting in connection.exec_driver_sql(asked)}
    unsafe = [name for name in ("fsync", "full_page_writes") if facts.get(name) != "on"]
    return unsafe, f"version {facts['server_version']}, at most {facts['max_connections']} connections"


def _redis(settings: Settings) -> Check:
    if not settings.redis.url and not valkey.answers(settings.home / "run" / "valkey.sock"):
        try:
            return Check("redis", "ok", f"embedded, not running: `cloche up` starts {valkey.binary()}")
        except ClocheError as error:
            return Check("redis", "fail", "no server and no URL", str(error))
    broker = RedisBroker(settings.redis_url)
    try:
        broker.ping()
    except ClocheError as error:
        return Check("redis", "fail", f"does not answer: {error}", "Start it, or set CLOCHE_REDIS_URL.")
    finally:
        broker.close()
    return Check("redis", "ok", "answers")


def _egress(settings: Settings) -> Check:
    try:
        rules = platform_egress(settings.egress.enabled, settings.egress.allow, settings.egress.private)
    except ClocheError as error:
        return Check("egress", "fail", str(error), "Correct CLOCHE_EGRESS_ALLOW or CLOCHE_EGRESS_PRIVATE.")
    if not rules.policy.patterns:
        return Check("egress", "ok", "no job reaches anything; CLOCHE_EGRESS_ALLOW lists what may be reached")
    inside = f"; of this side's networks {', '.join(map(str, rules.private))}" if rules.private else ""
    return Check("egress", "ok", f"at most {', '.join(map(str, rules.policy.patterns[:8]))}{inside}")


def _port(settings: Settings) -> Check:
    where = f"{settings.server.host}:{settings.server.port}"
    try:
        free_port(settings.server.host, settings.server.port)
    except EnvironmentProblem as error:
        return Check("port", "warn", str(error), "Nothing to do if it is Cloche that listens there.")
    return Check("port", "ok", f"{where} is free")
