"""Encryption at rest of remotes' options: AES-256-GCM, bound to tenant and name.

A row copied to another tenant or another name does not decrypt. The key is a file, never in the database.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cloche.errors import EnvironmentProblem, PlatformFailure

_VERSION = b"\x01"
_NONCE = 12  # bytes; random, good for 2^32 writes with one key (NIST SP 800-38D)
_KEY = 32


class OptionVault:
    """Seals and opens options with one key. ``PURPOSE`` is bound into what is sealed: what was sealed for another does not open."""

    PURPOSE = b"cloche-remote"
    WHAT = "the options of remote '{name}' cannot be decrypted: keys/remotes.key is not the key they were saved with"

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    @classmethod
    def load_or_create(cls, path: Path) -> Self:
        """The vault of the key file, made with a new key (0600) when there is none. Any number of processes may
        call this at once.

        Raises:
            EnvironmentProblem: the file is damaged, not ours, or readable by others.
        """
        return cls(load_or_create_key(path))

    def seal(self, tenant_id: str, name: str, options: Mapping[str, str]) -> bytes:
        nonce = secrets.token_bytes(_NONCE)
        plain = json.dumps(dict(options), sort_keys=True).encode()
        return _VERSION + nonce + self._cipher.encrypt(nonce, plain, self._bound(tenant_id, name))

    def open(self, tenant_id: str, name: str, sealed: bytes) -> dict[str, str]:
        """
        Raises:
            PlatformFailure: it was sealed with another key, or changed since (``platform_failed``).
        """
        nonce, body = sealed[1 : 1 + _NONCE], sealed[1 + _NONCE :]
        try:
            if sealed[:1] != _VERSION:
                raise InvalidTag
            plain = self._cipher.decrypt(nonce, body, self._bound(tenant_id, name))
        except (InvalidTag, ValueError):
            raise PlatformFailure("platform_failed", self.WHAT.format(name=name)) from None
        return {str(key): str(value) for key, value in json.loads(plain).items()}

    def _bound(self, tenant_id: str, name: str) -> bytes:
        return b"\0".join((self.PURPOSE, tenant_id.encode(), name.encode()))


def load_or_create_key(path: Path) -> bytes:
    """The 32 bytes of a key file, made new (0600) when there is none. Any number of processes may call this at once.

    Raises:
        EnvironmentProblem: the file is damaged, not ours, or readable by others.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        _create(path)
    return read_key(path)


def read_key(path: Path) -> bytes:
    """The 32 bytes of a key file.

    Raises:
        FileNotFoundError: there is none.
        EnvironmentProblem: the file is damaged, not ours, or readable by others.
    """
    info = path.stat()
    if info.st_uid != os.geteuid() or info.st_mode & 0o077:
        raise EnvironmentProblem(f"{path} has to belong to the platform's user alone: chown it, and chmod 600")
    key = path.read_bytes()
    if len(key) != _KEY:
        raise EnvironmentProblem(
            f"{path} is damaged: it holds {len(key)} bytes instead of {_KEY}; restore it from a backup"
        )
    return key


def _create(path: Path) -> None:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_KEY))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)  # whole or not at all; the first process wins
        except FileExistsError:
            return
    finally:
        draft.unlink()
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
