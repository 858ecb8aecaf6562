"""A filtered export: some events of a tenant, each with the proof that it is in the signed tree.

NDJSON, in this order::

    {"filtered":{"format":1,"origin":…,"tenant_id":…,"at":ms,"filters":{…}}}
    {"announcement":note}                      the notes that lead from the first public key to the one that signed the checkpoint
    {"checkpoint":note}                        the tree that the proofs lead to; none where nothing is sealed yet
    {"person":{…}}                             the values behind the commitments in the events that follow
    {"event":{…},"leaf":hash,"path":[…],"seq":n}   oldest first; the last three are null before sealing
    {"end":note}                               a note signed over the SHA-256 of all lines before it

That no event which fits the filters is missing, nobody can prove with these lines: for that the platform's signature on the last one stands.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cloche.audit.chain import Chain
from cloche.audit.event import Event, TamperedTrail
from cloche.audit.export import FORMAT, ExportWriter, end_body, lines_of, object_of, object_or_none
from cloche.audit.note import BadNote, Checkpoint, PublicKey, open_note
from cloche.audit.proof import check_person, included, opened_point
from cloche.audit.verify import Bad, Status, Verdict


class FilteredWriter(ExportWriter):
    """Makes the lines, as :class:`cloche.audit.export.ExportWriter` does."""

    def __init__(self, origin: str, tenant_id: str, at: int, filters: Mapping[str, Any]) -> None:
        super().__init__(origin, tenant_id, at, kind="filtered", filters=dict(filters))

    def announcement(self, note: str) -> str:
        return self._line({"announcement": note})

    def checkpoint(self, note: str) -> str:
        return self._line({"checkpoint": note})

    def proven(self, event: Event, seq: int | None, leaf: str | None, path: Sequence[str] | None) -> str:
        return self._line({"event": event._asdict(), "leaf": leaf, "path": path, "seq": seq})


def is_filtered(path: Path) -> bool:
    """Whether a file is an export of this kind.

    Raises:
        EnvironmentProblem: it cannot be read.
    """
    head = object_or_none(next(lines_of(path), b"")).get("filtered")
    return isinstance(head, dict) and head.get("format") == FORMAT


def verify_filtered(path: Path, key: PublicKey, hmac_keys: Sequence[bytes] = ()) -> Verdict:
    """Check every event of a filtered export against the pinned public key; never raises for what is wrong with it.

    Raises:
        EnvironmentProblem: the file cannot be read.
    """
    verdict = Verdict(key=key.text, hmac_checked=bool(hmac_keys))
    check = _Check(key, hmac_keys, verdict)
    try:
        for line in lines_of(path):
            check.take(line)
        check.finish()
    except TamperedTrail as found:
        verdict.status = Status.TAMPERED
        verdict.first_bad = Bad(found.seq, found.event_id, found.why)
    return verdict


class _Check:
    def __init__(self, key: PublicKey, hmac_keys: Sequence[bytes], verdict: Verdict) -> None:
        self._key = key
        self._hmac_keys = hmac_keys
        self._verdict = verdict
        self._announced: list[str] = []
        self._point: Checkpoint | None = None
        self._digest = hashlib.sha256()
        self._last = b""

    def take(self, line: bytes) -> None:
        self._digest.update(self._last)
        self._last = line
        item = object_of(line)
        if "announcement" in item:
            self._announced.append(item["announcement"])
        elif "checkpoint" in item:
            self._point = opened_point(item["checkpoint"], self._announced, self._key)
            self._verdict.leaves, self._verdict.root = self._point.size, self._point.root.hex()
        elif "person" in item:
            check_person(item["person"])
        elif "event" in item:
            self._event(item)

    def _event(self, item: Mapping[str, Any]) -> None:
        self._verdict.events += 1
        if item.get("seq") is None:
            self._verdict.unsealed += 1
        elif self._point is None:
            raise TamperedTrail("there is no checkpoint that the event's proof leads to", seq=item["seq"])
        else:
            included(item, self._point, self._hmac_keys)

    def finish(self) -> None:
        """The last line covers all before it."""
        end = object_or_none(self._last).get("end")
        if not isinstance(end, str):
            self._verdict.status = Status.INCOMPLETE
            self._verdict.notes.append("the export has no end line: it was cut off")
            return
        chain = Chain.of(self._key)
        if not all(chain.follow(note) for note in self._announced):
            raise TamperedTrail("an announcement of a key is not signed by the key before it")
        try:
            body = open_note(end, chain.last)
        except BadNote as error:
            raise TamperedTrail(f"the export's end line: {error}") from None
        if body != end_body(self._key.name, self._digest.hexdigest()):
            raise TamperedTrail("a line of the export was changed, added or left out")
        self._verdict.notes.append("each event is proven; that none is left out rests on the platform's signature")
