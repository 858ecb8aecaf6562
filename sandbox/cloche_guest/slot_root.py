"""The root that the cells of one slot share, read-only: the image, the plugin, and of the container nothing else.

The container's own root would not do: what is mounted for other slots would be in it, hidden but held on to; and the engine's /sys,
message queues and terminals are not for cells.
"""

from __future__ import annotations

import os
from pathlib import Path

from cloche_guest import kernel

_PLACE = "/tmp"  # noqa: S108 - of the container, where only our own processes are
_OWN = frozenset(("cloche", "dev", "job", "run", "sys", "tmp"))  # laid out here; everything else comes from the image
_FOLDERS = tuple(
    "cloche/plugin cloche/wheels cloche/slot dev/shm job/in job/out job/secrets run/cloche sys tmp".split()
)
_DEVICES = ("full", "null", "random", "tty", "urandom", "zero")
_LINKS = {"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"}


def enter(source: str, slot: str) -> None:
    """Lay it out and make it this mount namespace's root. The slot's folder ``source`` becomes ``slot``; what is mounted there later arrives."""
    kernel.mount_tmpfs(_PLACE, "size=256k,nr_inodes=256,mode=0755")
    root = Path(_PLACE)
    os.umask(0o022)
    for name in _FOLDERS:
        (root / name).mkdir(parents=True)
    for entry in sorted(Path("/").iterdir()):
        if entry.is_symlink():
            (root / entry.name).symlink_to(entry.readlink())
        elif entry.is_dir() and entry.name not in _OWN:
            (root / entry.name).mkdir()
            kernel.bind(str(entry), f"{_PLACE}/{entry.name}", deep=True)
    for name in ("cloche/plugin", "cloche/wheels"):
        kernel.bind(f"/{name}", f"{_PLACE}/{name}", deep=True)
    kernel.bind(source, f"{_PLACE}{slot}")
    for name in _DEVICES:
        (root / "dev" / name).touch()
        kernel.bind(f"/dev/{name}", f"{_PLACE}/dev/{name}")
    for name, target in _LINKS.items():
        (root / "dev" / name).symlink_to(target)
    kernel.make_read_only(_PLACE)
    kernel.change_root(_PLACE)
