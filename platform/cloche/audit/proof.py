"""A proof that one event is in the tree: checked with the public key alone, without the trail.

A JSON object: ``format`` (1), ``origin``, ``seq``, ``event`` (its columns), ``leaf`` (hex), ``note`` (a signed checkpoint), ``path`` (hashes in hex,
nearest first), ``announcements`` (the notes that lead from the first public key to the one that signed), ``people`` (the values behind the
event's commitments).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cloche.audit.chain import Chain
from cloche.audit.event import Event, TamperedTrail, canonical_bytes, commitment, leaf_bytes, mac
from cloche.audit.merkle import includes, leaf_hash
from cloche.audit.note import BadNote, Checkpoint, PublicKey, open_checkpoint
from cloche.audit.verify import Bad, Status, Verdict
from cloche.errors import EnvironmentProblem

FORMAT = 1
_MAX = 16 << 20  # bytes


def read_proof(path: Path) -> dict[str, Any]:
    """
    Raises:
        EnvironmentProblem: unreadable, or not a proof of format 1.
    """
    try:
        with path.open("rb") as file:
            item = json.loads(file.read(_MAX))
    except (OSError, ValueError, RecursionError) as error:
        raise EnvironmentProblem(
            f"cannot read the proof {path}: {getattr(error, 'strerror', None) or 'not JSON'}"
        ) from None
    if not isinstance(item, dict) or item.get("format") != FORMAT or "path" not in item:
        raise EnvironmentProblem(f"{path} is not an audit proof of format {FORMAT}")
    return item


def verify_proof(proof: Mapping[str, Any], key: PublicKey, hmac_keys: Sequence[bytes] = ()) -> Verdict:
    """Check a proof against the pinned public key; never raises for what is wrong with it."""
    verdict = Verdict(key=key.text, hmac_checked=bool(hmac_keys))
    try:
        point = opened_point(proof.get("note"), proof.get("announcements"), key)
        included(proof, point, hmac_keys)
        for person in _list(proof.get("people")):
            check_person(person)
    except TamperedTrail as found:
        verdict.status = Status.TAMPERED
        verdict.first_bad = Bad(found.seq, found.event_id, found.why)
    else:
        verdict.events, verdict.leaves, verdict.root = 1, point.size, point.root.hex()
    return verdict


def opened_point(note: Any, announcements: Any, key: PublicKey) -> Checkpoint:
    """The checkpoint, by the key that the announcements lead to.

    Raises:
        TamperedTrail: they do not.
    """
    chain = Chain.of(key)
    for one in _list(announcements):
        if not chain.follow(one):
            raise TamperedTrail("an announcement of a key is not signed by the key before it")
    for signer in reversed(chain.keys):
        try:
            point = open_checkpoint(note, signer)
        except (BadNote, TypeError, AttributeError) as error:
            problem = str(error)
            continue
        if chain.of_batch(point.number) == signer:
            return point
        problem = "signed by a key that was not in force"
    raise TamperedTrail(f"the checkpoint: {problem}")


def included(item: Mapping[str, Any], point: Checkpoint, hmac_keys: Sequence[bytes]) -> Event:
    """The event of an item with ``event``, ``seq``, ``leaf`` and ``path``, which is in the checkpoint's tree.

    Raises:
        TamperedTrail: it is not.
    """
    seq, columns = item.get("seq"), item.get("event")
    if not isinstance(seq, int) or not isinstance(columns, dict) or columns.keys() != set(Event._fields):
        raise TamperedTrail("the event does not have the columns of an event")
    event = Event(**columns)
    try:
        canonical = canonical_bytes(event)
        path = [bytes.fromhex(text) for text in _list(item.get("path"))]
        leaf = leaf_hash(leaf_bytes(canonical, event.mac))
    except (TypeError, ValueError, AttributeError):
        raise TamperedTrail("a column holds a value of the wrong type", seq=seq) from None
    if hmac_keys and all(mac(key, canonical) != event.mac for key in hmac_keys):
        raise TamperedTrail("the event was changed, or not written by the platform (HMAC)", seq=seq, event_id=event.id)
    if leaf.hex() != item.get("leaf") or not includes(point.root, point.size, seq, leaf, path):
        raise TamperedTrail("the event is not the one that was sealed", seq=seq, event_id=event.id)
    return event


def check_person(person: Any) -> None:
    """
    Raises:
        TamperedTrail: the value is not the one behind the commitment.
    """
    try:
        same = commitment(person["salt"], person["value"]) == person["commitment"]
    except (TypeError, ValueError, KeyError, AttributeError):
        same = False
    if not same:
        raise TamperedTrail("what lies behind a commitment was changed")


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list) or len(value) > 10_000:
        raise TamperedTrail("the proof is malformed")
    return value
