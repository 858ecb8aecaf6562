"""Folders of a host: where sandboxes live, and the mounts of each."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cloche.domain.limits import Limits
from cloche.domain.states import Reason
from cloche.errors import EnvironmentProblem, PlatformFailure
from cloche.isolation.spec import MAX_TMPFS_OUTPUT, Folders, out_inodes, out_on_disk, out_options
from cloche.sandboxd import disk, syscalls

VAR = Path("/var/lib/cloche")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def home_digest(home: Path) -> str:
    """Names a home in labels and paths: 16 hex digits of its real path's SHA-256."""
    return hashlib.sha256(os.fsencode(home.resolve())).hexdigest()[:16]


@dataclass(frozen=True)
class Site:
    """One sandbox's folder, made and mounted. ``device`` is the device number of ``out/``."""

    root: Path
    folders: Folders
    device: int

    def set_output(self, limits: Limits) -> None:
        """Another quota for ``out/``.

        Raises:
            OSError: more than that is in it already.
        """
        if out_on_disk(limits):
            disk.set_quota(self.folders.out, limits.output)
        else:
            syscalls.resize_tmpfs(self.folders.out, f"size={limits.output}")

    @property
    def collected(self) -> Path:
        return self.root / "collected"


class Places:
    """Makes and removes sites. Everything the engine binds lies below one folder that only root can change."""

    def __init__(self, home: Path, uid: int, gid: int) -> None:
        self._home = home.resolve()
        self._uid = uid
        self._gid = gid
        self.owner = (uid, gid)  # who fills in/ folders
        self.root = self._choose_root()

    def _choose_root(self) -> Path:
        """``<home>/sandboxes`` when only root can rename it; otherwise a folder of ours elsewhere.

        Who may swap a folder on the way for a link could have the engine bind any folder of the host into a container.
        """
        if all(_only_root_changes(folder) for folder in (self._home, *self._home.parents)):
            return self._home / "sandboxes"
        return VAR / home_digest(self._home) / "sandboxes"

    def prepare(self) -> None:
        """Make the root folder.

        Raises:
            EnvironmentProblem: it is not a folder of root's.
        """
        try:
            self.root.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                self.root.mkdir(mode=0o700)
            fd = os.open(self.root, _FOLDER)
        except OSError as error:
            raise EnvironmentProblem(f"cannot use {self.root}: {error.strerror}") from None
        try:
            if os.fstat(fd).st_uid != 0:
                raise EnvironmentProblem(f"{self.root} does not belong to root; remove it and start again")
            os.fchown(fd, 0, self._gid)
            os.fchmod(fd, 0o700 if self._uid == 0 else 0o710)
        finally:
            os.close(fd)

    @property
    def runtimes(self) -> Path:
        """Where the runtime for plugins' own images is kept: beside the sandboxes, and as safe from others."""
        return self.root.parent / "runtime"

    def make(
        self, sandbox_id: str, bundle: str, wheels: str | None, limits: Limits, uid: int, runtime: Path | None = None
    ) -> Site:
        """A site with ``out/`` mounted and owned by the sandbox's ``uid``, and the plugin's files in place.

        ``runtime``: what a plugin with an image of its own gets beside its files.

        Raises:
            PlatformFailure: ``bundle_unavailable`` when the plugin's files are not here, ``engine_unavailable`` when the host has no room.
        """
        root = self.root / sandbox_id
        try:
            root.mkdir(mode=0o711)
            for name, mode in (("in", 0o755), ("out", 0o700), ("run", 0o755), ("plugin", 0o755), ("collected", 0o700)):
                (root / name).mkdir(mode=mode)
                os.chmod(root / name, mode)
            os.chown(root / "in", self._uid, self._gid)
            self.bind_frozen(("bundles", bundle), root / "plugin")
            if wheels is not None:
                (root / "wheels").mkdir(mode=0o755)
                self.bind_frozen(("wheels", wheels, "site"), root / "wheels")
            if runtime is not None:
                (root / "runtime").mkdir(mode=0o755)
                _bind_folder(runtime, root / "runtime")
            mount_out(root / "out", root / "out.img", limits, uid)
            folders = Folders(
                inputs=root / "in",
                out=root / "out",
                run=root / "run",
                plugin=root / "plugin",
                wheels=root / "wheels" if wheels is not None else None,
                runtime=root / "runtime" if runtime is not None else None,
            )
            return Site(root, folders, os.stat(root / "out").st_dev)
        except OSError as error:
            self.remove(sandbox_id)
            raise PlatformFailure(Reason.ENGINE_UNAVAILABLE, f"cannot lay out the sandbox: {error.strerror}") from None
        except BaseException:
            self.remove(sandbox_id)
            raise

    def remove(self, sandbox_id: str) -> None:
        """Unmount and delete a site; its loop device frees itself. Nothing happens when it is gone; links are not followed."""
        root = self.root / sandbox_id
        for point in syscalls.mounts_below(root):
            syscalls.unmount(point)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(root)

    def leftovers(self) -> Iterator[str]:
        """Names of the sites there are."""
        with os.scandir(self.root) as entries:
            yield from [entry.name for entry in entries]

    def bind_frozen(self, steps: tuple[str, ...], target: Path) -> None:
        """Bind ``<home>/<steps…>`` at the target, following no link on the way down from the home."""
        fd = os.open(self._home, _FOLDER)
        try:
            for step in steps:
                try:
                    inner = os.open(step, _FOLDER, dir_fd=fd)
                except OSError:
                    raise PlatformFailure(
                        Reason.BUNDLE_UNAVAILABLE, f"the plugin's frozen files ({'/'.join(steps)}) are not on this host"
                    ) from None
                os.close(fd)
                fd = inner
            syscalls.bind(fd, target)
        finally:
            os.close(fd)


def _bind_folder(source: Path, target: Path) -> None:
    fd = os.open(source, _FOLDER)
    try:
        syscalls.bind(fd, target)
    finally:
        os.close(fd)


def mount_out(target: Path, image: Path, limits: Limits, uid: int) -> None:
    """Mount an ``out/`` of its own; ``image`` is where its file system lies when it is too large for memory.

    Raises:
        PlatformFailure: ``engine_unavailable``: this host cannot have one so large.
        OSError: no room, or the kernel refused.
    """
    if not out_on_disk(limits):
        syscalls.mount_tmpfs(target, out_options(limits, uid))
        return
    try:
        disk.mount(image, target, limits.output, out_inodes(limits), uid)
    except disk.NoDisk as error:
        # Not made smaller in silence, and not in memory: the plugin was promised this room.
        raise PlatformFailure(
            Reason.ENGINE_UNAVAILABLE,
            f"outputs of more than {MAX_TMPFS_OUTPUT >> 20} MB cannot be had on this host: {error}; "
            f"install it, or ask for limits.output of at most {MAX_TMPFS_OUTPUT >> 20}MB",
        ) from None


def _only_root_changes(folder: Path) -> bool:
    """Whether none but root can rename what lies in the folder (a sticky one, such as /tmp, protects what root owns)."""
    facts = os.lstat(folder)
    shared = facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not facts.st_mode & stat.S_ISVTX
    return facts.st_uid == 0 and not shared
