"""The platform's audit keys, in files of their own: never in the database, so that whoever edits rows cannot sign them."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import secrets
import stat
import time
from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloche.audit.note import BadNote, PublicKey
from cloche.audit.note import sign as sign_note
from cloche.errors import EnvironmentProblem

HMAC_FILE = "audit-hmac.key"
PRIVATE_FILE = "audit-ed25519.key"
PUBLIC_FILE = "audit-ed25519.pub"
_LENGTH = 32  # bytes: an HMAC-SHA256 key and an Ed25519 seed
_LOOK_S = 1.0
_OLD_HMAC = re.compile(r"audit-hmac\.([0-9]{1,15})\.key")  # ms: when it was replaced


class KeyRing:
    """The HMAC keys and the signing keys of a home's ``keys`` folder. Printing it shows none. Shared by a process's threads.

    The log is named after its first key, whose public half stays as ``audit-ed25519.pub``: what people pin. Which private key signs is
    what the trail says (see :mod:`cloche.audit.chain`): a rotation puts the new one beside the old, announces it, and removes the old one.
    """

    def __init__(
        self, folder: Path, hmac_key: bytes, verifier: PublicKey, privates: Mapping[bytes, Ed25519PrivateKey]
    ) -> None:
        self._folder = folder
        self.hmac_key = hmac_key
        self.verifier = verifier
        self._privates = dict(privates)
        self._looked = time.monotonic()

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
            verifier, privates = _signing_keys(folder)
        except OSError as error:
            raise EnvironmentProblem(f"cannot use the audit keys in {folder}: {error.strerror}") from None
        return cls(folder, hmac_key, verifier, privates)

    @property
    def public_key(self) -> str:
        """The first public key's text form, ``<name>+<key id>+<base64>``."""
        return self.verifier.text

    @property
    def origin(self) -> str:
        """The log's name."""
        return self.verifier.name

    def current_hmac_key(self) -> bytes:
        """The HMAC key for a new event: that of the file as it was at most a second ago, so that a rotation needs no restart."""
        now = time.monotonic()
        if now - self._looked > _LOOK_S:
            self._looked = now
            with contextlib.suppress(OSError, EnvironmentProblem):  # what was read before still serves
                self.hmac_key = _read(self._folder / HMAC_FILE, secret=True)
        return self.hmac_key

    def hmac_keys(self, *, since_ms: int = 0) -> list[bytes]:
        """The HMAC key, and those it replaced at or after ``since_ms``, newest first."""
        return read_hmac_keys(self._folder, since_ms=since_ms) or [self.hmac_key]

    def holds(self, key: PublicKey) -> bool:
        """Whether its private half is here, or has come into the folder meanwhile."""
        if key.raw not in self._privates:
            with contextlib.suppress(OSError, EnvironmentProblem):
                self._privates.update(_signing_keys(self._folder)[1])
        return key.raw in self._privates

    def sign(self, message: bytes, key: PublicKey | None = None) -> bytes:
        """The Ed25519 signature, 64 bytes, by that key, else the first.

        Raises:
            EnvironmentProblem: its private half is not here.
        """
        key = key or self.verifier
        if not self.holds(key):
            raise EnvironmentProblem(
                f"the private half of the audit key {key.name}+{key.id.hex()} is not in {self._folder}: restore it from a backup"
            )
        return self._privates[key.raw].sign(message)

    def sign_note(self, body: str, key: PublicKey | None = None) -> str:
        """``body`` (ending in a newline) as a signed note, by that key, else the first. Raises as :meth:`sign`."""
        return sign_note(body, key or self.verifier, lambda message: self.sign(message, key))

    def held(self) -> list[PublicKey]:
        """The public halves of the private keys that are in the folder now.

        Raises:
            EnvironmentProblem: one cannot be read, or is wrong. Without it nobody could say whether the trail ends under a key of ours.
        """
        try:
            return _public_halves(self._folder, self.origin)
        except OSError as error:
            raise EnvironmentProblem(f"cannot use the audit keys in {self._folder}: {error.strerror}") from None

    def known(self) -> list[PublicKey]:
        """The public halves of every private key that is here."""
        self._privates.update(_signing_keys(self._folder)[1])
        return [PublicKey(self.origin, raw) for raw in self._privates]

    def add_signing_key(self) -> PublicKey:
        """Make a further key, to be announced; one that an earlier attempt left behind is taken again where ``known`` has it."""
        raw = secrets.token_bytes(_LENGTH)
        key = PublicKey(self.origin, Ed25519PrivateKey.from_private_bytes(raw).public_key().public_bytes_raw())
        _create(self._folder / _private_name(key), raw)
        return key

    def drop_signing_keys(self, but: PublicKey) -> None:
        """Remove every private key but that one. The first public key stays."""
        for path, raw in _private_files(self._folder):
            if Ed25519PrivateKey.from_private_bytes(raw).public_key().public_bytes_raw() != but.raw:
                path.unlink(missing_ok=True)
        self._privates = {raw: private for raw, private in self._privates.items() if raw == but.raw}

    def rotate_hmac(self, now_ms: int) -> None:
        """Put a new HMAC key in the place of the one in use, which stays under a name that says when that was."""
        current = self._folder / HMAC_FILE
        os.link(current, self._folder / f"audit-hmac.{now_ms}.key")
        fresh = self._folder / f".{HMAC_FILE}.{secrets.token_hex(8)}"
        _create(fresh, secrets.token_bytes(_LENGTH))
        os.replace(fresh, current)
        _sync(self._folder)
        self.hmac_key = _read(current, secret=True)

    def __repr__(self) -> str:
        return f"KeyRing({self.origin})"


