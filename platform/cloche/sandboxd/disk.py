"""Disk-backed outputs: an ext4 file system of the asked size, in a file of its own over a loop device.

No journal, no lazy writing of tables, the whole file allocated beforehand: a host whose disk is full refuses the sandbox instead of
losing what a job wrote. The quota is exact and can be changed while in use: what the job may not have is ext4's own reserve.
The loop device frees itself when the file system is unmounted, also when this process dies in between.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

from cloche.sandboxd import syscalls

MKFS = (Path("/usr/sbin/mkfs.ext4"), Path("/sbin/mkfs.ext4"), Path("/usr/bin/mkfs.ext4"))
CONTROL = Path("/dev/loop-control")
FEATURES = "none,extent,filetype,sparse_super,large_file,flex_bg,uninit_bg,extra_isize,dir_index"
_NO_MKFS = "there is no mkfs.ext4 (package e2fsprogs)"
_BLOCK = 4_096
OWN_BLOCKS = 64  # on top of the quota: folders and the lists of a file's blocks, so that one file may fill it
_INODE = 256  # bytes in the inode table
_SPARE = 8 << 20  # bytes for bitmaps, descriptors and superblocks of a file system of 2 GiB
WAITING_MARGIN = (
    8  # times the size of an output has to be free: a sandbox that waits for a job has allocated all of its own
)
_MKFS_SECONDS = 60
_TRIES = 20  # another process may take the free loop device first
# linux/loop.h
_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_CONFIGURE = 0x4C0A  # Linux 5.8 and newer
_LO_FLAGS_AUTOCLEAR = 4
_CONFIG_SIZE = 304  # struct loop_config: fd, block size, loop_info64, reserved
_FLAGS_OFFSET = 8 + 5 * 8 + 3 * 4


class NoDisk(Exception):
    """This host cannot make disk-backed outputs. The message says what it lacks."""


def problem() -> str | None:
    """None when this host has what disk-backed outputs need, else what it lacks."""
    if _mkfs() is None:
        return _NO_MKFS
    if not CONTROL.exists():
        return f"there are no loop devices ({CONTROL} is missing)"
    return None


def free(folder: Path) -> int:
    """Bytes that may still be allocated where the folder lies; 0 when that cannot be read."""
    try:
        facts = os.statvfs(folder)
    except OSError:
        return 0
    return facts.f_bavail * facts.f_frsize


def mount(image: Path, target: Path, size: int, inodes: int, uid: int) -> None:
    """Make ``image``, and mount it empty at ``target``: ``size`` bytes and at least ``inodes`` inodes for ``uid`` to use.

    Raises:
        NoDisk: the host lacks mkfs.ext4 or loop devices.
        OSError: no room, or the kernel refused.
    """
    command = _mkfs()
    if command is None:
        raise NoDisk(_NO_MKFS)
    if lacks := problem():
        raise NoDisk(lacks)
    fd = os.open(image, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        syscalls.allocate(fd, _whole(size, inodes))
        _format(command, image, inodes, uid)
        with _loop(fd) as device:
            syscalls.mount_ext4(device, target)
    finally:
        os.close(fd)
    (target / "lost+found").rmdir()
    os.chmod(target, 0o700)
    set_quota(target, size)


def set_quota(target: Path, size: int) -> None:
    """Let its owner use ``size`` bytes in all, at most what it was made for.

    Raises:
        OSError: the file system is smaller than that, more is in it already, or the kernel refuses.
    """
    facts = os.statvfs(target)
    blocks = -(-size // _BLOCK) + OWN_BLOCKS
    # Counted from the empty file system, so that what is in use already counts.
    reserve = facts.f_blocks - blocks
    if reserve < 0:
        raise OSError(errno.ENOSPC, "the output's file system is smaller than that")
    if facts.f_blocks - facts.f_bfree > blocks:
        raise OSError(errno.EBUSY, "more than that is in it already")
    number = os.stat(target).st_dev
    name = os.path.basename(os.readlink(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}"))
    Path(f"/sys/fs/ext4/{name}/reserved_clusters").write_text(str(reserve), "ascii")


def _whole(size: int, inodes: int) -> int:
    """Bytes of the file: the job's and the file system's own, a whole number of blocks."""
    tables = 2 * inodes * _INODE
    return -(-(size + tables + _SPARE) // _BLOCK) * _BLOCK


def _mkfs() -> Path | None:
    return next((path for path in MKFS if path.exists()), None)


def _format(command: Path, image: Path, inodes: int, uid: int) -> None:
    options = f"lazy_itable_init=1,nodiscard,root_owner={uid}:{uid}"
    arguments = [
        *(str(command), "-q", "-F", "-m", "0", "-b", str(_BLOCK), "-I", str(_INODE), "-N", str(inodes)),
        *("-O", FEATURES, "-E", options, str(image)),
    ]
    environment = {"MKE2FS_CONFIG": os.devnull}  # what the host's own file would add is not ours
    try:
        made = subprocess.run(
            arguments,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_MKFS_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise OSError(errno.ETIMEDOUT, "mkfs.ext4 took too long") from None
    if made.returncode != 0:
        said = made.stderr.decode("utf-8", "replace").strip().splitlines()
        raise OSError(errno.EIO, f"mkfs.ext4 failed: {said[-1] if said else f'exit code {made.returncode}'}")


@contextlib.contextmanager
def _loop(fd: int) -> Iterator[Path]:
    """A loop device over the open file; it goes when nobody uses it any more, so mount it within."""
    control = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        device, path = _configured(control, fd)
    finally:
        os.close(control)
    try:
        yield path
    finally:
        os.close(device)


def _configured(control: int, fd: int) -> tuple[int, Path]:
    config = bytearray(_CONFIG_SIZE)
    struct.pack_into("=I", config, 0, fd)
    struct.pack_into("=I", config, _FLAGS_OFFSET, _LO_FLAGS_AUTOCLEAR)
    for _ in range(_TRIES):
        path = Path(f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}")
        try:
            device = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except (FileNotFoundError, PermissionError) as error:
            raise NoDisk(f"{path} cannot be used ({error.strerror})") from None
        try:
            fcntl.ioctl(device, _LOOP_CONFIGURE, config)
        except OSError as error:
            os.close(device)
            if error.errno == errno.EBUSY:
                continue
            raise
        return device, path
    raise OSError(errno.EBUSY, "no free loop device")
