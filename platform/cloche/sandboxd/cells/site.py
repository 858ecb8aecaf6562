"""Folders and mounts of a container of level ``namespace``, and of each cell in it."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from cloche.domain.limits import Limits
from cloche.domain.states import Reason
from cloche.errors import PlatformFailure
from cloche.isolation.cell_spec import CellFolders
from cloche.isolation.spec import Folders
from cloche.sandboxd import syscalls
from cloche.sandboxd.places import Places, Site, mount_out

_TRIES = 5
_IMAGE = "out.img"


@dataclass(frozen=True)
class CellSite(Site):
    """One cell's. ``root`` is no part of what the container sees; ``shared`` is."""

    shared: Path

    @property
    def collected(self) -> Path:
        return self.root / "collected"

    def remove(self) -> None:
        """Unmount and empty. Only after the cell's death; nothing happens when it is gone.

        The empty folders wait under another name for the slot's next cell: to make and remove folders is slow on a disk.
        """
        syscalls.unmount(self.folders.out)
        try:
            for folder in (self.folders.inputs, self.collected):
                _empty(folder)
            (self.root / _IMAGE).unlink(missing_ok=True)
            for folder in (self.shared, self.root):
                os.rename(folder, _spare(folder))
        except OSError:
            for folder in (self.shared, self.root):
                shutil.rmtree(folder, ignore_errors=True)


class ContainerSite:
    """One container's folder. ``make`` once; ``remove`` last, also when ``make`` failed."""

    def __init__(self, places: Places, container_id: str, wheels: str | None) -> None:
        self._places = places
        self._id = container_id
        self.root = places.root / container_id
        self.folders = CellFolders(
            slots=self.root / "slots",
            run=self.root / "run",
            plugin=self.root / "plugin",
            wheels=self.root / "wheels" if wheels is not None else None,
        )

    def make(self, bundle: str, wheels: str | None, slots: int) -> None:
        """
        Raises:
            PlatformFailure: ``bundle_unavailable`` or ``engine_unavailable``.
        """
        try:
            self._make(bundle, wheels, slots)
        except OSError as error:
            message = f"cannot lay out the container: {error.strerror or error}"
            raise PlatformFailure(Reason.ENGINE_UNAVAILABLE, message) from None

    def _make(self, bundle: str, wheels: str | None, slots: int) -> None:
        _folder(self.root, 0o711)
        _folder(self.root / "cells", 0o711)
        for path in (self.folders.run, self.folders.plugin):
            _folder(path, 0o755)
        self._places.bind_frozen(("bundles", bundle), self.folders.plugin)
        if wheels is not None and self.folders.wheels is not None:
            _folder(self.folders.wheels, 0o755)
            self._places.bind_frozen(("wheels", wheels, "site"), self.folders.wheels)
        _folder(self.folders.slots, 0o711)
        syscalls.share(self.folders.slots)
        for slot in range(slots):
            _folder(self.folders.slots / str(slot), 0o711)
            _folder(self.root / "cells" / str(slot), 0o711)

    def cell(self, slot: int, cell: int, limits: Limits, uid: int) -> CellSite:
        """Folders for one cell, under a name that was never used before, and empty.

        Raises:
            PlatformFailure, OSError: this host has no room.
        """
        shared = self.folders.slots / str(slot) / str(cell)
        root = self.root / "cells" / str(slot) / str(cell)
        folders = Folders(
            inputs=shared / "in",
            out=shared / "out",
            run=self.folders.run,
            plugin=self.folders.plugin,
            wheels=self.folders.wheels,
        )
        site = CellSite(root=root, folders=folders, device=0, shared=shared)
        try:
            if not _taken_up(root):
                _folder(root, 0o711)
                _folder(root / "collected", 0o700)
            if not _taken_up(shared):
                _folder(shared, 0o711)
                _folder(folders.inputs, 0o755)
                os.chown(folders.inputs, *self._places.owner)
                _folder(folders.out, 0o700)
            mount_out(folders.out, root / _IMAGE, limits, uid)
            return CellSite(root=root, folders=folders, device=os.stat(folders.out).st_dev, shared=shared)
        except BaseException:
            site.remove()
            raise

    def remove(self) -> None:
        """Unmount and delete everything. Only when the container is dead; nothing happens when it is gone.

        Raises:
            OSError: something of it is still there.
        """
        for _ in range(_TRIES):  # a cell's own folders may be going at the same time
            self._places.remove(self._id)
            if not self.root.exists():
                return
        raise OSError(errno.EBUSY, "the container's folder comes back again and again", str(self.root))


def _folder(path: Path, mode: int) -> None:
    path.mkdir(mode=mode)
    os.chmod(path, mode)  # whatever the umask


def _spare(folder: Path) -> Path:
    """Where a slot's folder waits, empty, for its next cell. There is one cell at a time, and so one of these."""
    return folder.parent / "spare"


def _taken_up(folder: Path) -> bool:
    try:
        os.rename(_spare(folder), folder)
    except FileNotFoundError:
        return False
    return True


def _empty(folder: Path) -> None:
    """Remove what is in it, following nothing."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)
