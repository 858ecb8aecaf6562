"""A bundle's identity: one SHA-256 over the paths and contents of all its files.

Canonical form, version 1: the line ``cloche-bundle-v1``, then for each regular file, sorted by the bytes of its relative POSIX path:
the path, a NUL, the content's length in decimal, a NUL, the content's SHA-256 (32 bytes). Modes, owners and times do not count.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cloche.errors import ClocheError

MAX_FILES = 5_000
MAX_DEPTH = 32  # folders within folders
MAX_BYTES = 64 << 20  # of a bundle's own files; wheels are counted apart
_CHUNK = 1 << 20


class BundleError(ClocheError):
    """A folder is not a usable bundle. The message names the file."""


@dataclass(frozen=True)
class BundleFile:
    """A regular file of a bundle: its relative POSIX path and where it lies."""

    path: str
    source: Path


def bundle_files(folder: Path) -> list[BundleFile]:
    """The files of a bundle, sorted by path. ``__pycache__`` folders and ``*.pyc`` files are not part of it.

    Raises:
        BundleError: a symlink, a special file, a name that is not plain text, or more files than a bundle may have.
    """
    try:
        found = list(_walk(folder, ""))
    except OSError as error:
        raise BundleError(f"{error.filename or folder} cannot be read: {error.strerror}") from None
    return sorted(found, key=lambda item: item.path.encode())


def bundle_digest(folder: Path) -> str:
    """The bundle's SHA-256, 64 hex digits.

    Raises:
        BundleError: see :func:`bundle_files`; also when a file cannot be read or the whole is too large.
    """
    total = hashlib.sha256(b"cloche-bundle-v1\n")
    left = MAX_BYTES
    for item in bundle_files(folder):
        size, content = _hash(item, left)
        left -= size
        total.update(b"%s\0%d\0%s" % (item.path.encode(), size, content))
    return total.hexdigest()


def open_regular(path: Path) -> int:
    """A descriptor for reading a regular file, following nothing in its last component.

    Raises:
        BundleError: it is not a regular file, or cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BundleError(f"{path} is not a regular file")
    return descriptor


def _walk(folder: Path, prefix: str, count: int = 0) -> Iterator[BundleFile]:
    if prefix.count("/") > MAX_DEPTH:
        raise BundleError(f"{prefix}: folders are nested deeper than {MAX_DEPTH}")
    with os.scandir(folder) as entries:
        listed = sorted(entries, key=lambda entry: entry.name)
    for entry in listed:
        path = prefix + entry.name
        if not path.isprintable() or "\\" in entry.name:  # surrogates and control characters are not printable
            raise BundleError(f"{path!r}: a file's name must be printable text without backslashes")
        if entry.is_dir(follow_symlinks=False):
            if entry.name == "__pycache__":
                continue
            for item in _walk(Path(entry.path), path + "/", count):
                count += 1
                yield item
        elif entry.is_file(follow_symlinks=False):
            if entry.name.endswith(".pyc"):
                continue
            count += 1
            if count > MAX_FILES:
                raise BundleError(f"more than {MAX_FILES} files")
            yield BundleFile(path, Path(entry.path))
        else:
            raise BundleError(f"{path}: only regular files and folders may be in a bundle, no links or special files")


def _hash(item: BundleFile, left: int) -> tuple[int, bytes]:
    """Size in bytes and SHA-256 of a file that may have at most ``left`` bytes."""
    digest = hashlib.sha256()
    size = 0
    with os.fdopen(open_regular(item.source), "rb") as stream:
        while chunk := stream.read(_CHUNK):
            size += len(chunk)
            if size > left:
                raise BundleError(f"{item.path}: the bundle is larger than {MAX_BYTES} bytes")
            digest.update(chunk)
    return size, digest.digest()
