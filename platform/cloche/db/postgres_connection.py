"""Connections to PostgreSQL that cannot hang: every wait for the server has an end, and the server ends what a lost client left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg
from sqlalchemy import URL, Engine, ExceptionContext, create_engine, event
from sqlalchemy.pool import QueuePool

from cloche.db import scope
from cloche.db.postgres_errors import without_values
from cloche.errors import EnvironmentProblem

OLDEST = 13  # pg_current_xact_id, pg_xact_status
CONNECT_S = 3
STATEMENT_S = 30
LOCK_S = 10
_READER_IDLE_S = 600  # a slow client of an export holds its snapshot open
ANSWER_S = STATEMENT_S + 5.0  # the server's own limit comes first, unless the server or the way to it is gone
_POOL_WAIT_S = 10.0
# The network's part: a peer that vanished without a word is noticed within about ten seconds.
_NETWORK: Mapping[str, Any] = {
    "connect_timeout": CONNECT_S,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
_SERVER = {
    "statement_timeout": STATEMENT_S * 1000,
    "lock_timeout": LOCK_S * 1000,
    "idle_in_transaction_session_timeout": _READER_IDLE_S * 1000,
}


class BoundedConnection(psycopg.Connection[Any]):
    """Gives up, and closes itself, when the server has not answered within 35 s. The driver alone would wait for ever."""

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        if timeout is not None:
            return super().wait(gen, interval, timeout)
        try:
            return super().wait(gen, interval, ANSWER_S)
        except psycopg.errors._WaitTimeout:
            self.pgconn.finish()
            raise psycopg.OperationalError(f"no answer within {ANSWER_S:.0f} s") from None


def open_engine(url: URL, *, pool: int) -> Engine:
    """An engine whose connections begin no transaction by themselves (``postgres_store`` does), at most ``pool`` at once."""
    target = url.set(drivername="postgresql+psycopg")
    options = " ".join(f"-c {name}={value}" for name, value in _SERVER.items())
    engine: Engine = create_engine(
        target,
        isolation_level="AUTOCOMMIT",
        poolclass=QueuePool,
        pool_size=pool,
        max_overflow=0,
        pool_timeout=_POOL_WAIT_S,
        pool_use_lifo=True,  # so that a quiet process lets most of them rest, and all of them be few
        hide_parameters=True,  # a statement's values, password hashes among them, never reach a log
        creator=lambda: _connect(engine, target, options),
    )
    event.listen(engine, "handle_error", _scrub)
    scope.guard(engine)
    return engine


def _connect(engine: Engine, url: URL, options: str) -> BoundedConnection:
    _, arguments = engine.dialect.create_connect_args(url)
    own = arguments.pop("options", "")
    settings = {**_NETWORK, "application_name": "cloche", "client_encoding": "utf8", **arguments}
    raw = BoundedConnection.connect(**settings, options=f"{options} {own}".strip(), autocommit=True)
    try:
        _check(raw)
    except BaseException:
        raw.close()
        raise
    return raw


def _check(raw: BoundedConnection) -> None:
    """Refuse a server that cannot keep the promises, and see to it that a commit is on the disk when it returns."""
    row = raw.execute(
        "SELECT current_setting('server_version_num')::int, current_setting('server_encoding'), current_setting('synchronous_commit')"
    ).fetchone()
    version, encoding, durable = row or (0, "", "")
    if version < OLDEST * 10_000:
        raise EnvironmentProblem(f"PostgreSQL {OLDEST} or newer is needed; this is {version // 10_000}")
    if encoding != "UTF8":
        raise EnvironmentProblem(f"the database's encoding is {encoding}: make one with ENCODING 'UTF8'")
    if durable in ("off", "local"):  # stricter ones (remote_apply) stay
        raw.execute("SET synchronous_commit = on")


def _scrub(context: ExceptionContext) -> None:
    orig = context.original_exception
    if isinstance(orig, psycopg.Error):
        said = without_values(orig)
        orig.args = (said,)
        if context.sqlalchemy_exception is not None:
            context.sqlalchemy_exception.args = (f"({type(orig).__name__}) {said}",)
