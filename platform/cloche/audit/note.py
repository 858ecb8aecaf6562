"""Checkpoints as C2SP signed notes (tlog-checkpoint on signed-note): a text anybody can keep, and check with the public key alone.

::

    cloche.audit/0123456789abcdef                 origin: the log's name, which is also the key's
    1204                                          leaves in the tree
    7cNLQ3…=                                      root, base64
    batch 3                                       extension lines, in this order
    at 1700000000123                              ms
    previous 9f86d0…                              SHA-256 of the batch before's whole note; zeros for the first
    key cloche.audit/0123456789abcdef+…           only where the key changes: the one that signs every batch after this
    restored 800 1204 7cNLQ3…=                    only where a restore was declared: leaves 800 to 1203 of the tree with this root are lost

    — cloche.audit/0123456789abcdef Az3grl…=      base64 of the key's id (4 bytes) and the Ed25519 signature (64 bytes)
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from cloche.audit.event import sha256_hex

NO_PREVIOUS = "0" * 64
_ED25519 = b"\x01"  # signed-note's algorithm byte
_NAME = re.compile(r"[A-Za-z0-9._/-]{1,128}")
_BODY = re.compile(
    r"(?P<origin>[A-Za-z0-9._/-]{1,128})\n(?P<size>0|[1-9][0-9]{0,17})\n(?P<root>[A-Za-z0-9+/]{43}=)\n"
    r"batch (?P<number>0|[1-9][0-9]{0,17})\nat (?P<at>0|[1-9][0-9]{0,17})\nprevious (?P<previous>[0-9a-f]{64})\n"
    r"(?:key (?P<key>[A-Za-z0-9._/-]{1,128}\+[0-9a-f]{8}\+[A-Za-z0-9+/]{44})\n)?"
    r"(?:restored (?P<first>0|[1-9][0-9]{0,17}) (?P<end>[1-9][0-9]{0,17}) (?P<lost>[A-Za-z0-9+/]{43}=)\n)?"
)
_SIGNED = re.compile(r"\n\n(?:— [^\n]*\n)+")
_SIGNATURE = re.compile(r"— ([A-Za-z0-9._/-]{1,128}) ([A-Za-z0-9+/]{4,200}={0,2})")
_MAX_SIGNATURES = 16


class BadNote(ValueError):
    """The text is not a note of this form, or no signature on it is the expected key's."""


@dataclass(frozen=True)
class Gap:
    """Leaves ``first`` to ``end - 1`` of the tree of ``end`` leaves with this root (32 bytes) were lost when an older database was restored."""

    first: int
    end: int
    root: bytes

    def line(self) -> str:
        return f"restored {self.first} {self.end} {base64.b64encode(self.root).decode('ascii')}\n"


@dataclass(frozen=True)
class Checkpoint:
    """What one batch's note says. ``root`` is 32 bytes, ``previous`` 64 hex digits, ``at`` ms. ``key``: the text of the public key that signs
    from the next batch on, where it changes; ``gap``: a restore that the operator declared."""

    origin: str
    size: int
    root: bytes
    number: int
    at: int
    previous: str
    key: str | None = None
    gap: Gap | None = None

    def body(self) -> str:
        root = base64.b64encode(self.root).decode("ascii")
        first = f"{self.origin}\n{self.size}\n{root}\nbatch {self.number}\nat {self.at}\nprevious {self.previous}\n"
        return first + (f"key {self.key}\n" if self.key else "") + (self.gap.line() if self.gap else "")


@dataclass(frozen=True)
class PublicKey:
    """A verifier key. Its text form, ``<name>+<key id>+<base64>``, is signed-note's."""

    name: str
    raw: bytes  # 32 bytes

    @classmethod
    def parse(cls, text: str) -> PublicKey:
        """Read the text form; one trailing newline is allowed.

        Raises:
            BadNote: not such a key, or its id does not belong to it.
        """
        parts = text.removesuffix("\n").split("+", 2)
        if len(parts) != 3 or not _NAME.fullmatch(parts[0]):
            raise BadNote("not a public key of the form <name>+<key id>+<base64>")
        data = _base64(parts[2])
        if len(data) != 33 or data[:1] != _ED25519:
            raise BadNote("not an Ed25519 public key")
        key = cls(parts[0], data[1:])
        if key.id.hex() != parts[1]:
            raise BadNote("the public key's id does not belong to it: the text was changed")
        return key

    @property
    def id(self) -> bytes:
        return hashlib.sha256(self.name.encode() + b"\n" + _ED25519 + self.raw).digest()[:4]

    @property
    def text(self) -> str:
        return f"{self.name}+{self.id.hex()}+{base64.b64encode(_ED25519 + self.raw).decode('ascii')}"

    def verify(self, signature: bytes, message: bytes) -> bool:
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True


