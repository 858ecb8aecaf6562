"""Checkpoints sent off the machine, where nobody who holds database and keys can change them: to a file, a remote and a webhook.

The scheduler calls :meth:`CheckpointSender.run_once` again and again, also where the settings name no place: it forgets what they named
before. Each place gets the newest checkpoint when it is due and something was sealed since, with those that announce a key or a restore.
What fails is tried again with growing pauses, shown by ``failing`` (readiness, metrics) and recorded once when it begins and once when it
ends.
"""

from __future__ import annotations

import hmac
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, RowMapping, Select, and_, func, or_, select, update

from cloche import logs
from cloche.audit.note import note_hash, notes_in
from cloche.db import tables
from cloche.db.audit_log import AuditEntry, AuditLog
from cloche.db.dialect import insert_or
from cloche.db.engine import Database, now_ms
from cloche.domain.callbacks import Target, parse_url
from cloche.domain.events import Action, Outcome
from cloche.domain.permissions import system_actor
from cloche.errors import ClocheError, JobFailure, PlatformFailure, SettingsError
from cloche.services.audit_chain import SAYS
from cloche.services.audit_keeping import operator
from cloche.staging.paths import check_relative
from cloche.staging.transfer import RemoteFiles
from cloche.webhooks.client import NotDelivered, Sender

_batch, _sink = tables.audit_batch, tables.audit_sink
_RETRY_MS = 5_000
_CLAIM_MS = 120_000  # a sending that has not ended by then is somebody else's to try
_TAIL = 1 << 16
_log = logs.get(__name__)


class Sealed(NamedTuple):
    """A checkpoint to be sent: its batch's number and its note."""

    number: int
    note: str


Send = Callable[[Sequence[Sealed]], None]


@dataclass(frozen=True)
class Sink:
    """A place: its name (``file``, ``remote``, ``webhook``), where it is as far as that may be seen, and what sends there (raising OSError or
    ClocheError). ``address``: where it is, whole."""

    name: str
    place: str
    send: Send
    address: str = field(repr=False)


def file_sink(path: Path) -> Sink:
    """Notes are appended to the file, each whole, and on the disk when the sending returns."""
    return Sink("file", str(path)[:255], lambda sealed: _append(path, sealed), str(path))


def remote_sink(place: str, files: RemoteFiles) -> Sink:
    """Each note becomes a file of its own in a folder of a remote, ``checkpoint-<batch>-<SHA-256's first half>.txt``: nothing is ever
    overwritten, not even by the batches that a rolled back database seals under the same numbers."""
    name, _, folder = place.partition(":")

    def send(sealed: Sequence[Sealed]) -> None:
        with tempfile.TemporaryDirectory(prefix="cloche-checkpoint-") as scratch:
            for number, note in sealed:
                source = Path(scratch) / f"checkpoint-{number:012d}-{note_hash(note)[:32]}.txt"
                source.write_text(note, "utf-8")
                target = "/".join(part for part in (folder.strip("/"), source.name) if part)
                check_relative(target)
                files.store(source, name, target)
                found = files.stat(name, target)
                if found is None or found.size not in (-1, len(note.encode())):
                    raise PlatformFailure("remote_unavailable", f"the remote does not show {target} after storing it")

    return Sink("remote", place[:255], send, place)


def webhook_target(url: str) -> Target | None:
    """Where the setting leads; None where it is empty.

    Raises:
        SettingsError: it is no URL that can be sent to.
    """
    try:
        return parse_url(url) if url else None
    except ValueError as error:
        raise SettingsError(f"audit.checkpoint_webhook: {error}") from None


