"""The catalog: every plugin version the operator's folders hold, and which one a job's ``type`` and ``version`` mean."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import Version

from cloche import logs
from cloche.errors import Invalid, Problem
from cloche.registry import preload, wheels
from cloche.registry.digest import BundleError, bundle_digest
from cloche.registry.manifest import MAX_MANIFEST, Manifest, ManifestError, parse

MANIFEST_NAME = "plugin.toml"
_MAX_SPEC = 100  # characters; the width of the job's column
_BARE = re.compile(r"^\d+(\.\d+)*([-.]?(a|b|rc|alpha|beta)\.?\d+)?\Z")

_log = logs.get(__name__)


@dataclass(frozen=True)
class Bundle:
    """A plugin version's files. ``digest`` names them; ``wheels`` is the SHA-256 of its ``wheels.lock``, None without one.

    The folder of unpacked wheels depends on the image's Python too: see :func:`cloche.registry.wheels.digest_for`.
    """

    manifest: Manifest
    digest: str
    source: Path
    wheels: str | None

    @property
    def version(self) -> Version:
        return Version(self.manifest.version)


class Catalog:
    """The bundles under ``folders``, each laid out as ``<name>/<version>/plugin.toml``; read once, when it is made.

    A bundle with a fault is left out and listed in ``problems``; the others are served. Where two folders hold the same version, the
    first one counts. Immutable afterwards, so it may be shared between threads.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._bundles: dict[str, dict[str, Bundle]] = {}
        problems: list[str] = []
        for folder in folders:
            if not folder.is_dir():
                problems.append(f"{folder}: no such folder")
                continue
            for source in _version_folders(folder):
                try:
                    self._add(load(source))
                except (ManifestError, BundleError, wheels.LockError) as error:
                    problems.append(f"{source}: {error}")
        self.problems: Sequence[str] = tuple(problems)
        for problem in problems:
            _log.warning("plugin left out", problem=problem)

    def bundles(self) -> Sequence[Bundle]:
        """All bundles, by name, newest version first."""
        return [bundle for name in sorted(self._bundles) for bundle in self.versions(name)]

    def versions(self, name: str) -> Sequence[Bundle]:
        """The versions of one plugin, newest first; empty when there is none."""
        return sorted(self._bundles.get(name, {}).values(), key=lambda bundle: bundle.version, reverse=True)

    def default(self, name: str, closed: Collection[str] = ()) -> Bundle | None:
        """The version a job gets that asks for none: the newest that is no pre-release and not ``closed``."""
        return next((bundle for bundle in self._releases(name) if bundle.manifest.version not in closed), None)

    def get(self, name: str, version: str) -> Bundle | None:
        return self._bundles.get(name, {}).get(version)

    def by_digest(self, name: str, version: str, digest: str) -> Bundle | None:
        """That very bundle; None when the version is absent or its files are others now."""
        bundle = self.get(name, version)
        return bundle if bundle is not None and bundle.digest == digest else None

    def resolve(self, name: str, spec: str | None, closed: Mapping[str, str] | None = None) -> Bundle:
        """The newest version of ``name`` that fits ``spec``, a PEP 440 specifier or a bare version; None means the default.

        ``closed``: versions that take no new jobs, each with why; they are passed over. A pre-release never stands in for them: it has to be
        asked for.

        Raises:
            Invalid: no such plugin, a malformed specifier, no version that fits, or none of those takes jobs; the message lists what there is.
        """
        versions = self.versions(name)
        if not versions:
            known = ", ".join(sorted(self._bundles)) or "none"
            raise _invalid("/type", f"there is no plugin '{name[:64]}'; there are: {known}")
        if spec is None:
            fitting = self._releases(name)
            none = f"'{name}' has only pre-releases; name one of: {_listed(versions)}"
        else:
            named = list(_specifier(spec).filter([bundle.version for bundle in versions]))
            fitting = [bundle for bundle in versions if bundle.version in named]
            none = f"no version of '{name}' fits '{spec}'; there are: {_listed(versions)}"
        if not fitting:
            raise _invalid("/version", none)
        closed = closed or {}
        for bundle in fitting:
            if bundle.manifest.version not in closed:
                return bundle
        open_ones = [bundle for bundle in versions if bundle.manifest.version not in closed]
        newest = fitting[0].manifest.version
        what = f"ask for one of: {_listed(open_ones)}" if open_ones else "no other version of it does"
        raise _invalid("/version", f"{name} {newest} takes no new jobs: {closed[newest]}; {what}")

    def _releases(self, name: str) -> Sequence[Bundle]:
        return [bundle for bundle in self.versions(name) if not bundle.version.is_prerelease]

    def _add(self, bundle: Bundle) -> None:
        manifest = bundle.manifest
        existing = self._bundles.setdefault(manifest.name, {}).setdefault(manifest.version, bundle)
        if existing.digest != bundle.digest:
            raise BundleError(f"{existing.source} holds another {manifest.name} {manifest.version} and comes first")


