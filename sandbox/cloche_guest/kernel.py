"""System calls that Python does not offer, for the agent, the runner and the cells of level ``namespace``. Nothing happens at import."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import platform
import signal
import socket
import struct
import sys
import threading
from collections.abc import Iterable

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
# Exactly these values pass the seccomp profile (sandbox/image/seccomp_profile.py says what each is for).
SLOT_NAMESPACES = NEWNS | NEWIPC | NEWUTS | NEWNET
CELL_NAMESPACES = NEWNS | NEWIPC | NEWUTS

_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
_MNT_DETACH = 2
_PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 4, 22, 23, 24, 38
_SECCOMP_MODE_FILTER = 2
_CAPABILITY_VERSION_3 = 0x20080522
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1

_libc = ctypes.CDLL(None, use_errno=True)
_plain = ctypes.PyDLL(None)  # keeps the interpreter's lock during a call
# Looked up once, in the process that forks cells: a cell that did it would write to many pages that it shares until then.
_capset, _capget, _prctl, _fork = _libc.capset, _libc.capget, _libc.prctl, _plain.fork
_clone = _plain.clone
_clone.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
_PAUSE = ctypes.cast(_libc.pause, ctypes.c_void_p)
_CLONE_VM, _CLONE_FS = 0x100, 0x200
_STACK = 16 << 10  # bytes; what waits on it needs a few hundred
_HEADER = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), 8)
_NONE, _ANSWER = bytes(24), ctypes.create_string_buffer(24)


def _call(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def fork() -> int:
    """As ``os.fork``, for a process that has one thread and no fork hooks of its own.

    The interpreter's own work in a new child writes to some 200 pages that it shares with the parent until then, which costs a
    millisecond; all of it is about other threads, but one thing: see :func:`forget_parent`.
    """
    pid: int = _fork()
    if pid < 0:
        raise OSError("fork")
    return pid


class Sleeper:
    """A process that does nothing at all, as first of the pid namespace that the next child is born into. What else dies in there is
    reaped by the kernel.

    It shares this process's memory instead of having a copy, which is most of what a process costs: it sleeps in ``pause`` on a stack of
    its own and never comes back from there. So it is as closed to others as this process is. It keeps the descriptors that are open now.
    """

    def __init__(self) -> None:
        # Private: the plugin's process is forked with this in its memory, and what is shared stays so, this time and for the cells after it.
        self._stack = mmap.mmap(-1, _STACK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        top = ctypes.addressof(ctypes.c_char.from_buffer(self._stack)) + _STACK
        former = signal.signal(
            signal.SIGCHLD, signal.SIG_IGN
        )  # which it keeps, and so never has a dead child to wait for
        try:
            self.pid: int = _clone(_PAUSE, top, _CLONE_VM | _CLONE_FS | signal.SIGCHLD, None)
        finally:
            signal.signal(signal.SIGCHLD, former)
        if self.pid < 0:
            raise OSError("clone")


def forget_parent() -> None:
    """In a child of :func:`fork` that runs other people's code: random numbers of its own, and its own number for its thread."""
    if (random := sys.modules.get("random")) is not None:
        random.seed()
    threading.main_thread()._set_native_id()  # type: ignore[attr-defined]


def unshare(flags: int) -> None:
    _call(_libc.unshare(ctypes.c_int(flags)), "unshare")


def enter(fd: int, kind: int) -> None:
    """Into a namespace, given by a descriptor. For NEWPID: children are made there from now on; the caller stays where it is."""
    _call(_libc.setns(fd, kind), "setns")


def make_private() -> None:
    """Nothing that is mounted elsewhere later arrives in this mount namespace."""
    _mount(None, "/", None, _PRIVATE | _REC, None)


def mount_tmpfs(target: str, options: str) -> None:
    _mount("tmpfs", target, "tmpfs", _NOSUID | _NODEV | _NOEXEC, options)


def mount_proc(target: str) -> None:
    """A /proc of the caller's own pid namespace: processes of one's own user, and nothing of the machine."""
    _mount("proc", target, "proc", _NOSUID | _NODEV | _NOEXEC, "subset=pid,hidepid=2")


def bind(source: str, target: str, deep: bool = False) -> None:
    """One mount more, with the flags that the source has; ``deep``: with all that is mounted below it."""
    _mount(source, target, None, _BIND | (_REC if deep else 0), None)


def make_read_only(target: str) -> None:
    """A mount of :func:`mount_tmpfs`, from now on."""
    _mount(None, target, None, _REMOUNT | _BIND | _RDONLY | _NOSUID | _NODEV | _NOEXEC, None)


def change_root(target: str) -> None:
    """Make a mount the root of this mount namespace, and let go of the former with all that is mounted in it."""
    os.chdir(target)
    _call(_libc.syscall(_number("pivot_root"), b".", b"."), "pivot_root")
    unmount(".")
    os.chdir("/")


def unmount(target: str) -> None:
    _call(_libc.umount2(target.encode(), _MNT_DETACH), f"umount {target}")


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None) -> None:
    parts = [None if part is None else part.encode() for part in (source, target, kind, options)]
    result = _libc.mount(parts[0], parts[1], parts[2], ctypes.c_ulong(flags), parts[3])
    _call(result, f"mount {target}")


