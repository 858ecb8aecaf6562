"""Signatures of Standard Webhooks 1.0 (symmetric, ``v1``): HMAC-SHA256 over ``id.timestamp.body``.

A receiver checks one with any of that project's libraries, or as ``docs/callbacks.md`` shows.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Sequence

PREFIX = "whsec_"
_BYTES = 32


def new_secret() -> str:
    """A fresh secret in its text form: ``whsec_`` and base64."""
    return PREFIX + base64.b64encode(secrets.token_bytes(_BYTES)).decode()


def sign(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """``v1,<base64>``; ``timestamp`` in whole seconds since 1970.

    Raises:
        ValueError: the secret is not in its text form.
    """
    if not secret.startswith(PREFIX):
        raise ValueError("a webhook secret begins with whsec_")
    key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    covered = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, covered, hashlib.sha256().name)).decode()


def headers(keys: Sequence[str], message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The three headers. Several secrets give several signatures, so that a receiver may have either while they are exchanged."""
    signatures = " ".join(sign(key, message_id, timestamp, body) for key in keys)
    return {"webhook-id": message_id, "webhook-timestamp": str(timestamp), "webhook-signature": signatures}