def webhook_sink(target: Target, sender: Sender) -> Sink:
    """One POST of all notes on end, as they would stand in a file: text that ``cloche audit verify --checkpoint`` reads. What follows the
    host in the URL may be a credential, and is shown nowhere."""

    def send(sealed: Sequence[Sealed]) -> None:
        headers = {"Content-Type": "text/plain; charset=utf-8", "Cloche-Batch": str(sealed[-1].number)}
        try:
            sender.post(target, headers, "".join(note for _, note in sealed).encode())
        except NotDelivered as error:
            raise ConnectionError(error.detail) from None

    return Sink("webhook", target.origin[:255], send, target.origin + target.path)


class CheckpointSender:
    """One per scheduler, for one thread; several schedulers share the work. Where the settings differ, those of the one that started last
    hold: another finds the places that it knows no more, and sends nothing."""

    def __init__(self, db: Database, audit: AuditLog, sinks: Sequence[Sink], interval_ms: int, key: bytes) -> None:
        """``interval_ms``: between two sendings to one place. ``key``: the same in all schedulers; addresses are known again by it, and not
        to be guessed by their digests without it."""
        self._db = db
        self._audit = audit
        self._sinks = [(sink, _mark(key, sink)) for sink in sinks]
        self._interval_ms = interval_ms
        self._known = False

    def run_once(self) -> int:
        """Send what is due; returns to how many places.

        Raises:
            Unavailable: the database does not answer.
        """
        if not self._known:
            self._db.write(self._introduce)
            self._known = True
        return sum(self._serve(sink, mark) for sink, mark in self._sinks)

    def _introduce(self, connection: Connection) -> None:
        """The rows of the places that the settings name, and of no others."""
        names = [sink.name for sink, _ in self._sinks]
        connection.execute(_sink.delete().where(_sink.c.name.not_in(names)))
        for sink, mark in self._sinks:
            row: dict[str, Any] = {"name": sink.name, "place": sink.place, "mark": mark, "due_at": 0, "tries": 0}
            connection.execute(insert_or(connection, _sink).values(row).on_conflict_do_nothing())
            moved = {"number": None, "sent_at": None, "failing_since": None, "error": None} | row
            connection.execute(update(_sink).where(_sink.c.name == sink.name, _sink.c.mark != mark).values(moved))

    def _serve(self, sink: Sink, mark: str) -> int:
        row = self._db.read(lambda connection: _due(connection, sink.name, mark))
        if row is None:
            return 0
        until = self._db.write(lambda connection: _claim(connection, row))
        if until is None:
            return 0
        sealed = self._db.read(lambda connection: _unsent(connection, row["number"]))
        problem = None
        try:
            sink.send(sealed)
        except (OSError, ClocheError, JobFailure) as error:
            problem = str(error)[:255] or type(error).__name__
            _log.warning("checkpoint not sent", to=sink.name, place=sink.place, error=problem, tries=row["tries"] + 1)
        self._db.write(lambda connection: self._noted(connection, row, until, sealed[-1].number, problem))
        return 0 if problem else 1

    def _noted(self, connection: Connection, row: RowMapping, until: int, number: int, problem: str | None) -> None:
        now = now_ms(connection)
        if problem is None:
            values: dict[str, Any] = {"number": number, "sent_at": now, "due_at": now + self._interval_ms, "tries": 0}
            values |= {"failing_since": None, "error": None}
        else:
            pause = min(self._interval_ms, _RETRY_MS << min(row["tries"], 10))
            since = row["failing_since"] or now
            values = {"tries": row["tries"] + 1, "due_at": now + pause, "failing_since": since, "error": problem}
        if not connection.execute(update(_sink).where(_still(row, until)).values(values)).rowcount:
            _log.warning("what came of a checkpoint's sending counts no more", to=row["name"], place=row["place"])
            return  # it took so long that another one has tried, or the name means another place by now
        if (problem is None) == (row["failing_since"] is None):
            return  # neither begins to fail nor has ceased to
        outcome = Outcome.ALLOWED if problem is None else Outcome.FAILED
        details = {"place": row["place"], "batch": number, "tries": row["tries"] + 1}
        actor = system_actor(operator(connection).tenant_id, "scheduler")
        target = f"checkpoint:{row['name']}"
        self._audit.record(
            connection, AuditEntry(actor, Action.CHECKPOINT_SEND, target, outcome, problem, details=details)
        )


