"""Takes a dead sandbox's regular files out of ``out/``, following nothing."""

from __future__ import annotations

import os
import stat
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

MAX_DEPTH = 32
MAX_NAME = 255  # bytes
MAX_PATH = 1_024  # bytes, relative
MAX_REFUSED = 100  # listed; the rest is counted
_CHUNK = 1 << 20
# Control and format characters, lone surrogates (bytes that are not UTF-8), line and paragraph separators.
_BAD_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


@dataclass
class Collected:
    """``files``: (relative POSIX path, bytes). ``refused``: (path made printable, reason).

    ``over``: 1 for each limit some file was refused for, ``output_over`` (bytes) and ``output_files_over``.
    """

    files: list[tuple[str, int]] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    over: dict[str, int] = field(default_factory=dict)
    unlisted: int = 0

    @property
    def size(self) -> int:
        return sum(size for _, size in self.files)

    def refuse(self, path: str, reason: str) -> None:
        if len(self.refused) < MAX_REFUSED:
            self.refused.append((printable(path), reason))
        else:
            self.unlisted += 1


@dataclass(frozen=True)
class Caps:
    """Bytes and files in all; and who owns the copies."""

    size: int
    files: int
    uid: int
    gid: int


def name_problem(name: str) -> str | None:
    """Why a file's name is refused, or None. The one rule, which docs/plugins.md tells: 1 to 255 bytes of UTF-8, no backslash, no ``.`` or ``..``, no
    control, format or separator characters."""
    if name in ("", ".", ".."):
        return "not a file name"
    if any(unicodedata.category(letter) in _BAD_CATEGORIES for letter in name):
        return "its name has control characters or is not UTF-8"
    if "/" in name or "\\" in name:
        return "its name has a slash"
    if len(name.encode("utf-8")) > MAX_NAME:
        return "its name is too long"
    return None


def printable(path: str) -> str:
    """The path with every doubtful character escaped, at most 200 characters."""
    shown = "".join(
        letter
        if unicodedata.category(letter) not in _BAD_CATEGORIES
        else letter.encode("unicode_escape").decode("ascii")
        for letter in path
    )
    return shown[:200]


def collect(source: Path, device: int, target: Path, caps: Caps) -> Collected:
    """Copy ``source`` (the root of a mount whose device number is ``device``) into the empty folder ``target``.

    Nothing of it is in use: the sandbox is dead. Copies have mode 0600, folders 0700; both belong to the caller only at the end.

    Raises:
        OSError: ``source`` is not that mount, or the copy itself fails (disk full).
    """
    result = Collected()
    source_fd = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(source_fd).st_dev != device:
            raise OSError("out/ is not the mount it was")
        target_fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _Walk(caps, device, result).folder(source_fd, target_fd, "", 0)
        finally:
            os.close(target_fd)
    finally:
        os.close(source_fd)
    if result.unlisted:
        result.refused.append(("…", f"and {result.unlisted} more"))
    return result


class _Walk:
    def __init__(self, caps: Caps, device: int, result: Collected) -> None:
        self._caps = caps
        self._device = device
        self._result = result
        self._size = 0

    def folder(self, source: int, target: int, prefix: str, depth: int) -> None:
        """Copy one folder; both are open descriptors, and names are only ever looked up in them."""
        with os.scandir(source) as entries:
            names = sorted(entry.name for entry in entries)
        for name in names:
            path = prefix + name
            reason = name_problem(name)
            if reason is None and len(path.encode("utf-8")) > MAX_PATH:
                reason = "its path is too long"
            if reason is None:
                kind = os.stat(name, dir_fd=source, follow_symlinks=False).st_mode
                if stat.S_ISDIR(kind):
                    reason = self._enter(source, target, name, path, depth)
                elif stat.S_ISREG(kind):
                    reason = self._copy(source, target, name, path)
                else:
                    reason = "not a regular file"
            if reason is not None:
                self._result.refuse(path, reason)
        os.fchmod(target, 0o700)
        os.fchown(target, self._caps.uid, self._caps.gid)

    def _enter(self, source: int, target: int, name: str, path: str, depth: int) -> str | None:
        if depth + 1 >= MAX_DEPTH:
            return "nested too deeply"
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        inner = os.open(name, flags, dir_fd=source)
        try:
            if os.fstat(inner).st_dev != self._device:
                return "another file system"
            os.mkdir(name, 0o700, dir_fd=target)
            copy = os.open(name, flags, dir_fd=target)
            try:
                self.folder(inner, copy, path + "/", depth + 1)
            finally:
                os.close(copy)
        finally:
            os.close(inner)
        return None

    def _copy(self, source: int, target: int, name: str, path: str) -> str | None:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        reader = os.open(name, flags, dir_fd=source)
        try:
            facts = os.fstat(reader)
            if not stat.S_ISREG(facts.st_mode) or facts.st_dev != self._device:
                return "not a regular file"
            if facts.st_nlink != 1:
                return "a hard link"
            if len(self._result.files) >= self._caps.files:
                self._result.over["output_files_over"] = 1
                return "more files than the limit"
            if self._size + facts.st_size > self._caps.size:
                self._result.over["output_over"] = 1
                return "more bytes than the limit"
            writer = os.open(
                name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=target
            )
            try:
                size = _pour(reader, writer, facts.st_size)
                os.fchmod(writer, 0o600)
                os.fchown(writer, self._caps.uid, self._caps.gid)
            finally:
                os.close(writer)
        finally:
            os.close(reader)
        self._size += size
        self._result.files.append((path, size))
        return None


def _pour(reader: int, writer: int, size: int) -> int:
    """Copy at most ``size`` bytes; how many it were."""
    done = 0
    while done < size:
        moved = os.sendfile(writer, reader, done, min(_CHUNK, size - done))
        if moved == 0:
            break
        done += moved
    return done
