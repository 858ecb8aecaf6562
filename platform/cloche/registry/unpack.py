"""Unpacking a wheel as data: files into a folder, nothing else. No installer, no scripts, no ``.pth``, no byte code.

A wheel is an archive from outside: every name is checked before anything is written, sizes are counted while they are read (the
archive's own figures are not believed), and only regular files and folders come out.
"""

from __future__ import annotations

import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from cloche.errors import ClocheError

MAX_ENTRIES = 20_000
MAX_BYTES = 512 << 20  # unpacked, of one wheel
MAX_PATH = 400  # bytes; the longest in a few hundred well-known wheels is below 200
_CHUNK = 1 << 20
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class UnpackError(ClocheError):
    """The archive is damaged or not safe to unpack. The message names the entry."""


def unpack(wheel: Path, site: Path, *, max_bytes: int = MAX_BYTES, max_entries: int = MAX_ENTRIES) -> None:
    """Put a wheel's packages under ``site``.

    ``<name>.data/purelib`` and ``platlib`` are merged as an installer would; its scripts, headers and data are left out, and so is every
    ``.pth`` file at the top: Python's ``site`` module would execute its lines.

    Raises:
        UnpackError: see the module. What was written so far is the caller's to throw away.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            entries = archive.infolist()
            if len(entries) > max_entries:
                raise UnpackError(f"{wheel.name} has more than {max_entries} entries")
            targets = _targets(entries)
            left = max_bytes
            for entry, target in targets:
                left -= _extract(archive, entry, site / target, left)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, UnicodeDecodeError) as error:
        raise UnpackError(f"{wheel.name} is not a whole wheel: {error}") from None
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise UnpackError(f"{wheel.name}: two entries claim {error.filename}") from None


def _targets(entries: list[zipfile.ZipInfo]) -> list[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """The entries to write with their paths, every one of them checked first."""
    found = []
    for entry in entries:
        _check_entry(entry)
        path = _placed(PurePosixPath(entry.filename))
        if path is not None and not entry.is_dir():
            found.append((entry, path))
    return found


def _check_entry(entry: zipfile.ZipInfo) -> None:
    name = entry.orig_filename  # `filename` is cut at a NUL
    parts = name.removesuffix("/").split("/")
    if not name.isprintable() or "\\" in name or len(name.encode()) > MAX_PATH:
        raise UnpackError(f"{name[:80]!r} is not a usable file name")
    if name.startswith("/") or any(part in ("", ".", "..") for part in parts) or ":" in parts[0]:
        raise UnpackError(f"{name[:80]!r} would leave the folder")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFDIR if entry.is_dir() else stat.S_IFREG):  # 0: made where files have no kinds
        raise UnpackError(f"{name[:80]!r} is neither a regular file nor a folder")
    if entry.flag_bits & 0x1:
        raise UnpackError(f"{name[:80]!r} is encrypted")
    if entry.compress_type not in _COMPRESSIONS:
        raise UnpackError(f"{name[:80]!r} is compressed in an unusual way")


def _placed(path: PurePosixPath) -> PurePosixPath | None:
    """Where a wheel's entry belongs under ``site``; None for what is left out."""
    parts = path.parts
    if parts[0].endswith(".data"):
        if len(parts) < 3 or parts[1] not in ("purelib", "platlib"):
            return None
        path = PurePosixPath(*parts[2:])
    if len(path.parts) == 1 and path.suffix.lower() == ".pth":
        return None
    if path.suffix == ".pyc":  # never anybody's source; a stale one could stand in for it
        return None
    return path


def _extract(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path, left: int) -> int:
    """Write one file and return its size in bytes; ``zipfile`` checks its CRC at the end."""
    target.parent.mkdir(parents=True, exist_ok=True)
    size = 0
    with archive.open(entry) as source, target.open("xb") as sink:
        while chunk := source.read(_CHUNK):
            size += len(chunk)
            if size > left:
                raise UnpackError(f"{entry.filename[:80]!r}: the wheel unpacks to more than it may")
            sink.write(chunk)
    return size
