"""System calls that change the kernel, the machine or other processes. The filter refuses them whatever their arguments."""

from __future__ import annotations

import ctypes
import mmap
import os
import stat
from pathlib import Path
from typing import Any

from cloche_guest import Job

from .base import X86, here, syscall, tried, wall

# name: (x86_64, aarch64)
GROUPS: dict[str, dict[str, tuple[int, int]]] = {
    "bpf": {"bpf": (321, 280)},
    "perf": {"perf_event_open": (298, 241)},
    "userfaultfd": {"userfaultfd": (323, 282)},
    "io_uring": {"io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427)},
    "keyring": {"add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219)},
    "modules": {"init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106)},
    "kexec": {"kexec_load": (246, 104), "kexec_file_load": (320, 294)},
    "reboot": {"reboot": (169, 142)},
    "clocks": {"settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266)},
    "handles": {"open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264)},
    "trace": {"ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "pidfd_getfd": (438, 438),
              "kcmp": (312, 272), "process_madvise": (440, 440)},
    "mount": {"mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51)},
    "new_mount": {"open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
                  "fspick": (433, 433), "mount_setattr": (442, 442)},
    "administration": {"swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89), "quotactl": (179, 60), "syslog": (103, 116),
                       "vhangup": (153, 58)},
    "watching": {"fanotify_init": (300, 262), "fanotify_mark": (301, 263), "lookup_dcookie": (212, 18)},
    "rare": {"vmsplice": (278, 75), "splice": (275, 76), "tee": (276, 77), "memfd_secret": (447, 447), "mbind": (237, 235),
             "move_pages": (279, 239), "migrate_pages": (256, 238), "set_mempolicy": (238, 237), "landlock_create_ruleset": (444, 444),
             "seccomp": (317, 277), "remap_file_pages": (216, 234)},
}  # fmt: skip
NAMESPACES = {
    "mnt": 0x20000,
    "cgroup": 0x2000000,
    "uts": 0x4000000,
    "ipc": 0x8000000,
    "user": 0x10000000,
    "pid": 0x20000000,
    "net": 0x40000000,
}


def _group(name: str) -> None:
    def probe(_: Job) -> Any:
        return {call: tried(syscall, here(*numbers), 0, 0, 0, 0, 0) for call, numbers in GROUPS[name].items()}

    probe.__name__ = name
    wall(probe)


for _name in GROUPS:
    _group(_name)


@wall
def unshare(_: Job) -> Any:
    both = NAMESPACES | {"user+mnt": 0x10020000}
    return {name: tried(syscall, here(272, 97), flag) for name, flag in both.items()}


@wall
def clone(_: Job) -> Any:
    return {name: tried(_clone, flag) for name, flag in (NAMESPACES | {"user+mnt": 0x10020000}).items()}


def _clone(flag: int) -> None:
    if syscall(here(56, 220), flag | 17, 0, 0, 0, 0) == 0:
        os._exit(0)


@wall
def clone3(_: Job) -> Any:
    return tried(syscall, 435, 0, 0)


@wall
def setns(_: Job) -> Any:
    return {
        f"{pid} {name}": tried(_setns, f"/proc/{pid}/ns/{name}")
        for pid in ("1", "self")
        for name in os.listdir("/proc/self/ns")
    }


def _setns(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        syscall(here(308, 268), fd, 0)
    finally:
        os.close(fd)


@wall
def mknod(job: Job) -> Any:
    places = [Path("/tmp/node"), Path("/dev/shm/node"), job.out / "node"]
    kinds = {
        "block": (stat.S_IFBLK, os.makedev(8, 0)),
        "memory": (stat.S_IFCHR, os.makedev(1, 1)),
        "kmsg": (stat.S_IFCHR, os.makedev(1, 11)),
    }
    return {
        f"{path.parent} {name}": tried(_node, path, kind | 0o666, number)
        for path in places
        for name, (kind, number) in kinds.items()
    }


def _node(path: Path, mode: int, number: int) -> None:
    """Make a device and open it: a kernel may let one make a node that no driver stands behind."""
    os.mknod(path, mode, number)
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    finally:
        path.unlink()


@wall
def personality(_: Job) -> Any:
    return {
        "no randomisation": tried(syscall, here(135, 92), 0x40000),
        "read implies exec": tried(syscall, here(135, 92), 0x400000),
    }


@wall
def table_32bit(_: Job) -> Any:
    """``int 0x80`` reaches the 32-bit call table, for which a filter of 64-bit numbers alone would say nothing."""
    if not X86:
        return {"not_applicable": "only x86_64 has this gate"}
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b"\x53\xb8\x14\x00\x00\x00\xcd\x80\x5b\xc3")  # push rbx; mov eax, 20 (getpid); int 0x80; pop rbx; ret
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    return {"answer": ctypes.CFUNCTYPE(ctypes.c_int)(address)()}


@wall
def table_x32(_: Job) -> Any:
    if not X86:
        return {"not_applicable": "only x86_64 has this call table"}
    return {"answer": tried(syscall, 0x40000000 | 39)}


@wall
def terminal(_: Job) -> Any:
    """Typing into somebody's terminal: there is none to type into."""
    return {
        path: tried(lambda p=path: os.close(os.open(p, os.O_RDWR)))
        for path in ("/dev/tty", "/dev/console", "/dev/tty0", "/dev/pts/0")
    }
