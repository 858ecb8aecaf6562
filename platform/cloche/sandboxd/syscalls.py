"""mount(2), umount2(2), setns(2) and fallocate(2) through ctypes: what Python does not offer, with errors as OSError."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

from cloche.sandboxd import kernel_text

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_NOSYMFOLLOW, MS_BIND = 1, 2, 4, 8, 32, 256, 4096
MS_SHARED = 1 << 20
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8
CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _call(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount_tmpfs(target: Path, options: str) -> None:
    """A tmpfs with every flag in the one call: flags of a later remount would not reach a running container."""
    flags = MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOSYMFOLLOW
    _call(_libc.mount(b"cloche", os.fsencode(target), b"tmpfs", ctypes.c_ulong(flags), options.encode()), "mount tmpfs")


def mount_ext4(device: Path, target: Path) -> None:
    """An ext4 file system for outputs, with the same flags; nothing is written to it behind the job's back."""
    flags = MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOSYMFOLLOW
    result = _libc.mount(
        os.fsencode(device), os.fsencode(target), b"ext4", ctypes.c_ulong(flags), b"noinit_itable,errors=remount-ro"
    )
    _call(result, "mount ext4")


def resize_tmpfs(target: Path, options: str) -> None:
    """Give a mounted tmpfs other options (``size=…``); its flags stay.

    Raises:
        OSError: more is in it already.
    """
    flags = MS_REMOUNT | MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOSYMFOLLOW
    _call(
        _libc.mount(b"cloche", os.fsencode(target), b"tmpfs", ctypes.c_ulong(flags), options.encode()), "resize tmpfs"
    )


def enter_network(pid: int) -> None:
    """Put the calling thread, and no other, into a process' network namespace."""
    fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _call(_libc.setns(fd, CLONE_NEWNET), "setns")
    finally:
        os.close(fd)


def allocate(fd: int, size: int) -> None:
    """Make the file ``size`` bytes long and reserve its room on the disk; where a file system cannot, it stays sparse.

    Raises:
        OSError: there is no room.
    """
    if _libc.fallocate(fd, 0, ctypes.c_long(0), ctypes.c_long(size)) != 0:
        number = ctypes.get_errno()
        if number not in (errno.EOPNOTSUPP, errno.ENOSYS):
            raise OSError(number, f"allocate: {os.strerror(number)}")
        os.ftruncate(fd, size)


def bind(source_fd: int, target: Path) -> None:
    """Show the folder that is open as ``source_fd`` at ``target``: whatever its path names by now.

    Read-only, without devices and set-uid. The engine's own bind of it is made read-only once more and keeps no other flag; inside,
    no-new-privileges and the cgroup's list of devices do what those flags do here.
    """
    source = f"/proc/self/fd/{source_fd}".encode()
    place = os.fsencode(target)
    _call(_libc.mount(source, place, None, ctypes.c_ulong(MS_BIND), None), "bind")
    try:
        flags = MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV
        _call(_libc.mount(b"none", place, None, ctypes.c_ulong(flags), None), "bind read-only")
    except OSError:
        unmount(target)
        raise


def share(folder: Path) -> None:
    """Make the folder a mount of its own whose later mounts arrive wherever it was bound with ``rslave``."""
    place = os.fsencode(folder)
    _call(_libc.mount(place, place, None, ctypes.c_ulong(MS_BIND), None), "bind")
    try:
        _call(_libc.mount(b"none", place, None, ctypes.c_ulong(MS_SHARED), None), "share")
    except OSError:
        unmount(folder)
        raise


def unmount(target: Path) -> bool:
    """Detach what is mounted there; False when nothing is."""
    if _libc.umount2(os.fsencode(target), MNT_DETACH | UMOUNT_NOFOLLOW) == 0:
        return True
    number = ctypes.get_errno()
    if number in (22, 2):  # EINVAL: no mount point; ENOENT: no such path
        return False
    raise OSError(number, f"umount: {os.strerror(number)}")


def mounts_below(folder: Path) -> list[Path]:
    """Mount points at or below the folder, the deepest first."""
    points = [Path(kernel_text.plain(line.split(" ")[4])) for line in kernel_text.lines("/proc/self/mountinfo")]
    found = [point for point in points if point.is_relative_to(folder)]
    return sorted(found, key=lambda point: len(point.parts), reverse=True)
