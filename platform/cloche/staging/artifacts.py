"""The artifact store: files by their SHA-256, in a local directory of the platform's own.

``<root>/tenants/<tenant>/<aa>/<bb>/<sha256>``. A stored file never changes: its mode is 0444 (so that a hard link
of it can be read in a sandbox, whose user id is another one) below folders of mode 0700. Content is shared within a
tenant and never between tenants: the link count of an input would otherwise tell one tenant what another has
stored.

A file counts only once it and its folder are on the disk. What a crash leaves is under ``tmp/``, locked by whoever
is writing it, and removed at the next start. Any number of processes and threads may use one root.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from cloche.errors import TooLarge

CHUNK = 1 << 20
# Between a file's arrival and the commit of its row nothing but its age tells that it is wanted.
GRACE_S = 3_600
_LEFTOVER_S = 60  # a temporary file that nobody locks for this long is a crash's
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SCOPE = re.compile(r"[0-9a-z-]{1,64}")
_CANNOT_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EACCES, errno.EOPNOTSUPP}


class Readable(Protocol):
    """Anything with ``read(n)``; empty bytes are the end."""

    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True)
class Stored:
    """What the store now holds: hex digest, bytes."""

    sha256: str
    size: int


class ArtifactStore:
    """Files by content. ``tenant(id)`` gives the tenant's part; use that for everything but cleaning."""

    def __init__(self, root: Path, *, whole: ArtifactStore | None = None) -> None:
        self.root = root
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._tmp: Path = whole._tmp if whole else root / "tmp"
        if whole is None:
            self._tmp.mkdir(mode=0o700, exist_ok=True)
            self.clean()

    def tenant(self, tenant_id: str) -> ArtifactStore:
        """The part of the store that belongs to one tenant."""
        if not _SCOPE.fullmatch(tenant_id):
            raise ValueError("a tenant's id is lower-case letters, digits and '-'")
        root = self.root / "tenants" / tenant_id
        if not root.is_dir():
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            _sync_folder(root.parent)
            _sync_folder(self.root)
        return ArtifactStore(root, whole=self)

    def put(self, stream: Readable, *, limit: int | None = None) -> Stored:
        """Store all that ``stream`` gives, up to ``limit`` bytes; durable when it returns.

        Raises:
            TooLarge: more than ``limit`` bytes. Nothing is kept.
        """
        with self._temporary() as (descriptor, name):
            digest, size = hashlib.sha256(), 0
            while chunk := stream.read(CHUNK):
                size += len(chunk)
                if limit is not None and size > limit:
                    raise TooLarge(f"the file is larger than {limit} bytes")
                digest.update(chunk)
                _write(descriptor, chunk)
            return self._keep(descriptor, name, Stored(digest.hexdigest(), size))

    def adopt(self, path: Path) -> Stored:
        """Move a file of our own into the store, hashed on the way; copied where it cannot be moved. ``path`` is
        gone afterwards.

        Raises:
            ValueError: it is not a regular file.
        """
        source = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            info = os.fstat(source)
            if not stat.S_ISREG(info.st_mode):
                raise ValueError(f"{path.name} is not a regular file")
            if info.st_nlink == 1 and info.st_uid == os.geteuid() and (stored := self._adopt_moved(source, path)):
                return stored
            with os.fdopen(os.dup(source), "rb") as stream:
                stored = self.put(stream)
        finally:
            os.close(source)
        path.unlink()
        return stored

    def open(self, sha256: str) -> BinaryIO:
        """The content, for reading.

        Raises:
            FileNotFoundError: the store does not hold it.
        """
        return self.path(sha256).open("rb")

    def path(self, sha256: str) -> Path:
        """Where that content lies, or would."""
        if not _DIGEST.fullmatch(sha256):
            raise ValueError("a digest is 64 hex digits")
        return self.root / sha256[:2] / sha256[2:4] / sha256

    def link_to(self, sha256: str, target: Path) -> None:
        """Make ``target`` a read-only file of that content: a hard link where the file system allows, else a copy.

        Raises:
            FileNotFoundError: the store does not hold it.
            FileExistsError: ``target`` exists.
        """
        source = self.path(sha256)
        try:
            os.link(source, target, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _CANNOT_LINK:
                raise
            copy_file(source, target)

    def remove(self, sha256: str, *, wanted: Callable[[], bool] = lambda: False, older_than_s: float = 0) -> bool:
        """Drop that content, unless it is younger than ``older_than_s`` seconds or ``wanted()``. True when it is
        gone.

        No file of the same content can be stored while this decides: :meth:`put` renews the age of what it finds
        present.
        """
        path = self.path(sha256)
        with self._lock(fcntl.LOCK_EX):
            try:
                age = time.time() - path.stat().st_mtime
            except FileNotFoundError:
                return True
            if age < older_than_s or wanted():
                return False
            path.unlink()
            _sync_folder(path.parent)
            return True

    def tenants(self) -> list[str]:
        """The tenants that have a part."""
        folder = self.root / "tenants"
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def digests(self) -> Iterator[str]:
        """Every digest held, in no order."""
        for path in self.root.glob("[0-9a-f][0-9a-f]/[0-9a-f][0-9a-f]/*"):
            if _DIGEST.fullmatch(path.name):
                yield path.name

    def clean(self) -> int:
        """Remove what crashed writers left; what a living one writes is locked and stays. Returns how many files
        went."""
        gone = 0
        for path in self._tmp.iterdir():
            with contextlib.suppress(FileNotFoundError):
                gone += _remove_if_abandoned(path)
        return gone

    # --- the pieces ---------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[tuple[int, Path]]:
        name = self._tmp / secrets.token_hex(12)
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor, name
        finally:
            name.unlink(missing_ok=True)
            os.close(descriptor)

    def _adopt_moved(self, source: int, path: Path) -> Stored | None:
        name = self._tmp / secrets.token_hex(12)
        fcntl.flock(source, fcntl.LOCK_EX)
        os.utime(source)  # cleaning looks at the age, and the file may be old
        try:
            os.rename(path, name)
        except OSError as error:
            if error.errno not in _CANNOT_LINK:
                raise
            return None
        try:
            digest, size = hashlib.sha256(), 0
            while chunk := os.read(source, CHUNK):
                digest.update(chunk)
                size += len(chunk)
            return self._keep(source, name, Stored(digest.hexdigest(), size))
        finally:
            name.unlink(missing_ok=True)

    def _keep(self, descriptor: int, name: Path, stored: Stored) -> Stored:
        os.fchmod(descriptor, 0o444)
        os.fsync(descriptor)
        final = self.path(stored.sha256)
        with self._lock(fcntl.LOCK_SH):
            _make_folders(self.root, final.parent)
            try:
                os.link(name, final, follow_symlinks=False)
            except FileExistsError:
                if final.stat().st_size == stored.size:
                    os.utime(final)
                else:  # a damaged file under this digest: the good one takes its place
                    os.replace(name, final)
            _sync_folder(final.parent)
        return stored

    @contextlib.contextmanager
    def _lock(self, kind: int) -> Iterator[None]:
        descriptor = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, kind)
            yield
        finally:
            os.close(descriptor)


def copy_file(source: Path, target: Path, *, mode: int = 0o444) -> None:
    """Copy a regular file to a new one; a failure leaves no ``target``."""
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with source.open("rb") as reader, os.fdopen(descriptor, "wb") as writer:
            shutil.copyfileobj(reader, writer, CHUNK)
            os.fchmod(writer.fileno(), mode)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _make_folders(root: Path, folder: Path) -> None:
    if folder.is_dir():
        return
    for path in (folder.parent, folder):
        path.mkdir(mode=0o700, exist_ok=True)
        _sync_folder(path.parent)
    _sync_folder(root)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_if_abandoned(path: Path) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if time.time() - os.fstat(descriptor).st_mtime < _LEFTOVER_S:
            return 0
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
        return 1
    except BlockingIOError:
        return 0
    finally:
        os.close(descriptor)
