"""Checkpoints as C2SP signed notes (tlog-checkpoint on signed-note): a text anybody can keep, and check with the public key alone.

::

    cloche.audit/0123456789abcdef                 origin: the log's name, which is also the key's
    1204                                          leaves in the tree
    7cNLQ3…=                                      root, base64
    batch 3                                       extension lines, in this order
    at 1700000000123                              ms
    previous 9f86d0…                              SHA-256 of the batch before's whole note; zeros for the first

    — cloche.audit/0123456789abcdef Az3grl…=      base64 of the key's id (4 bytes) and the Ed25519 signature (64 bytes)
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable
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
)
_SIGNATURE = re.compile(r"— ([A-Za-z0-9._/-]{1,128}) ([A-Za-z0-9+/]{4,200}={0,2})")
_MAX_SIGNATURES = 16


class BadNote(ValueError):
    """The text is not a note of this form, or no signature on it is the expected key's."""


@dataclass(frozen=True)
class Checkpoint:
    """What one batch's note says. ``root`` is 32 bytes, ``previous`` 64 hex digits, ``at`` ms."""

    origin: str
    size: int
    root: bytes
    number: int
    at: int
    previous: str

    def body(self) -> str:
        root = base64.b64encode(self.root).decode("ascii")
        return f"{self.origin}\n{self.size}\n{root}\nbatch {self.number}\nat {self.at}\nprevious {self.previous}\n"


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
            if not key.verify(data[4:], body.encode("utf-8")):
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
    match = _BODY.fullmatch(open_note(text, key))
    if match is None:
        raise BadNote("not a checkpoint of format v1")
    if match["origin"] != key.name:
        raise BadNote(f"the checkpoint of another log ({match['origin']})")
    return Checkpoint(
        match["origin"],
        int(match["size"]),
        _base64(match["root"]),
        int(match["number"]),
        int(match["at"]),
        match["previous"],
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
