"""``cloche doctor``: what this machine can and cannot do."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

import click
from sqlalchemy import make_url

from cloche.cli import exits, output
from cloche.cli.settings import load_settings, settings_options
from cloche.cli.up import valkey
from cloche.cli.up.checks import free_port
from cloche.config import Settings
from cloche.db import migrate
from cloche.errors import ClocheError, EnvironmentProblem
from cloche.queueing.redis_broker import RedisBroker
from cloche.sandboxd.doctor import Check, checks

_MARKS = {"ok": "✓", "warn": "!", "fail": "✗"}
_COLUMNS: output.Columns = (
    ("", lambda row: _MARKS.get(row["status"], row["status"])),
    ("CHECK", lambda row: row["name"]),
    ("FOUND", lambda row: row["detail"]),
    ("DO", lambda row: row["advice"]),
)


@click.command()
@settings_options
@output.output_option
def doctor(home: str | None, config: str | None, form: str) -> int:
    """Say what this machine can and cannot do. Exits 1 when something that jobs need is missing."""
    settings = load_settings("doctor", home, config)

    rows = [asdict(check) for check in [*checks(settings), *_platform(settings)]]
    output.show(form, {"checks": rows}, rows=rows, columns=_COLUMNS, name=lambda row: f"{row['name']} {row['status']}")
    return exits.FAILED if any(row["status"] == "fail" for row in rows) else exits.OK


def _platform(settings: Settings) -> list[Check]:
    return [_home(settings), _database(settings), _redis(settings), _port(settings)]


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
    path = Path(make_url(settings.database_url).database or "")
    if not path.exists():
        return Check("database", "ok", f"{path} will be made")
    try:
        at = migrate.current(settings.database_url)
    except ClocheError as error:
        return Check("database", "fail", str(error), "Set CLOCHE_DATABASE_URL, or bring the file back.")
    return Check("database", "ok", f"{path}, schema {at or 'empty'}")


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


def _port(settings: Settings) -> Check:
    where = f"{settings.server.host}:{settings.server.port}"
    try:
        free_port(settings.server.host, settings.server.port)
    except EnvironmentProblem as error:
        return Check("port", "warn", str(error), "Nothing to do if it is Cloche that listens there.")
    return Check("port", "ok", f"{where} is free")
