"""Verifying files away from the platform: a database or an export, with the keys and checkpoints somebody kept. Nothing is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cloche import clock
from cloche.audit.database import DatabaseTrail
from cloche.audit.export import ExportTrail
from cloche.audit.filtered import is_filtered, verify_filtered
from cloche.audit.keys import PUBLIC_FILE, read_hmac_keys, read_public_key, read_signing_keys
from cloche.audit.note import PublicKey
from cloche.audit.postgresql import PostgresTrail
from cloche.audit.proof import read_proof, verify_proof
from cloche.audit.trail import Trail
from cloche.audit.verify import Verdict, verify
from cloche.errors import EnvironmentProblem

_MAX_NOTES = 64 << 20  # bytes of checkpoints


@dataclass(frozen=True)
class Trust:
    """What a verification believes: the first public key, HMAC keys where they are at hand, and ``held``, the signing keys whose private half
    the platform has: none where this user may not read them, or the platform is far away."""

    key: PublicKey
    hmac_keys: Sequence[bytes] = ()
    held: Sequence[PublicKey] = ()


def verify_database(
    path: Path, *, keys: Path | None = None, checkpoint: Path | None = None, public_key: Path | None = None
) -> Verdict:
    """Verify a database file, of a running platform or a copy.

    Args:
        keys: the platform's ``keys`` folder, for its public key unless ``public_key`` is given, and its HMAC keys where this user may read them.
        checkpoint: a file of signed notes kept elsewhere; the trail must be an extension of each.
        public_key: the public key to trust, the platform's first.

    Raises:
        EnvironmentProblem: a file is missing or is not what it should be, or there is no public key to verify with.
        Unavailable: the database stayed locked.
    """
    return verify_file(path, _pinned(keys, public_key), checkpoint=_notes(checkpoint))


def verify_server(
    url: str, *, keys: Path | None = None, checkpoint: Path | None = None, public_key: Path | None = None
) -> Verdict:
    """Verify the trail in a PostgreSQL database, of a running platform or a restored one; arguments and errors as for
    :func:`verify_database`. ``url`` begins with ``postgresql``."""
    return verify_store(url, _pinned(keys, public_key), checkpoint=_notes(checkpoint))


def verify_export(
    path: Path, *, keys: Path | None = None, checkpoint: Path | None = None, public_key: Path | None = None
) -> Verdict:
    """Verify an export as of the moment it was made; arguments and errors as for :func:`verify_database`."""
    trust = _pinned(keys, public_key)
    if is_filtered(path):
        if checkpoint is not None:
            raise EnvironmentProblem(
                "a filtered export cannot be held against a checkpoint: a whole export, or the database, can"
            )
        return verify_filtered(path, trust.key, trust.hmac_keys)
    return _verify(ExportTrail(path), trust, _notes(checkpoint), clock.now_ms())


def verify_one(path: Path, *, keys: Path | None = None, public_key: Path | None = None) -> Verdict:
    """Verify a proof of one event; arguments and errors as for :func:`verify_database`."""
    trust = _pinned(keys, public_key)
    return verify_proof(read_proof(path), trust.key, trust.hmac_keys)


def verify_store(url: str, trust: Trust, *, checkpoint: str | None = None) -> Verdict:
    """Verify the database that a URL names, with keys already at hand."""
    if not url.startswith("postgresql"):
        return verify_file(Path(url.removeprefix("sqlite:///")), trust, checkpoint=checkpoint)
    with PostgresTrail(url) as trail:
        return _verify(trail, trust, checkpoint, trail.now_ms)


def verify_file(path: Path, trust: Trust, *, checkpoint: str | None = None) -> Verdict:
    """Verify a database file with keys already at hand. A file that was written to meanwhile is read again before it is accused."""
    while True:
        with DatabaseTrail(path) as trail:
            verdict = _verify(trail, trust, checkpoint, clock.now_ms())
            if verdict.exit_code == 0 or not trail.disturbed:
                return verdict


def _verify(trail: Trail, trust: Trust, checkpoint: str | None, now_ms: int) -> Verdict:
    return verify(trail, key=trust.key, hmac_key=trust.hmac_keys, checkpoint=checkpoint, held=trust.held, now_ms=now_ms)


def _pinned(keys: Path | None, public_key: Path | None) -> Trust:
    """The public key to trust, and what belongs to the same platform: another platform's HMAC key would call every event changed."""
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
    if keys is None or key != own:
        return Trust(key)
    return Trust(key, read_hmac_keys(keys), read_signing_keys(keys, key.name))


def _notes(path: Path | None) -> str | None:
    return None if path is None else read_notes(path)


def read_notes(path: Path) -> str:
    """The checkpoints in a file, at most 64 MB of them.

    Raises:
        EnvironmentProblem: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(_MAX_NOTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EnvironmentProblem(f"cannot read the checkpoint {path}: {error}") from None
