"""One job's dealings with remotes: look, list, fetch, store. Every fault becomes a failure of the job, with whose
fault it is."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cloche.domain.states import Reason
from cloche.errors import EnvironmentProblem, JobFailure, NotFound, PlatformFailure, PluginFailure
from cloche.staging.rclone import TRANSFER_S, Fault, RcloneDaemon, RemoteFault, Stopped
from cloche.staging.remotes import RemoteConfig, to_fs

Lookup = Callable[[str, str], RemoteConfig]
T = TypeVar("T")
R = TypeVar("R")

PARALLEL = 4  # transfers of one job at once
_CHUNK = 1 << 20
_SLACK = 1 << 20
_TRIES = 3  # rclone's low-level retries: a cut transfer starts again, and its bytes count again
_HASHES = {"sha256": hashlib.sha256, "sha1": hashlib.sha1, "md5": hashlib.md5}
_LISTING = {"filesOnly": True, "noModTime": True, "noMimeType": True, "showHash": True}


def never() -> bool:
    """A ``stop`` that does not."""
    return False


@dataclass(frozen=True)
class RemoteFile:
    """A file on a remote: its name in its folder, bytes (-1: the remote does not say), digests by algorithm where
    the remote has them."""

    name: str
    size: int
    hashes: Mapping[str, str]


class RemoteFiles:
    """Calls for one job. ``reason`` is what a fault that is not ours is called."""

    def __init__(
        self,
        rclone: RcloneDaemon,
        lookup: Lookup,
        tenant_id: str,
        stop: Callable[[], bool],
        reason: Reason = Reason.INPUT_UNAVAILABLE,
    ) -> None:
        self._rclone = rclone
        self._lookup = lookup
        self._tenant_id = tenant_id
        self._asked = stop
        self._cut = threading.Event()
        self._reason = reason
        self._found: dict[str, dict[str, str]] = {}

    def charging(self, reason: Reason) -> RemoteFiles:
        """The same, with another name for a fault that is not ours."""
        return RemoteFiles(self._rclone, self._lookup, self._tenant_id, self._asked, reason)

    def cut_off(self) -> None:
        """End the calls under way and refuse new ones, but for :meth:`purge`."""
        self._cut.set()

    def stat(self, remote: str, path: str) -> RemoteFile | None:
        """The file at ``path``; None when there is none."""
        with self._failing(remote, path):
            item = self._call("operations/stat", fs=self._fs(remote), remote=path, opt=_LISTING)["item"]
        return _remote_file(item) if item and not item.get("IsDir") else None

    def list(self, remote: str, folder: str) -> Sequence[RemoteFile]:
        """The files directly in ``folder``, by name; none when there is no such folder."""
        with self._failing(remote, folder):
            try:
                items = self._call("operations/list", fs=self._fs(remote), remote=folder, opt=_LISTING)["list"]
            except RemoteFault as fault:
                if fault.fault is not Fault.MISSING:
                    raise
                items = []
        return sorted((_remote_file(item) for item in items), key=lambda file: file.name)

    def fetch(self, remote: str, path: str, target: Path, size: int) -> None:
        """Copy a remote's file to ``target``, a new name in a folder of ours. A remote that sends much more than
        ``size`` bytes is cut off."""
        with self._failing(remote, path):
            limit = max(size, 0) * _TRIES + _SLACK
            config = {"IgnoreTimes": True, "MaxTransfer": limit, "CutoffMode": "HARD"}
            self._copy("operations/copyfile", self._fs(remote), path, _local(target.parent), target.name, config)

    def store(self, source: Path, remote: str, path: str) -> None:
        """Copy a file of ours to a remote."""
        with self._failing(remote, path):
            self._copy(
                "operations/copyfile", _local(source.parent), source.name, self._fs(remote), path, {"IgnoreTimes": True}
            )

    def move(self, remote: str, source: str, target: str) -> None:
        """Give a remote's file its name, in place of any that has it."""
        with self._failing(remote, target):
            fs = self._fs(remote)
            self._copy("operations/movefile", fs, source, fs, target, {"IgnoreTimes": True})

    def purge(self, remote: str, folder: str) -> None:
        """Remove a folder of ours on a remote, if it is there."""
        with self._failing(remote, folder):
            try:
                # Not stopped by `stop`: tidying is what follows it.
                self._rclone.call("operations/purge", fs=self._fs(remote), remote=folder)
            except RemoteFault as fault:
                if fault.fault is not Fault.MISSING:
                    raise

    def _copy(self, method: str, src: Any, src_path: str, dst: Any, dst_path: str, config: Mapping[str, Any]) -> None:
        group = secrets.token_hex(8)  # statistics of its own, which MaxTransfer counts by
        places = {"srcFs": src, "srcRemote": src_path, "dstFs": dst, "dstRemote": dst_path}
        try:
            self._call(method, timeout_s=TRANSFER_S, _group=group, _config=dict(config), **places)
        finally:
            with contextlib.suppress(RemoteFault, PlatformFailure):  # statistics only; a dead daemon has none
                self._rclone.call("core/stats-delete", group=group)

    def _stop(self) -> bool:
        return self._cut.is_set() or self._asked()

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        if self._stop():
            raise Stopped("stopped between two files")
        return self._rclone.call(method, stop=self._stop, **params)

    def _fs(self, remote: str) -> dict[str, str]:
        if remote not in self._found:
            config = self._lookup(self._tenant_id, remote)
            self._rclone.start()  # the proxy is known from here on
            self._found[remote] = to_fs(config, self._rclone.obscure, proxy=self._rclone.proxy)
        return self._found[remote]

    @contextlib.contextmanager
    def _failing(self, remote: str, path: str) -> Iterator[None]:
        try:
            yield
        except EnvironmentProblem as problem:
            raise PlatformFailure(Reason.PLATFORM_FAILED, str(problem)) from problem
        except NotFound:
            raise PluginFailure(self._reason, f"there is no remote '{remote}' any more", {"remote": remote}) from None
        except RemoteFault as fault:
            raise self._failure(fault, remote, path) from None

    def _failure(self, fault: RemoteFault, remote: str, path: str) -> JobFailure:
        details: dict[str, object] = {"remote": remote, "path": path, "said": fault.message}
        if fault.fault is Fault.MISSING:
            return PluginFailure(self._reason, f"remote '{remote}' has no '{path}'", details)
        if fault.fault is Fault.REFUSED:
            # Trying again for as long as a platform failure is tried would change nothing; a replay after the repair does.
            return PluginFailure(self._reason, f"remote '{remote}' refused '{path}': {fault.message}", details)
        return PlatformFailure(
            Reason.REMOTE_UNAVAILABLE, f"remote '{remote}' failed with '{path}': {fault.message}", details
        )


