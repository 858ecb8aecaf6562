"""The platform's audit keys, in files of their own: never in the database, so that whoever edits rows cannot sign them."""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloche.audit.note import BadNote, PublicKey
from cloche.audit.note import sign as sign_note
from cloche.errors import EnvironmentProblem

HMAC_FILE = "audit-hmac.key"
PRIVATE_FILE = "audit-ed25519.key"
PUBLIC_FILE = "audit-ed25519.pub"
_LENGTH = 32  # bytes: an HMAC-SHA256 key and an Ed25519 seed


@dataclass(frozen=True, repr=False)
class KeyRing:
    """The HMAC key and the signing key. Printing it shows neither."""

    hmac_key: bytes
    verifier: PublicKey
    _private: Ed25519PrivateKey

    @classmethod
    def load_or_create(cls, folder: Path) -> KeyRing:
        """The keys in ``folder``, made on the first start. Processes that start at once end up with the same keys.

        Raises:
            EnvironmentProblem: a file has another length, can be read by others, is not a plain file, or cannot be made; or the public
                key is not the private key's.
        """
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            hmac_key = _load_or_create(folder / HMAC_FILE, secrets.token_bytes(_LENGTH))
            private = Ed25519PrivateKey.from_private_bytes(
                _load_or_create(folder / PRIVATE_FILE, secrets.token_bytes(_LENGTH))
            )
            verifier = _verifier(private)
            stored = _load_or_create(folder / PUBLIC_FILE, verifier.text.encode() + b"\n", secret=False)
        except OSError as error:
            raise EnvironmentProblem(f"cannot use the audit keys in {folder}: {error.strerror}") from None
        if stored != verifier.text.encode() + b"\n":
            raise EnvironmentProblem(f"{folder / PUBLIC_FILE} is not the public key of {PRIVATE_FILE} beside it")
        return cls(hmac_key, verifier, private)

    @property
    def public_key(self) -> str:
        """The public key's text form, ``<name>+<key id>+<base64>``."""
        return self.verifier.text

    @property
    def origin(self) -> str:
        """The log's name."""
        return self.verifier.name

    def sign(self, message: bytes) -> bytes:
        """The Ed25519 signature, 64 bytes."""
        return self._private.sign(message)

    def sign_note(self, body: str) -> str:
        """``body`` (ending in a newline) as a signed note."""
        return sign_note(body, self.verifier, self.sign)

    def __repr__(self) -> str:
        return f"KeyRing({self.origin})"


def read_public_key(path: Path) -> PublicKey:
    """The public key in a file.

    Raises:
        EnvironmentProblem: unreadable, or not such a key.
    """
    try:
        return PublicKey.parse(path.read_text("utf-8"))
    except (OSError, BadNote, UnicodeDecodeError) as error:
        raise EnvironmentProblem(
            f"cannot use the public key {path}: {getattr(error, 'strerror', None) or error}"
        ) from None


def read_hmac_key(folder: Path) -> bytes | None:
    """The HMAC key if this user has it, else None (an auditor elsewhere verifies by the signatures alone).

    Raises:
        EnvironmentProblem: it is there and wrong.
    """
    path = folder / HMAC_FILE
    try:
        return _read(path, secret=True)
    except (FileNotFoundError, PermissionError):
        return None
    except OSError as error:
        raise EnvironmentProblem(f"cannot use the audit key {path}: {error.strerror}") from None


def _verifier(private: Ed25519PrivateKey) -> PublicKey:
    raw = private.public_key().public_bytes_raw()
    # The key names the log: two platforms never share an origin, and nobody has to think of a name.
    return PublicKey(f"cloche.audit/{hashlib.sha256(raw).hexdigest()[:16]}", raw)


def _load_or_create(path: Path, fresh: bytes, *, secret: bool = True) -> bytes:
    try:
        return _read(path, secret=secret)
    except FileNotFoundError:
        _create(path, fresh)
        return _read(path, secret=secret)


def _create(path: Path, content: bytes) -> None:
    """Write a whole file under a name of its own, then link it into place: the link fails where another process was first."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return
    finally:
        os.unlink(temporary)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _read(path: Path, *, secret: bool) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise EnvironmentProblem(f"{path} is not a plain file")
        if status.st_mode & (0o077 if secret else 0o022):
            raise EnvironmentProblem(f"{path} is open to other users: run chmod 600 on it, and ask who has read it")
        content = file.read(4096)
    if secret and len(content) != _LENGTH:
        raise EnvironmentProblem(f"{path} holds {len(content)} bytes instead of {_LENGTH}: restore it from a backup")
    return content
