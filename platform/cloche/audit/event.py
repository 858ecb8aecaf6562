"""An audit event: its columns, the bytes its HMAC and its leaf cover, and the commitments that stand for people.

Format v1. ``canonical_bytes`` is the line ``cloche-audit-event-v1`` followed by the canonical JSON object of every column but ``mac``,
``details`` being the stored text itself. ``leaf_bytes`` adds a line with the mac, so that a sealed event cannot even get another mac.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import NamedTuple

from cloche.errors import ClocheError

_PREFIX = "cloche-audit-event-v1\n"
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


class TamperedTrail(ClocheError):
    """The trail is not what the platform wrote. ``seq`` is the first bad sequence number, None before sealing."""

    def __init__(self, why: str, *, seq: int | None = None, event_id: str | None = None) -> None:
        super().__init__(f"audit trail: {why} (seq {seq}, event {event_id})")
        self.why = why
        self.seq = seq
        self.event_id = event_id


class Event(NamedTuple):
    """A row of ``audit_event``; the fields are its columns, in this order everywhere rows are read."""

    id: str
    at: int  # ms
    tenant_id: str
    actor: str
    token_id: str | None
    action: str
    object: str
    object_seq: int | None
    outcome: str
    ip: str | None
    request_id: str | None
    reason: str | None
    before_sha256: str | None
    after_sha256: str | None
    details: str
    mac: str


# Sorted once: the JSON object's keys come in the order of canonical JSON without sorting a million times.
_SORTED = tuple(sorted((name, index) for index, name in enumerate(Event._fields) if name != "mac"))


def canonical_bytes(event: Event) -> bytes:
    """What the HMAC covers.

    Raises:
        TypeError, ValueError: a column holds what format v1 has no word for (bytes, text that is not Unicode).
    """
    return (_PREFIX + _encode({name: event[index] for name, index in _SORTED})).encode("utf-8")


def mac(key: bytes, canonical: bytes) -> str:
    """HMAC-SHA256 of an event's canonical bytes, 64 hex digits."""
    return hmac.digest(key, canonical, "sha256").hex()


def leaf_bytes(canonical: bytes, mac_hex: str) -> bytes:
    """What the event's Merkle leaf covers."""
    return canonical + b"\n" + mac_hex.encode("utf-8")


def commitment(salt_hex: str, value: str) -> str:
    """HMAC-SHA256 of a person's name or address under a salt of its own: without the salt it says nothing about the value."""
    return hmac.digest(bytes.fromhex(salt_hex), value.encode("utf-8"), "sha256").hex()


def is_commitment(text: str) -> bool:
    """Whether an ``actor`` column holds a commitment rather than the plain name of a part of the platform."""
    return len(text) == 64 and all(character in "0123456789abcdef" for character in text)


def sha256_hex(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
