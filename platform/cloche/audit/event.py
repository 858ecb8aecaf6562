"""An audit event: its columns, the bytes its HMAC and its leaf cover, and the commitments that stand for people.

Format v1. ``canonical_bytes`` is the line ``cloche-audit-event-v1`` followed by the canonical JSON object of every column but ``mac``,
``details`` being the stored text itself. ``leaf_bytes`` adds a line with the mac, so that a sealed event cannot even get another mac.
"""

from __future__ import annotations

import hashlib
import hmac
from functools import lru_cache
from json.encoder import encode_basestring
from typing import Any, NamedTuple

from cloche.errors import ClocheError

_PREFIX = "cloche-audit-event-v1\n"
_text = encode_basestring  # a string as JSON, without escapes but those it demands; a TypeError for anything else


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


def canonical_bytes(event: Event) -> bytes:
    """What the HMAC covers. Spelled by hand, which a test compares with :mod:`cloche.audit.canonical`: it is done for every event when it is
    written, sealed and verified, and takes a third of the time.

    Raises:
        TypeError, ValueError: a column holds what format v1 has no word for (bytes, another type, text that is not Unicode).
    """
    id_, at, tenant, actor, token, action, object_, number, outcome, ip, request, reason, before, after, details, _ = (
        event
    )
    if type(at) is not int or (number is not None and type(number) is not int):
        raise TypeError("a time and a number are whole numbers")
    return (
        f'{_PREFIX}{{"action":{_text(action)},"actor":{_text(actor)},"after_sha256":{"null" if after is None else _text(after)},'
        f'"at":{at},"before_sha256":{"null" if before is None else _text(before)},"details":{_text(details)},"id":{_text(id_)},'
        f'"ip":{"null" if ip is None else _text(ip)},"object":{_text(object_)},"object_seq":{"null" if number is None else number},'
        f'"outcome":{_text(outcome)},"reason":{"null" if reason is None else _text(reason)},'
        f'"request_id":{"null" if request is None else _text(request)},"tenant_id":{_text(tenant)},'
        f'"token_id":{"null" if token is None else _text(token)}}}'
    ).encode()


@lru_cache(maxsize=16)
def _begun(key: bytes) -> tuple[Any, Any]:
    """HMAC's two hashes with the key taken in (RFC 2104): continuing copies of them is twice as fast as beginning anew."""
    block = (hashlib.sha256(key).digest() if len(key) > 64 else key).ljust(64, b"\0")
    return tuple(hashlib.sha256(bytes(byte ^ pad for byte in block)) for pad in (0x36, 0x5C))  # type: ignore[return-value]


def mac(key: bytes, canonical: bytes) -> str:
    """HMAC-SHA256 of an event's canonical bytes, 64 hex digits."""
    inner, outer = _begun(key)
    first, second = inner.copy(), outer.copy()
    first.update(canonical)
    second.update(first.digest())
    return str(second.hexdigest())


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
