"""An export: NDJSON that verifies with the public key alone, and the trail read back from it.

Each line is an object with one name that says what it is, in this order::

    {"export":{"format":1,"origin":…,"tenant_id":…,"at":ms}}
    {"prune":{…}}                      what retention deleted before this
    {"person":{…}}                     the values behind the commitments in the events that follow
    {"event":{…},"leaf":hash,"seq":n}  this tenant's events, sealed ones first, by seq; "leaf" and "seq" are null before sealing
    {"leaf":hash,"seq":n}              another tenant's: the hash alone, so that the tree can be computed
    {"event":null,"leaf":hash,"seq":n} an event that is not there, or no longer the one that was sealed: nobody knows whose it was
    {"batch":{…}}                      right after its last leaf; first those before the mark that announce something
    {"end":note}                       a note signed over the SHA-256 of all lines before it, so that none can be left out
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from cloche.audit.event import Event, TamperedTrail
from cloche.audit.note import BadNote, PublicKey, open_note
from cloche.audit.trail import Batch, Break, Leaf, Person, Prune
from cloche.errors import EnvironmentProblem

FORMAT = 1
_MAX_LINE = 16 << 20  # bytes; a detail is kilobytes
Row = TypeVar("Row", Event, Batch, Person, Prune)
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


class ExportWriter:
    """Makes the lines (each with its newline) and keeps the running hash of what it made."""

    def __init__(self, origin: str, tenant_id: str, at: int, kind: str = "export", **further: Any) -> None:
        self._hash = hashlib.sha256()
        self._origin = origin
        self._head = {kind: {"format": FORMAT, "origin": origin, "tenant_id": tenant_id, "at": at, **further}}

    def head(self) -> str:
        return self._line(self._head)

    def prune(self, prune: Prune) -> str:
        return self._line({"prune": prune._asdict()})

    def person(self, person: Person) -> str:
        return self._line({"person": person._asdict()})

    def event(self, event: Event, seq: int | None, leaf: str | None) -> str:
        return self._line({"event": event._asdict(), "leaf": leaf, "seq": seq})

    def foreign(self, seq: int, leaf: str) -> str:
        return self._line({"leaf": leaf, "seq": seq})

    def lost(self, seq: int, leaf: str) -> str:
        return self._line({"event": None, "leaf": leaf, "seq": seq})

    def batch(self, batch: Batch) -> str:
        return self._line({"batch": batch._asdict()})

    def end(self, sign: Callable[[str], str]) -> str:
        """``sign`` makes a signed note of a body, by the key in force."""
        return _encode({"end": sign(end_body(self._origin, self._hash.hexdigest()))}) + "\n"

    def _line(self, item: dict[str, Any]) -> str:
        line = _encode(item) + "\n"
        self._hash.update(line.encode("utf-8"))
        return line


def end_body(origin: str, digest: str) -> str:
    # Not a checkpoint's form: neither signature can be passed off as the other
    return f"{origin}/export\nsha256 {digest}\n"


_BREAKS = (
    "SELECT object, object_seq, previous, id, seq FROM (SELECT *, lag(object_seq) OVER (PARTITION BY object ORDER BY object_seq) AS previous"
    " FROM numbered) WHERE object_seq <> coalesce(previous, 0) + 1 ORDER BY object, object_seq"
)


class ExportTrail:
    """A trail in an export file, parsed anew on every pass.

    Raises:
        EnvironmentProblem: unreadable, or not an export of format 1.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        digest, last, first = hashlib.sha256(), b"", b""
        for line in self._lines():
            digest.update(last)
            first, last = first or line, line
        self._digest = digest.hexdigest()
        head = object_or_none(first).get("export")
        if not isinstance(head, dict) or head.get("format") != FORMAT:
            raise EnvironmentProblem(f"{path} is not an audit export of format {FORMAT}")
        self.as_of = head["at"] if isinstance(head.get("at"), int) else 0  # ms; the end line's signature covers it
        end = object_or_none(last).get("end")
        self._end = end if isinstance(end, str) and last.endswith(b"\n") else None

    @property
    def truncated(self) -> bool:
        return self._end is None

    def leaves(self, start: int = 0) -> Iterator[Leaf]:  # noqa: ARG002 - an export holds none before its mark
        for item in self._items(b'"seq"'):
            if "event" in item and item["event"] is None:
                yield Leaf(item.get("seq", -1), None, str(item.get("leaf")), None)
            elif "event" in item and item.get("seq") is not None:
                event = _row(Event, item["event"], item["seq"])
                yield Leaf(item["seq"], event.id, str(item.get("leaf")), event)
            elif "leaf" in item and "event" not in item:
                yield Leaf(item.get("seq", -1), None, item["leaf"], None, foreign=True)

    def batches(self) -> Iterator[Batch]:
        return (_row(Batch, item["batch"], None) for item in self._items(b'"batch"') if "batch" in item)

    def prunes(self) -> Iterator[Prune]:
        return (_row(Prune, item["prune"], None) for item in self._items(b'"prune"') if "prune" in item)

    def persons(self) -> Iterator[Person]:
        return (_row(Person, item["person"], None) for item in self._items(b'"person"') if "person" in item)

    def unsealed(self) -> Iterator[Event]:
        for item in self._items(b'"event"'):
            if "event" in item and item.get("seq") is None:
                yield _row(Event, item["event"], None)

    def breaks(self) -> Iterator[Break]:
        """Sorted by a temporary SQLite table, which spills to the disk instead of growing in memory."""
        connection = sqlite3.connect("", isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode=OFF")
            connection.execute("BEGIN")
            connection.execute("CREATE TABLE numbered (object, object_seq, id, seq)")
            connection.executemany("INSERT INTO numbered VALUES (?, ?, ?, ?)", self._numbers())
            yield from map(Break._make, connection.execute(_BREAKS))
        except (sqlite3.Error, OverflowError) as error:
            raise TamperedTrail(f"the events' numbers cannot be read ({error})") from None
        finally:
            connection.close()

    def finish(self, key: PublicKey, until: int) -> Iterator[str]:  # noqa: ARG002 - it knows no jobs
        if self._end is None:
            yield "the export has no end line: it was cut off"
            return
        try:
            body = open_note(self._end, key)
        except BadNote as error:
            raise TamperedTrail(f"the export's end line: {error}") from None
        if body != end_body(key.name, self._digest):
            raise TamperedTrail("a line of the export was changed, added or left out")

    def _numbers(self) -> Iterator[tuple[Any, ...]]:
        for item in self._items(b'"event"'):
            if "event" in item:
                event = _row(Event, item["event"], item.get("seq"))
                if event.object_seq is not None:
                    yield event.object, event.object_seq, event.id, item.get("seq")

    def _items(self, word: bytes) -> Iterator[dict[str, Any]]:
        """The parsed lines that hold ``word``; the rest is not worth parsing on this pass."""
        for line in self._lines():
            if word in line:
                yield object_of(line)

    def _lines(self) -> Iterator[bytes]:
        return lines_of(self._path)


def lines_of(path: Path) -> Iterator[bytes]:
    """The lines of an export.

    Raises:
        EnvironmentProblem: it cannot be read, or is none.
    """
    try:
        with path.open("rb") as file:
            while line := file.readline(_MAX_LINE + 1):
                if len(line) > _MAX_LINE:
                    raise EnvironmentProblem(f"{path} is not an audit export: it has a line longer than 16 MiB")
                yield line
    except OSError as error:
        raise EnvironmentProblem(f"cannot read the export {path}: {error.strerror}") from None


def object_of(line: bytes) -> dict[str, Any]:
    """The line's object; an empty one for a cut-off last line, which no pass then takes for anything."""
    if not line.endswith(b"\n"):
        return {}
    try:
        item = json.loads(line)
    except (ValueError, RecursionError):
        raise TamperedTrail("a line of the export is not JSON") from None
    if not isinstance(item, dict):
        raise TamperedTrail("a line of the export is not an object")
    return item


def object_or_none(line: bytes) -> dict[str, Any]:
    try:
        return object_of(line)
    except TamperedTrail:
        return {}


def _row(kind: type[Row], columns: Any, seq: int | None) -> Row:
    if not isinstance(columns, dict) or columns.keys() != set(kind._fields):
        raise TamperedTrail(f"a line of the export does not have the columns of {kind.__name__.lower()}", seq=seq)
    return kind(**columns)