def sign(body: str, key: PublicKey, signer: Callable[[bytes], bytes]) -> str:
    """The note: ``body`` (ending in a newline), an empty line, one signature line."""
    signature = base64.b64encode(key.id + signer(body.encode("utf-8"))).decode("ascii")
    return f"{body}\n— {key.name} {signature}\n"


def open_note(text: str, key: PublicKey) -> str:
    """The body of a note signed by ``key``. Signatures of other keys (witnesses) are let be.

    Raises:
        BadNote: malformed, or not signed by this key.
    """
    body, separator, tail = text.rpartition("\n\n")
    if not separator or not tail.endswith("\n"):
        raise BadNote("not a signed note")
    body += "\n"
    try:
        message = body.encode("utf-8")
    except UnicodeEncodeError:
        raise BadNote("not a signed note: not Unicode text") from None
    lines = tail[:-1].split("\n")
    if not 1 <= len(lines) <= _MAX_SIGNATURES:
        raise BadNote("not a signed note: too many signatures")
    good = False
    for line in lines:
        match = _SIGNATURE.fullmatch(line)
        if match is None:
            raise BadNote("not a signed note: malformed signature line")
        data = _base64(match[2])
        if match[1] == key.name and data[:4] == key.id:
            if not key.verify(data[4:], message):
                raise BadNote("the signature is not the key's")
            good = True
    if not good:
        raise BadNote(f"not signed by the key {key.name}+{key.id.hex()}")
    return body


def open_checkpoint(text: str, key: PublicKey) -> Checkpoint:
    """The checkpoint a note holds, once its signature has held.

    Raises:
        BadNote: malformed, not signed by ``key``, or another log's.
    """
    return _checkpoint(open_note(text, key), key.name)


def open_with(text: str, keys: Sequence[PublicKey]) -> tuple[Checkpoint, PublicKey]:
    """The checkpoint, and which of the keys signed it.

    Raises:
        BadNote: malformed, or signed by none of them.
    """
    problem = BadNote("there is no key to open it with")
    for key in keys:
        try:
            return open_checkpoint(text, key), key
        except BadNote as error:
            problem = error
    raise problem


def notes_in(text: str) -> list[str]:
    """The notes of a file that they were appended to, each whole. What is none becomes a last entry that opens with no key."""
    notes, start = [], 0
    for match in _SIGNED.finditer(text):
        notes.append(text[start : match.end()])
        start = match.end()
    return [*notes, text[start:]] if text[start:] or not notes else notes


def _checkpoint(body: str, name: str) -> Checkpoint:
    match = _BODY.fullmatch(body)
    if match is None:
        raise BadNote("not a checkpoint of format v1")
    if match["origin"] != name:
        raise BadNote(f"the checkpoint of another log ({match['origin']})")
    if match["key"] is not None and PublicKey.parse(match["key"]).name != name:
        raise BadNote("announces another log's key")
    gap = None
    if match["end"] is not None:
        gap = Gap(int(match["first"]), int(match["end"]), _base64(match["lost"]))
    return Checkpoint(
        match["origin"],
        int(match["size"]),
        _base64(match["root"]),
        int(match["number"]),
        int(match["at"]),
        match["previous"],
        match["key"],
        gap,
    )


def note_hash(note: str) -> str:
    """What the next batch's note carries as ``previous``."""
    return sha256_hex(note)


def _base64(text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadNote("malformed base64") from None
    if base64.b64encode(data).decode("ascii") != text:
        raise BadNote("base64 with more than one reading")
    return data
