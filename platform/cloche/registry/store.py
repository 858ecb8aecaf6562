"""Frozen copies: each bundle's files once under ``<home>/bundles/<digest>/``, read-only, so that a retry runs the same bytes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from cloche.domain.states import Reason
from cloche.errors import PlatformFailure
from cloche.registry import frozen, wheels
from cloche.registry.catalog import Bundle, Catalog, load
from cloche.registry.digest import BundleError, bundle_digest, bundle_files, open_regular
from cloche.registry.lockfile import LockError
from cloche.registry.manifest import ManifestError

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
            kept = load(self._folder(digest), named=False)
        except (ManifestError, BundleError, LockError):
            return None
        same = (kept.manifest.name, kept.manifest.version, kept.digest) == (name, version, digest)
        return kept if same else None

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
                frozen.set_aside(target)
            frozen.make(target, lambda folder: _copy(bundle, folder))
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


def _verified(folder: Path, digest: str) -> bool:
    try:
        return bundle_digest(folder) == digest
    except BundleError:
        return False


def _copy(bundle: Bundle, folder: Path) -> None:
    for item in bundle_files(bundle.source):
        _copy_file(item.source, folder / item.path)
    if not _verified(folder, bundle.digest):
        raise BundleError("its files changed since the catalog was read")


def _copy_file(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(open_regular(source), "rb") as reader, target.open("xb") as writer:
        shutil.copyfileobj(reader, writer, _CHUNK)
        writer.flush()
        os.fsync(writer.fileno())


def _unavailable(bundle: Bundle, why: str) -> PlatformFailure:
    manifest = bundle.manifest
    return PlatformFailure(Reason.BUNDLE_UNAVAILABLE, f"{manifest.name} {manifest.version}: {why}")
