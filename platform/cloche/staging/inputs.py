"""Staging in: what is asked for is found and checked as a whole, then brought."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from cloche.domain.jobs import ClaimedJob, InputSpec
from cloche.domain.states import Reason
from cloche.errors import Invalid, NotFound, PlatformFailure, PluginFailure
from cloche.staging.artifacts import ArtifactStore, copy_file
from cloche.staging.paths import check_relative, check_remote_path
from cloche.staging.sources import ArtifactSource, RemoteSource, parse_source
from cloche.staging.transfer import RemoteFile, RemoteFiles, differs, digests, in_parallel


@dataclass(frozen=True)
class ArtifactRef:
    """What a job may know of a stored file of its tenant."""

    sha256: str
    size: int
    name: str


Resolve = Callable[[str], ArtifactRef]  # raises NotFound


@dataclass(frozen=True)
class Caps:
    """What one attempt may bring in."""

    files: int = 10_000
    size: int = 16 << 30  # bytes of all files


@dataclass(frozen=True)
class StagedFile:
    """An input in its place: name under ``/job/in``, bytes, hex digest, and what the job called it."""

    path: str
    size: int
    sha256: str
    source: str


@dataclass(frozen=True)
class _Planned:
    path: str
    source: str
    size: int
    origin: ArtifactRef | tuple[RemoteSource, RemoteFile]


class Inputs:
    """The inputs of one attempt."""

    def __init__(self, store: ArtifactStore, remotes: RemoteFiles, caps: Caps, resolve: Resolve) -> None:
        self._store = store
        self._remotes = remotes
        self._caps = caps
        self._resolve = resolve

    def stage(self, job: ClaimedJob, folder: Path, scratch: Path) -> list[StagedFile]:
        """Find, check, bring; see :meth:`cloche.staging.stager.Stager.stage_in`."""
        plan: list[_Planned] = []
        for spec in job.inputs:
            for item in self._planned(spec):
                plan.append(item)
                if len(plan) > self._caps.files:
                    raise unavailable(f"the inputs are more than {self._caps.files} files")
        self._check(plan)
        try:
            fetched = in_parallel(lambda item: self._fetched(item, scratch), list(enumerate(plan)), self._remotes)
            return [self._placed(item, source, folder) for item, source in zip(plan, fetched, strict=True)]
        except OSError as error:
            message = f"inputs could not be stored: {error.strerror or error}"
            raise PlatformFailure(Reason.STORAGE_FAILED, message) from error

    def _planned(self, spec: InputSpec) -> Iterator[_Planned]:
        try:
            source = parse_source(spec.source)
            to = check_relative(spec.to) if spec.to else None
        except Invalid as error:
            raise unavailable(f"input '{spec.source}': {error.detail}") from None
        if isinstance(source, ArtifactSource):
            try:
                ref = self._resolve(source.artifact_id)
            except NotFound:
                raise unavailable(f"the file {source.artifact_id} has been deleted") from None
            yield _Planned(_named(to or ref.name), spec.source, ref.size, ref)
        elif source.is_glob:
            yield from self._matching(source, to)
        else:
            found = self._remotes.stat(source.remote, source.path)
            if found is None:
                raise unavailable(f"remote '{source.remote}' has no file '{source.path}'")
            yield _Planned(to or source.basename, spec.source, found.size, (source, found))

    def _matching(self, source: RemoteSource, to: str | None) -> Iterator[_Planned]:
        """The files that match; ``to`` is the folder they go to."""
        empty = True
        for found in self._remotes.list(source.remote, source.folder):
            if not fnmatchcase(found.name, source.basename):
                continue
            empty = False
            # The name comes from the remote's server, which may be anybody's.
            if "/" in found.name:
                raise unavailable(f"remote '{source.remote}' lists a file whose name holds '/'")
            path = f"{source.folder}/{found.name}" if source.folder else found.name
            try:
                check_remote_path(path.replace("*", "_").replace("?", "_").replace("[", "_"))
            except Invalid as error:
                message = f"remote '{source.remote}' has a file {found.name!a} that cannot be staged: {error.detail}"
                raise unavailable(message) from None
            place = _named(f"{to}/{found.name}" if to else found.name)
            yield _Planned(place, f"{source.remote}:{path}", found.size, (RemoteSource(source.remote, path), found))
        if empty:
            raise unavailable(f"no file on remote '{source.remote}' matches '{source.path}'")

    def _check(self, plan: list[_Planned]) -> None:
        """Refuse two inputs of one name, a file where another needs a folder, and too many bytes."""
        places: dict[str, str] = {}
        for item in plan:
            if item.path in places:
                both = f"{places[item.path]} and {item.source}"
                raise unavailable(f"two inputs would be called '{item.path}': {both}; give one a 'to'")
            places[item.path] = item.source
        for path in places:
            for parent in PurePosixPath(path).parents:
                if str(parent) in places:
                    raise unavailable(f"input '{parent}' would be a file and the folder of '{path}'; give one a 'to'")
        if sum(max(item.size, 0) for item in plan) > self._caps.size:
            raise unavailable(f"the inputs are larger than {self._caps.size} bytes together")

    def _fetched(self, numbered: tuple[int, _Planned], scratch: Path) -> tuple[Path | None, str, int]:
        """A remote's file in ``scratch``, verified: where, digest, bytes. An artifact needs no fetching."""
        number, item = numbered
        origin = item.origin
        if isinstance(origin, ArtifactRef):
            return None, origin.sha256, origin.size
        where, found = origin
        target = scratch / str(number)  # a name of ours: what the remote calls it is not a path of this host
        self._remotes.fetch(where.remote, where.path, target, item.size if item.size >= 0 else self._caps.size)
        size, ours = digests(target, list(found.hashes))
        if fault := differs(found, size, ours):
            message = f"'{item.source}' was damaged or changed on the way: {fault}"
            raise PlatformFailure(Reason.REMOTE_UNAVAILABLE, message)
        if size > self._caps.size:
            raise unavailable(f"'{item.source}' is larger than {self._caps.size} bytes")
        target.chmod(0o444)
        return target, ours["sha256"], size

    def _placed(self, item: _Planned, fetched: tuple[Path | None, str, int], folder: Path) -> StagedFile:
        source, sha256, size = fetched
        target = folder / item.path
        _make_folders(folder, target.parent)
        if source is not None:
            _move(source, target)
        else:
            try:
                self._store.link_to(sha256, target)
            except FileNotFoundError:
                message = f"the artifact store has lost {sha256} ('{item.path}')"
                raise PlatformFailure(Reason.STORAGE_FAILED, message) from None
        return StagedFile(item.path, size, sha256, item.source)


def unavailable(message: str) -> PluginFailure:
    """An input cannot be had, and the job or the remote is why."""
    return PluginFailure(Reason.INPUT_UNAVAILABLE, message)


def _named(path: str) -> str:
    try:
        return check_relative(path)
    except Invalid as error:
        raise unavailable(f"'{path!a}' cannot be the name of an input: {error.detail}; give it a 'to'") from None


def _make_folders(root: Path, folder: Path) -> None:
    for path in [*reversed([p for p in folder.parents if p.is_relative_to(root) and p != root]), folder]:
        if path != root and not path.exists():
            path.mkdir()
            path.chmod(0o755)  # the sandbox's user reads it, whatever our umask


def _move(source: Path, target: Path) -> None:
    if source.stat().st_dev == target.parent.stat().st_dev:
        os.link(source, target)  # fails where rename would replace
        source.unlink()
    else:
        copy_file(source, target)
        shutil.copystat(source, target)
