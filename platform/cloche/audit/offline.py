"""Verifying files away from the platform: a database or an export, with the keys and checkpoints somebody kept. Nothing is written."""

from __future__ import annotations

from pathlib import Path

from cloche import clock
from cloche.audit.database import DatabaseTrail
from cloche.audit.export import ExportTrail
from cloche.audit.keys import PUBLIC_FILE, read_hmac_key, read_public_key
from cloche.audit.note import PublicKey
from cloche.audit.verify import Verdict, verify
from cloche.errors import EnvironmentProblem


def verify_database(
    path: Path, *, keys: Path | None = None, checkpoint: Path | None = None, public_key: Path | None = None
) -> Verdict:
    """Verify a database file, of a running platform or a copy.

    Args:
        keys: the platform's ``keys`` folder, for its public key unless ``public_key`` is given, and its HMAC key where this user may read it.
        checkpoint: a signed note kept elsewhere; the trail must be an extension of it.
        public_key: the public key to trust.

    Raises:
        EnvironmentProblem: a file is missing or is not what it should be, or there is no public key to verify with.
        Unavailable: the database stayed locked.
    """
    key, hmac_key = _pinned(keys, public_key)
    return verify_file(path, key, hmac_key=hmac_key, checkpoint=_note(checkpoint))


def verify_export(
    path: Path, *, keys: Path | None = None, checkpoint: Path | None = None, public_key: Path | None = None
) -> Verdict:
    """Verify an export as of the moment it was made; arguments and errors as for :func:`verify_database`."""
    key, hmac_key = _pinned(keys, public_key)
    return verify(ExportTrail(path), key=key, hmac_key=hmac_key, checkpoint=_note(checkpoint), now_ms=clock.now_ms())


def verify_file(path: Path, key: PublicKey, *, hmac_key: bytes | None = None, checkpoint: str | None = None) -> Verdict:
    """Verify a database file with keys already at hand. A file that was written to meanwhile is read again before it is accused."""
    while True:
        with DatabaseTrail(path) as trail:
            verdict = verify(trail, key=key, hmac_key=hmac_key, checkpoint=checkpoint, now_ms=clock.now_ms())
            if verdict.exit_code == 0 or not trail.disturbed:
                return verdict


def _pinned(keys: Path | None, public_key: Path | None) -> tuple[PublicKey, bytes | None]:
    """The public key to trust, and the HMAC key of the same platform: another platform's would call every event changed."""
    own = (
        read_public_key(keys / PUBLIC_FILE)
        if keys is not None and (public_key is None or (keys / PUBLIC_FILE).exists())
        else None
    )
    key = own if public_key is None else read_public_key(public_key)
    if key is None:
        raise EnvironmentProblem(
            "there is no public key to verify with: name one, or the home directory of the platform"
        )
    return key, read_hmac_key(keys) if keys is not None and key == own else None


def _note(path: Path | None) -> str | None:
    try:
        return None if path is None else path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EnvironmentProblem(f"cannot read the checkpoint {path}: {error}") from None
