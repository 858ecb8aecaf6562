"""The encryption of tenants' secrets at rest, and the keys that it is done with.

AES-256-GCM as sensitive jobs have it (:mod:`cloche.services.sealing`), under master keys of their own: those of ``CLOCHE_SECRET_KEYS``, or
``keys/secrets.key`` with what was rotated out beside it as ``secrets-<id>.key``. Each tenant and name has a key derived for it, and a value is
bound to its row and version: one that is copied elsewhere does not open. A row names the id of its key, so that one that is not here is noticed.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Connection, select

from cloche.config import Settings
from cloche.db import tables as t
from cloche.db.engine import Database
from cloche.domain.states import Reason
from cloche.errors import EnvironmentProblem, PlatformFailure, SettingsError, Unavailable
from cloche.services.sealing import JobKey, JobSeal, key_files, seen
from cloche.staging.vault import load_or_create_key, read_key

CURRENT = "secrets.key"
OTHERS = "secrets-*.key"
NEXT = "secrets-next.key"  # of a rotation to come: readable at once, sealed with once it has taken CURRENT's place
_BYTES = 32
_ADVICE = "restore it from a backup, or set the secret again"


@dataclass(frozen=True)
class Place:
    """Which value: its tenant, name, row and version."""

    tenant_id: str
    name: str
    row_id: str
    version: int

    @property
    def field(self) -> str:
        return f"secret/{self.row_id}/{self.version}"


@dataclass(frozen=True)
class KeySet:
    """What this host has: the key to seal with first."""

    current: JobKey
    all: dict[bytes, JobKey] = field(repr=False)


def parse_keys(text: str) -> tuple[bytes, ...]:
    """``CLOCHE_SECRET_KEYS``: keys of 64 hex digits between commas or spaces; the first seals, all open.

    Raises:
        SettingsError: one is something else. It is not quoted.
    """
    keys = []
    for number, part in enumerate(text.replace(",", " ").split(), 1):
        try:
            key = bytes.fromhex(part)
        except ValueError:
            key = b""
        if len(key) != _BYTES:
            raise SettingsError(f"secret.keys: key {number} is not 64 hex digits; `openssl rand -hex 32` makes one")
        keys.append(key)
    return tuple(keys)


class SecretVault:
    """Shared by a process's threads. Keys are read when they are first needed and whenever their file has changed: a running process finds a
    rotated or restored key without a restart."""

    def __init__(self, folder: Path, db: Database, given: Sequence[bytes] = ()) -> None:
        """``given``: keys from the settings, which take the place of the current file; files stay readable."""
        self._folder = folder
        self._db = db
        self._given = tuple(JobKey.of(key) for key in given)
        self._lock = threading.Lock()
        self._known: KeySet | None = None
        self._seen: tuple[int, ...] | None = None

    @property
    def folder(self) -> Path:
        return self._folder

    @property
    def has_given(self) -> bool:
        """Whether the key to seal with comes from the settings."""
        return bool(self._given)

    def seal(self, place: Place, value: str) -> tuple[str, str]:
        """The value as it is stored, and the id of the key.

        Raises:
            Unavailable: the platform's key is missing, damaged, or not the one that stored secrets are encrypted with; says what to do.
        """
        try:
            key = self.keys().current
        except (EnvironmentProblem, OSError) as error:
            raise Unavailable(f"secrets cannot be stored: {error}", retry_after=60) from None
        return JobSeal(key, place.tenant_id, place.name).seal(place.field, value), key.id.hex()

    def open(self, place: Place, sealed: str, key_id: str) -> str:
        """
        Raises:
            PlatformFailure: ``key_unavailable``: the key is not here, or the value was changed.
        """
        key = self._find(key_id)
        if key is None:
            message = (
                f"the secret {place.name} is encrypted with key {key_id}, which is not in {self._folder}: {_ADVICE}"
            )
            raise PlatformFailure(Reason.KEY_UNAVAILABLE, message)
        try:
            return str(JobSeal(key, place.tenant_id, place.name).open(place.field, sealed))
        except PlatformFailure:
            message = f"the secret {place.name} cannot be decrypted: it was changed in the database"
            raise PlatformFailure(Reason.KEY_UNAVAILABLE, message) from None

    def keys(self) -> KeySet:
        """
        Raises:
            EnvironmentProblem, OSError: there is no key that may be sealed with.
        """
        with self._lock:
            found = seen(self._folder / CURRENT)
            if self._known is None or found != self._seen:
                self._known = self._read()
                self._seen = seen(self._folder / CURRENT)
            return self._known

    def _find(self, key_id: str) -> JobKey | None:
        try:
            wanted = bytes.fromhex(key_id)
        except ValueError:
            return None  # changed in the database: no key has such an id
        with self._lock:
            held = self._known.all if self._known is not None else {}
            if wanted not in held:
                try:
                    held = self._files() | {key.id: key for key in self._given}
                except (EnvironmentProblem, OSError) as error:
                    message = f"the key of secrets cannot be read: {error}"
                    raise PlatformFailure(Reason.KEY_UNAVAILABLE, message) from None
            return held.get(wanted)

    def _read(self) -> KeySet:
        used = self._db.read(used_keys)
        path = self._folder / CURRENT
        if not self._given and not path.exists():
            if used:
                advice = (
                    "restore it from a backup; where it is lost for good, `cloche key rotate --secrets` makes a new one"
                )
                raise EnvironmentProblem(
                    f"{path} is missing, and secrets are encrypted with {', '.join(used)}: {advice}"
                )
            load_or_create_key(path)
        held = self._files() | {key.id: key for key in self._given}
        current = self._given[0] if self._given else JobKey.of(read_key(path))
        return KeySet(current, held)

    def _files(self) -> dict[bytes, JobKey]:
        return {key.id: key for key in (JobKey.of(read_key(path)) for _, path in secret_key_files(self._folder))}


def vault_of(settings: Settings, db: Database) -> SecretVault:
    """
    Raises:
        SettingsError: ``CLOCHE_SECRET_KEYS`` is malformed.
    """
    return SecretVault(settings.home / "keys", db, parse_keys(settings.secret.keys.get_secret_value()))


def secret_key_files(folder: Path) -> list[tuple[str, Path]]:
    """Id and file of each key of secrets that is here, the current one first.

    Raises:
        EnvironmentProblem: one is damaged, not ours, or readable by others.
    """
    return key_files(folder, CURRENT, OTHERS)


def used_keys(connection: Connection) -> list[str]:
    """Ids of the keys that stored secrets are encrypted with."""
    query = select(t.secret.c.key_id).distinct().order_by(t.secret.c.key_id)
    why = "which keys are in use, over all tenants, tells nothing of a secret"
    return list(connection.execute(query.execution_options(across_tenants=why)).scalars())