def hmac_key_id(key: bytes) -> str:
    """What the record calls an HMAC key: 16 hex digits that say nothing of it."""
    return hmac.digest(key, b"cloche-audit-hmac-key-id", "sha256").hex()[:16]


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


def read_hmac_keys(folder: Path, *, since_ms: int = 0) -> list[bytes]:
    """The HMAC keys that this user can read, that in use first, then those replaced at or after ``since_ms``; none where an auditor elsewhere
    verifies by the signatures alone.

    Raises:
        EnvironmentProblem: one is there and wrong.
    """
    path = folder / HMAC_FILE
    try:
        keys = [_read(path, secret=True)]
        for path, replaced_ms in sorted(_old_hmacs(folder), key=lambda one: -one[1]):
            if replaced_ms >= since_ms:
                keys.append(_read(path, secret=True))
    except (FileNotFoundError, PermissionError):
        return []
    except OSError as error:
        raise EnvironmentProblem(f"cannot use the audit key {path}: {error.strerror}") from None
    return keys


def read_signing_keys(folder: Path, name: str) -> list[PublicKey]:
    """The public halves of the private keys, as those of the log of that name; none where this user may not read every one.

    Raises:
        EnvironmentProblem: one is there and wrong.
    """
    try:
        return _public_halves(folder, name)
    except PermissionError:
        return []
    except OSError as error:
        raise EnvironmentProblem(f"cannot use the audit keys in {folder}: {error.strerror}") from None


def _public_halves(folder: Path, name: str) -> list[PublicKey]:
    privates = [Ed25519PrivateKey.from_private_bytes(raw) for _, raw in _private_files(folder)]
    return [PublicKey(name, private.public_key().public_bytes_raw()) for private in privates]


def _old_hmacs(folder: Path) -> list[tuple[Path, int]]:
    matches = ((path, _OLD_HMAC.fullmatch(path.name)) for path in folder.iterdir())
    return [(path, int(match[1])) for path, match in matches if match]


def _private_files(folder: Path) -> list[tuple[Path, bytes]]:
    found = []
    for path in sorted(folder.glob("audit-ed25519*.key")):
        with contextlib.suppress(FileNotFoundError):  # a rotation has removed it meanwhile
            found.append((path, _read(path, secret=True)))
    return found


def _private_name(key: PublicKey) -> str:
    return f"audit-ed25519.{key.id.hex()}.key"


def _signing_keys(folder: Path) -> tuple[PublicKey, dict[bytes, Ed25519PrivateKey]]:
    """The first public key, and the private keys by their public halves."""
    later = [path for path in folder.glob("audit-ed25519.*.key")]
    if not later:  # never rotated, or not there yet
        private = Ed25519PrivateKey.from_private_bytes(
            _load_or_create(folder / PRIVATE_FILE, secrets.token_bytes(_LENGTH))
        )
        verifier = _verifier(private)
        stored = _load_or_create(folder / PUBLIC_FILE, verifier.text.encode() + b"\n", secret=False)
        if stored != verifier.text.encode() + b"\n":
            raise EnvironmentProblem(f"{folder / PUBLIC_FILE} is not the public key of {PRIVATE_FILE} beside it")
    keys = [Ed25519PrivateKey.from_private_bytes(raw) for _, raw in _private_files(folder)]
    return read_public_key(folder / PUBLIC_FILE), {key.public_key().public_bytes_raw(): key for key in keys}


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
    _sync(path.parent)


def _sync(folder: Path) -> None:
    """Make the names in the folder last."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
