"""Staging out: the files of a dead sandbox, to the artifact store or to remotes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from cloche import logs
from cloche.clock import uuid7
from cloche.domain.jobs import ClaimedJob, OutputFile
from cloche.domain.states import Reason
from cloche.errors import Invalid, JobFailure, PlatformFailure, PluginFailure
from cloche.staging.accept import glob_match
from cloche.staging.artifacts import ArtifactStore, copy_file
from cloche.staging.paths import check_relative
from cloche.staging.sources import RemoteSource, parse_destination
from cloche.staging.transfer import RemoteFiles, differs, digests, in_parallel

_EARLIER = 5  # attempts before this one whose leftovers are looked for

_log = logs.get(__name__)


class Written(Protocol):
    """A regular file a job left: relative POSIX path, as :class:`cloche.isolation.backend.CollectedFile` has it."""

    @property
    def path(self) -> str: ...


class Leavings(Protocol):
    """What a dead sandbox left, as :class:`cloche.isolation.backend.Remains` has it; the two layers do not know each other."""

    @property
    def folder(self) -> Path | None: ...

    @property
    def files(self) -> Sequence[Written]: ...


@dataclass(frozen=True)
class _Going:
    """A file on its way to a remote: where it lies, what it is called there until it is whole, and after."""

    number: int
    path: str
    source: Path
    remote: str
    draft: str
    final: str
    size: int = 0
    sha256: str = ""


class Outputs:
    """The outputs of one attempt."""

    def __init__(self, store: ArtifactStore, remotes: RemoteFiles) -> None:
        self._store = store
        self._remotes = remotes.charging(Reason.OUTPUT_REJECTED)

    def stage(self, job: ClaimedJob, folder: Path, files: Sequence[Written], scratch: Path) -> list[OutputFile]:
        """Store every file; see :meth:`cloche.staging.stager.Stager.stage_out`. Remotes first: they are what may
        fail."""
        going: list[_Going] = []
        staying: list[tuple[int, str, Path]] = []
        for number, file in enumerate(files):
            source = folder / _checked(file.path)
            destination = self._destination(job, file.path)
            if destination is None:
                staying.append((number, file.path, source))
            else:
                going.append(_going(job, number, file.path, source, destination))
        stored: dict[int, OutputFile] = {}
        try:
            for item in self._sent(job, going, scratch):
                stored[item.number] = OutputFile(item.path, item.size, item.sha256, None, f"{item.remote}:{item.final}")
            for number, path, source in staying:
                kept = self._store.adopt(source)
                stored[number] = OutputFile(path, kept.size, kept.sha256, uuid7())
        except (OSError, ValueError) as error:
            raise PlatformFailure(Reason.STORAGE_FAILED, f"outputs could not be stored: {error}") from error
        return [stored[number] for number in range(len(files))]

    def _destination(self, job: ClaimedJob, path: str) -> RemoteSource | None:
        rule = next((rule for rule in job.outputs if glob_match(rule.match, path)), None)
        if rule is None or rule.to is None:
            return None
        try:
            return parse_destination(rule.to)
        except Invalid as error:
            raise PluginFailure(Reason.OUTPUT_REJECTED, f"output to '{rule.to}': {error.detail}") from None

    def _sent(self, job: ClaimedJob, going: Sequence[_Going], scratch: Path) -> list[_Going]:
        """All files under temporary names, each verified, and only then each to its own."""
        if not going:
            return []
        drafts = {(item.remote, item.draft.rpartition("/")[0]) for item in going}
        try:
            for remote, folder in drafts:
                self._forget_earlier(job, remote, folder)
            whole = in_parallel(lambda item: self._uploaded(item, scratch), going, self._remotes)
            in_parallel(lambda item: self._remotes.move(item.remote, item.draft, item.final), whole, self._remotes)
        finally:
            for remote, folder in drafts:
                self._tidy(remote, folder)
        return whole

    def _uploaded(self, item: _Going, scratch: Path) -> _Going:
        # A copy under a name of ours: the plugin's own never reaches rclone as a local path, and nobody writes to it any more.
        copy = scratch / str(item.number)
        copy_file(item.source, copy)
        size, ours = digests(copy)
        self._remotes.store(copy, item.remote, item.draft)
        found = self._remotes.stat(item.remote, item.draft)
        if found is None:
            message = f"remote '{item.remote}' does not show '{item.path}' after storing it"
            raise PlatformFailure(Reason.REMOTE_UNAVAILABLE, message)
        if set(found.hashes) - set(ours):
            _, ours = digests(copy, list(found.hashes))
        if fault := differs(found, size, ours):
            message = f"'{item.path}' was damaged on its way to '{item.remote}': {fault}"
            raise PlatformFailure(Reason.REMOTE_UNAVAILABLE, message)
        copy.unlink()
        return replace(item, size=size, sha256=ours["sha256"])

    def _forget_earlier(self, job: ClaimedJob, remote: str, folder: str) -> None:
        """Remove the drafts of attempts before this one. One that still runs somewhere, cut off, can no longer
        finish its move."""
        own = _draft_folder(job, job.attempt)
        for attempt in range(max(1, job.attempt - _EARLIER), job.attempt):
            self._remotes.purge(remote, folder.removesuffix(own) + _draft_folder(job, attempt))

    def _tidy(self, remote: str, folder: str) -> None:
        try:
            self._remotes.purge(remote, folder)
        except JobFailure as failure:
            # The files are in their places, or the failure that matters is already on its way.
            _log.warning("a temporary folder stays on a remote", remote=remote, folder=folder, error=str(failure))


def _going(job: ClaimedJob, number: int, path: str, source: Path, to: RemoteSource) -> _Going:
    base = f"{to.path}/" if to.path else ""
    final = base + path
    try:
        check_relative(final)
    except Invalid as error:
        message = f"output '{path!a}' cannot be stored on '{to.remote}': {error.detail}"
        raise PluginFailure(Reason.OUTPUT_REJECTED, message) from None
    return _Going(number, path, source, to.remote, f"{base}{_draft_folder(job, job.attempt)}/{number}", final)


def _draft_folder(job: ClaimedJob, attempt: int) -> str:
    return f".cloche-{job.id}-attempt-{attempt}"


def _checked(path: str) -> str:
    """The path, when it stays below its folder; sandboxd says so, and this does not rely on it."""
    parts = path.split("/")
    if path.startswith("/") or "\0" in path or any(part in {"", ".", ".."} for part in parts):
        raise PluginFailure(Reason.OUTPUT_REJECTED, f"output {path!a} has no usable name")
    return path