def in_parallel(function: Callable[[T], R], items: Sequence[T], remotes: RemoteFiles) -> list[R]:
    """``function`` of every item, in order. At the first failure, which is raised, the other transfers of ``remotes`` are cut off."""
    if len(items) <= 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(PARALLEL, len(items)), thread_name_prefix="transfer") as pool:
        futures = [pool.submit(function, item) for item in items]
        done, pending = wait(futures, return_when=FIRST_EXCEPTION)
        failures = [error for future in done if (error := future.exception()) is not None]
        if failures:
            remotes.cut_off()
            for future in pending:
                future.cancel()
            raise next((error for error in failures if not isinstance(error, Stopped)), failures[0])
    return [future.result() for future in futures]


def digests(path: Path, also: Sequence[str] = ()) -> tuple[int, dict[str, str]]:
    """Bytes and hex digests of a file, read once: SHA-256 and those of ``also`` that we know."""
    hashers = {name: _HASHES[name](usedforsecurity=False) for name in {"sha256", *also} if name in _HASHES}
    size = 0
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        while chunk := file.read(_CHUNK):
            size += len(chunk)
            for hasher in hashers.values():
                hasher.update(chunk)
    return size, {name: hasher.hexdigest() for name, hasher in hashers.items()}


def differs(found: RemoteFile, size: int, ours: Mapping[str, str]) -> str | None:
    """One sentence when a remote's file is not the one of ours with this size and these digests."""
    if found.size >= 0 and found.size != size:
        return f"it has {found.size} bytes there and {size} here"
    for name, digest in found.hashes.items():
        if digest and name in ours and digest.lower() != ours[name]:
            return f"its {name} is {digest.lower()} there and {ours[name]} here"
    return None


def _local(folder: Path) -> dict[str, str]:
    return {"type": "local", "_root": str(folder)}


def _remote_file(item: Mapping[str, Any]) -> RemoteFile:
    return RemoteFile(
        str(item["Name"]), int(item["Size"]), {str(k): str(v) for k, v in (item.get("Hashes") or {}).items()}
    )
