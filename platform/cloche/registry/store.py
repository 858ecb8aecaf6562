"""Frozen copies: each bundle's files once under ``<home>/bundles/<digest>/``, read-only, so that a retry runs the same bytes."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from cloche.domain.states import Reason
from cloche.errors import PlatformFailure
from cloche.registry import wheels
from cloche.registry.catalog import Bundle, Catalog, load
from cloche.registry.digest import BundleError, bundle_digest, bundle_files, open_regular
from cloche.registry.lockfile import LockError
from cloche.registry.manifest import ManifestError
from cloche.registry.unpack import lock_down

_CHUNK = 1 << 20


class BundleStore:
    """Bundles and wheels of one host, under ``home``. Every method may be called from any thread or process, and again.

    ``wheel_cache``: where downloaded wheels are kept by hash, for hosts that share one between several homes.
    """

    def __init__(self, home: Path, catalog: Catalog, *, wheel_cache: Path | None = None) -> None:
        self._home = home
        self._catalog = catalog
        self._wheel_cache = wheel_cache

    def bundle(self, name: str, version: str, digest: str) -> Bundle | None:
        """That very bundle, from the catalog or, when its folder is gone or changed since, from the frozen copy."""
        found = self._catalog.by_digest(name, version, digest)
        if found is not None:
            return found
        try:
            frozen = load(self._folder(digest), named=False)
        except (ManifestError, BundleError, LockError):
            return None
        same = (frozen.manifest.name, frozen.manifest.version, frozen.digest) == (name, version, digest)
        return frozen if same else None

    def freeze(self, bundle: Bundle) -> Path:
        """The bundle's frozen folder; copied when it is not there yet, or when what is there is not what it was.

        Raises:
            PlatformFailure: ``bundle_unavailable``: the source changed since the catalog was read, or the disk failed.
        """
        target = self._folder(bundle.digest)
        try:
            if target.is_dir():
                if _verified(target, bundle.digest):
                    return target
                self._set_aside(target)
            self._copy(bundle, target)
        except (BundleError, OSError) as error:
            raise _unavailable(bundle, str(error)) from None
        return target

    def wheels(self, bundle: Bundle, image_python: str) -> Path | None:
        """``<home>/wheels/<digest>/`` for the image's Python (``"3.11"``), its last part being the digest; None without wheels.

        Raises:
            PlatformFailure: ``bundle_unavailable``: no wheel fits, or they cannot be fetched.
        """
        if bundle.wheels is None:
            return None
        try:
            return wheels.fetch(bundle.source, image_python, self._home, cache=self._wheel_cache)
        except (LockError, OSError) as error:
            raise _unavailable(bundle, str(error)) from None

    def _folder(self, digest: str) -> Path:
        return self._home / "bundles" / digest

    def _copy(self, bundle: Bundle, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".copy-", dir=target.parent))
        try:
            copy = work / "files"
            copy.mkdir()
            for item in bundle_files(bundle.source):
                _copy_file(item.source, copy / item.path)
            if not _verified(copy, bundle.digest):
                raise BundleError("its files changed since the catalog was read")
            lock_down(copy)
            os.chmod(copy, 0o755)  # a folder without write permission cannot be moved by an ordinary user
            _rename(copy, target)
            os.chmod(target, 0o555)
        finally:
            _remove(work)

    def _set_aside(self, target: Path) -> None:
        """Take a damaged copy away; a sandbox that has it mounted keeps what it has."""
        os.chmod(target, 0o755)
        aside = Path(tempfile.mkdtemp(prefix=".damaged-", dir=target.parent))
        os.rename(target, aside / "files")
        _remove(aside)


def _verified(folder: Path, digest: str) -> bool:
    try:
        return bundle_digest(folder) == digest
    except BundleError:
        return False


def _copy_file(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(open_regular(source), "rb") as reader, target.open("xb") as writer:
        shutil.copyfileobj(reader, writer, _CHUNK)
        writer.flush()
        os.fsync(writer.fileno())


def _rename(copy: Path, target: Path) -> None:
    try:
        os.rename(copy, target)
    except OSError:
        if not target.is_dir():  # else another process froze the same bytes first
            raise


def _remove(folder: Path) -> None:
    for parent, _, _ in os.walk(folder):
        os.chmod(parent, 0o755)
    shutil.rmtree(folder)


def _unavailable(bundle: Bundle, why: str) -> PlatformFailure:
    manifest = bundle.manifest
    return PlatformFailure(Reason.BUNDLE_UNAVAILABLE, f"{manifest.name} {manifest.version}: {why}")
