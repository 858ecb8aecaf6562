"""A real PostgreSQL of the tests' own: unprivileged, durable as by default, a database for each test copied from a migrated template."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import psycopg
from sqlalchemy import make_url

from cloche.db import migrate
from cloche.domain.jobs import QUEUES
from tests.support import ports
from tests.support.stores import short_folder, until

USER = "cloche"
TEMPLATE = "template_cloche"


def binaries() -> Path:
    """Where initdb and postgres lie: on PATH, or in Debian's folder of the newest version. A test that needs them fails when there are none."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    there = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    assert there, "no PostgreSQL: apt-get install postgresql"
    return there[-1].parent


class Postgres:
    """A server in ``folder``, on loopback. ``stop``, ``kill`` and ``start`` as often as wanted; the data stays.

    ``also``: a further address, and the network that may come to it.
    """

    def __init__(self, folder: Path, also: tuple[str, str] | None = None) -> None:
        self._also = also
        self._folder = folder
        self._data = folder / "data"
        self.password = secrets.token_urlsafe(12)
        self.port = 0  # taken at the first start, and kept
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = count(1)
        self._clean: list[str] = []
        self._user = _unprivileged()
        if self._user is not None:
            shutil.chown(folder, self._user)
            folder.chmod(0o700)

    def initialise(self) -> None:
        passwords = self._folder / "password"
        passwords.write_text(self.password)
        if self._user is not None:
            shutil.chown(passwords, self._user)
        # --no-sync: the files of an empty cluster are written anew when the machine stops now; the server itself syncs
        arguments = ["--no-sync", "--locale=C.UTF-8", "--encoding=UTF8", f"--username={USER}", "--auth=scram-sha-256"]
        subprocess.run(
            [binaries() / "initdb", "-D", self._data, f"--pwfile={passwords}", *arguments],
            user=self._user,
            cwd=self._folder,
            env=_environment(),
            check=True,
            capture_output=True,
        )
        with (self._data / "postgresql.conf").open("a") as conf:
            addresses = ",".join(["127.0.0.1", *([self._also[0]] if self._also else [])])
            conf.write(f"listen_addresses='{addresses}'\nunix_socket_directories='{self._folder}'\n")
            conf.write("max_connections=300\nshared_buffers=64MB\nlog_min_messages=fatal\n")

        if self._also:
            with (self._data / "pg_hba.conf").open("a") as conf:
                conf.write(f"host all all {self._also[1]} scram-sha-256\n")

    def start(self) -> None:
        self._process, self.port = ports.listening(self._launch, self.port, log=self._folder / "log")
        until(self._answers, 30, "PostgreSQL answers")

    def _launch(self, port: int) -> subprocess.Popen[bytes]:
        with (self._folder / "log").open("ab") as log:
            return subprocess.Popen(
                [binaries() / "postgres", "-D", self._data, "-p", str(port)],
                user=self._user,
                cwd=self._folder,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT ends every session and writes what is in memory; SIGQUIT (``immediate``) writes nothing, as after a crash."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(30)
            self._process = None

    def url(self, database: str) -> str:
        return f"postgresql://{USER}:{self.password}@127.0.0.1:{self.port}/{database}"

    def prepare(self) -> None:
        """The template: a database with the schema, which nobody uses any more."""
        self.run(f"CREATE DATABASE {TEMPLATE}")
        migrate.upgrade(self.url(TEMPLATE))

    @contextmanager
    def database(self) -> Iterator[str]:
        """The URL of a migrated database without a row that nobody else uses.

        Afterwards it is emptied for the next test: dropping it would take a checkpoint, and making one anew another.
        """
        name = self._clean.pop() if self._clean else self._copied()
        try:
            yield self.url(name)
        finally:
            if self._process is not None:
                self._empty(name)
                self._clean.append(name)

    @contextmanager
    def schemaless(self, encoding: str = "UTF8") -> Iterator[str]:
        """The URL of a database without any table; dropped in the end, with whoever is still connected."""
        name = f"t{next(self._numbers)}"
        self.run(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'")
        try:
            yield self.url(name)
        finally:
            if self._process is not None:
                self.run(f"DROP DATABASE {name} WITH (FORCE)")

    def _copied(self) -> str:
        name = f"t{next(self._numbers)}"
        self.run(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
        return name

    def _empty(self, name: str) -> None:
        self.run(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        tables = [row[0] for row in self.run("SELECT tablename FROM pg_tables WHERE schemaname = 'public'", name)]
        rows = "; ".join(f"DELETE FROM {table}" for table in tables if table != "alembic_version")
        rows += "; " + "; ".join(_QUEUE.format(queue) for queue in QUEUES)  # those that the schema comes with
        self.run(f"SET session_replication_role = replica; {rows}", name)  # a superuser's way around every trigger

    def run(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        with connect(self.url(database)) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def _answers(self) -> bool:
        assert self._process is not None and self._process.poll() is None, (self._folder / "log").read_text()[-2000:]
        try:
            self.run("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True


_QUEUE = "INSERT INTO queue VALUES ('{}', NULL, false, NULL, 1, 1, 1, 1)"


def connect(url: str) -> psycopg.Connection:
    """A plain session on the URL's database, as an operator or an attacker would have one."""
    parsed = make_url(url)
    return psycopg.connect(
        host=parsed.host,
        port=parsed.port,
        user=parsed.username,
        password=parsed.password,
        dbname=parsed.database,
        autocommit=True,
    )


@contextmanager
def running_postgres(also: tuple[str, str] | None = None) -> Iterator[Postgres]:
    with short_folder() as folder:
        server = Postgres(folder, also)
        server.initialise()
        server.start()
        try:
            server.prepare()
            yield server
        finally:
            server.stop(signal.SIGQUIT)  # what it holds is thrown away


def _unprivileged() -> str | None:
    """The user to run as; None where this is not root. PostgreSQL refuses root."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _environment() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", ""), "LANG": "C.UTF-8"}