def load(source: Path, *, named: bool = True) -> Bundle:
    """Read one version's folder. ``named``: its path must end in ``<name>/<version>``, as it does in a catalog.

    Raises:
        ManifestError, BundleError, LockError: what is wrong with it.
    """
    manifest = parse(_manifest_text(source))
    if named and (source.parent.name, source.name) != (manifest.name, manifest.version):
        raise ManifestError(
            "plugin", f"says {manifest.name} {manifest.version}; its folder must be {manifest.name}/{manifest.version}"
        )
    entries = (source / f"{manifest.entry}.py", source / manifest.entry / "__init__.py")
    if manifest.image is None and not any(path.is_file() for path in entries):
        raise ManifestError("plugin.entry", f"there is no {manifest.entry}.py in the bundle")
    if manifest.requires_python:
        wheels.check_lock(source, manifest.requires_python)
        if manifest.preload:
            preload.check(source, manifest.preload, wheels.read_lock(source))
    elif (source / wheels.LOCK_NAME).exists():
        raise ManifestError("requires.python", f"is empty, yet there is a {wheels.LOCK_NAME}")
    return Bundle(manifest, bundle_digest(source), source, wheels.lock_digest(source))


def _version_folders(folder: Path) -> list[Path]:
    """Folders two levels down that hold a manifest, or should: hidden ones are not looked at."""
    return sorted(
        version
        for name in folder.iterdir()
        if name.is_dir() and not name.name.startswith((".", "_"))
        for version in name.iterdir()
        if version.is_dir() and not version.name.startswith((".", "_"))
    )


def _manifest_text(source: Path) -> str:
    path = source / MANIFEST_NAME
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_MANIFEST + 1).decode("utf-8")
    except FileNotFoundError:
        raise ManifestError("", f"there is no {MANIFEST_NAME}") from None
    except UnicodeDecodeError:
        raise ManifestError("", f"{MANIFEST_NAME} is not UTF-8 text") from None
    except OSError as error:
        raise ManifestError("", f"{MANIFEST_NAME} cannot be read: {error.strerror}") from None


def _specifier(spec: str) -> SpecifierSet:
    if len(spec) > _MAX_SPEC:
        raise _invalid("/version", f"a version specifier has at most {_MAX_SPEC} characters")
    try:
        return SpecifierSet(f"=={spec}" if _BARE.match(spec.strip()) else spec)
    except InvalidSpecifier:
        raise _invalid("/version", f"'{spec}' is not a version specifier; write '1.2.0', '~=1.2' or '>=1,<3'") from None


def _listed(versions: Sequence[Bundle]) -> str:
    return ", ".join(bundle.manifest.version for bundle in versions)


def _invalid(pointer: str, detail: str) -> Invalid:
    return Invalid(detail, problems=[Problem(pointer, detail)])