def default_tenant(connection: Connection) -> str:
    """The tenant whose remotes the settings name.

    Raises:
        EnvironmentProblem: there is no tenant yet.
    """
    return operator(connection).tenant_id


def failing(connection: Connection) -> list[tuple[str, int, str]]:
    """The places that checkpoints do not reach: name and place, since when (ms), why."""
    query = select(_sink).where(_sink.c.failing_since.is_not(None)).order_by(_sink.c.name)
    rows = connection.execute(query).mappings()
    return [(f"{row['name']} {row['place']}", row["failing_since"], row["error"] or "") for row in rows]


def states(connection: Connection) -> list[RowMapping]:
    """Every place with its columns, and as ``behind`` how many batches it does not vouch for yet."""
    newest = select(func.max(_batch.c.number)).scalar_subquery()
    behind = (func.coalesce(newest, -1) - func.coalesce(_sink.c.number, -1)).label("behind")
    return list(connection.execute(select(_sink, behind).order_by(_sink.c.name)).mappings())


def _mark(key: bytes, sink: Sink) -> str:
    """The same for one place only. Not a plain digest: an address may be a credential, and short enough to be guessed."""
    own = hmac.digest(key, b"cloche-checkpoint-place", "sha256")
    return hmac.digest(own, f"{sink.name}\0{sink.address}".encode("utf-8", "surrogateescape"), "sha256").hex()


def _still(row: RowMapping, due_at: int) -> ColumnElement[bool]:
    """Whether the row is of the same place, and nobody has touched it."""
    return and_(_sink.c.name == row["name"], _sink.c.mark == row["mark"], _sink.c.due_at == due_at)


def _due(connection: Connection, name: str, mark: str) -> RowMapping | None:
    newest = select(func.max(_batch.c.number)).scalar_subquery()
    fresh = newest > func.coalesce(_sink.c.number, -1)
    mine = (_sink.c.name == name, _sink.c.mark == mark)
    query = select(_sink).where(*mine, _sink.c.due_at <= now_ms(connection), fresh)
    return connection.execute(query).mappings().one_or_none()


def _claim(connection: Connection, row: RowMapping) -> int | None:
    """Until when nobody else sends there, which the row says as long as the claim holds; None: somebody else was first."""
    until = now_ms(connection) + _CLAIM_MS
    claimed = connection.execute(update(_sink).where(_still(row, row["due_at"])).values(due_at=until)).rowcount
    return until if claimed else None


def _unsent(connection: Connection, last: int | None) -> list[Sealed]:
    """The newest checkpoint, and before it those that announce something and were not sent yet."""
    newest = select(func.max(_batch.c.number)).scalar_subquery()
    query: Select[tuple[int, str]] = select(_batch.c.number, _batch.c.note)
    since = -1 if last is None else last
    query = query.where(_batch.c.number > since, or_(SAYS, _batch.c.number == newest)).order_by(_batch.c.number)
    return [Sealed(row.number, row.note) for row in connection.execute(query)]


def _append(path: Path, sealed: Sequence[Sealed]) -> None:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o644), "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        start = max(0, size - _TAIL)
        file.seek(start)
        tail = file.read()
        # What a crash cut off would spoil the note that follows it
        text = tail.decode("utf-8", "surrogateescape")  # it may end within a character
        torn = len(notes_in(text)[-1].encode("utf-8", "surrogateescape")) if tail and not _whole(tail) else 0
        file.seek(size - torn)
        file.truncate()
        file.write("".join(note for _, note in sealed).encode())
        file.flush()
        os.fsync(file.fileno())


def _whole(tail: bytes) -> bool:
    """Whether it ends with a note's signature."""
    return tail.endswith(b"\n") and tail[:-1].rpartition(b"\n")[2].startswith("— ".encode())