def loopback_up() -> None:
    """Set ``lo`` of this network namespace up."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack_from("H", fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request), 16)[0]
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))


def empty_bounding_set() -> None:
    """No program that is executed from now on can gain a capability; those that the caller holds stay its own until it drops them."""
    number = 0
    while _prctl(_PR_CAPBSET_READ, number, 0, 0, 0) >= 0:
        _call(_prctl(_PR_CAPBSET_DROP, number, 0, 0, 0), "prctl(PR_CAPBSET_DROP)")
        number += 1


def drop_capabilities() -> None:
    """Every capability of every set of this thread."""
    _call(_capset(_HEADER, _NONE), "capset")


def hold_capabilities(numbers: Iterable[int], *, effective: bool) -> None:
    """Of what this thread has, these alone stay permitted; in force at once, or not until it is asked again. The first 32 only."""
    bits = sum(1 << number for number in numbers)
    _call(_capset(_HEADER, struct.pack("=6I", bits if effective else 0, bits, 0, 0, 0, 0)), "capset")


def has_capability() -> bool:
    """Whether any capability is left in the permitted or effective set."""
    _call(_capget(_HEADER, _ANSWER), "capget")
    # Twice (effective, permitted, inheritable), four bytes each.
    return any(_ANSWER.raw[start : start + 8] != bytes(8) for start in (0, 12))


def set_dumpable(allowed: bool) -> None:
    """Whether processes of the same user may open this one's memory and descriptors."""
    _call(_prctl(_PR_SET_DUMPABLE, int(allowed), 0, 0, 0), "prctl(PR_SET_DUMPABLE)")


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


# name → numbers on x86_64 and aarch64 (linux/unistd.h)
_NUMBERS = {
    "x86_64": (
        0xC000003E,
        {
            "unshare": 272,
            "pivot_root": 155,
            "prctl": 157,
            "setsockopt": 54,
            "getsockopt": 55,
            "mount": 165,
            "umount2": 166,
        },
    ),
    "aarch64": (
        0xC00000B7,
        {
            "unshare": 97,
            "pivot_root": 41,
            "prctl": 167,
            "setsockopt": 208,
            "getsockopt": 209,
            "mount": 40,
            "umount2": 39,
        },
    ),
}
_SOL_SOCKET = 1
_PEER_PIDFD = 77  # SO_PEERPIDFD
_ATTACH_FILTERS = (26, 50, 51, 52)  # SO_ATTACH_FILTER, SO_ATTACH_BPF, SO_ATTACH_REUSEPORT_CBPF and _EBPF
_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EPERM


def filter_program(machine: str, *, further: bool = False, makes_cells: bool = True) -> bytes:
    """What a runner refuses to itself and to every cell it makes: what the agent, and its own start, needed and no cell does.

    ``further``: one more filter may follow, which is what a runner needs that has a preloader. ``makes_cells`` False: nothing is mounted or
    unshared any more, which is the preloader's.

    Another root. A user namespace, which would bring capabilities. A network namespace, another filter: the kernel frees those through
    one work queue, so that a job that made thousands could hurt the whole host. A descriptor of the process that made the channel, which
    is sandboxd: the kernel lets a cell do nothing with it, and it is nobody's business.

    Raises:
        OSError: an architecture whose numbers are not known here.
    """
    arch, numbers = _numbers(machine)
    number, first, second, third = 0, 16, 24, 32  # offsets in struct seccomp_data: low halves of the arguments
    steps = [_load(4), _unless_equal(arch, 1), _answer(_KILL)]
    steps += [
        _load(number),
        *_when(numbers["unshare"], [_load(first), _jump_set(NEWUSER | NEWNET, 0, 1), _answer(_REFUSE)]),
    ]
    steps += [_load(number), *_when(numbers["pivot_root"], [_answer(_REFUSE)])]
    if not further:
        refusal = [_load(first), _jump_equal(_PR_SET_SECCOMP, 0, 1), _answer(_REFUSE)]
        steps += [_load(number), *_when(numbers["prctl"], refusal)]
    if not makes_cells:
        for name in ("mount", "umount2", "unshare"):
            steps += [_load(number), *_when(numbers[name], [_answer(_REFUSE)])]
    for name, options in (("setsockopt", _ATTACH_FILTERS), ("getsockopt", (_PEER_PIDFD,))):
        refused = [step for option in options for step in (_jump_equal(option, 0, 1), _answer(_REFUSE))]
        level = [_load(second), _jump_equal(_SOL_SOCKET, 0, len(refused) + 1), _load(third), *refused]
        steps += [_load(number), *_when(numbers[name], level)]
    return b"".join([*steps, _answer(_ALLOW)])


def install_filter(*, further: bool = False, makes_cells: bool = True) -> None:
    """Add :func:`filter_program` to this process; it cannot be taken off again, and children inherit it."""
    _call(_prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")
    code = filter_program(platform.machine(), further=further, makes_cells=makes_cells)
    program = _Program(len(code) // 8, code)
    _call(_prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0), "prctl(PR_SET_SECCOMP)")


def _numbers(machine: str) -> tuple[int, dict[str, int]]:
    """The architecture's number for filters, and the calls' numbers by name."""
    if machine not in _NUMBERS:
        raise OSError(errno.ENOSYS, f"system call numbers of {machine} are not known")
    return _NUMBERS[machine]


def _number(name: str) -> int:
    return _numbers(platform.machine())[1][name]


def _when(number: int, steps: list[bytes]) -> list[bytes]:
    """The steps for one call; the accumulator holds the call's number before and anything after."""
    return [_jump_equal(number, 0, len(steps)), *steps]


def _load(offset: int) -> bytes:
    return struct.pack("=HBBI", 0x20, 0, 0, offset)


def _jump_equal(value: int, yes: int, no: int) -> bytes:
    return struct.pack("=HBBI", 0x15, yes, no, value)


def _unless_equal(value: int, skip: int) -> bytes:
    return _jump_equal(value, skip, 0)


def _jump_set(bits: int, yes: int, no: int) -> bytes:
    return struct.pack("=HBBI", 0x45, yes, no, bits)


def _answer(action: int) -> bytes:
    return struct.pack("=HBBI", 0x06, 0, 0, action)
