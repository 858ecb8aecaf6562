"""A slot's preloader: a process that has imported what the plugin names in ``[sandbox] preload``, and forks the plugin's process of each cell.

It runs other people's code, and so it is not the runner: it has no socket to sandboxd, cannot look into the runner or signal it (the first
process of their pid namespace), sees neither the slot's folders nor the kernel's settings, and its filter takes from it mounting, unsharing
and further filters. Four capabilities stay in reach of it, because who forks into a cell's namespaces has to enter them: SYS_ADMIN and
SYS_CHROOT (setns), SETUID and SETGID. They hold in the container's user namespace and are not effective during the import.

Per cell: the runner makes the first process as ever, and a maker, which mounts and sends the cell's namespaces here, each a descriptor. A child
is forked into them, and how it ended is told to the maker, which ends in the same way; the rest is as without a preloader.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from cloche_guest import cell, control, kernel, loader

SECONDS = 20.0  # for all imports together
WHEELS = Path("/cloche/wheels")
# Libraries that start a thread per CPU when they are imported do not, here and in the cells: a process that forks has one thread.
ENVIRONMENT = {f"{library}_NUM_THREADS": "1" for library in ("BLIS", "GOTO", "MKL", "NUMEXPR", "OMP", "OPENBLAS")}
_VICTIM = b"250"  # when memory runs out: before the runner, after a cell
_MOST_SAID = 300  # characters
_LAST_BREATH_MS = 1_000
_TMP = "size=1m,nr_inodes=64,mode=0700"
_SETGID, _SETUID, _SYS_CHROOT, _SYS_ADMIN = 6, 7, 18, 21
_CAPABILITIES = (_SETGID, _SETUID, _SYS_CHROOT, _SYS_ADMIN)
_ENTERED = (kernel.NEWNS, kernel.NEWIPC, kernel.NEWUTS)
_LIBRARYS = 0b11 << 31  # signals 32 and 33: the C library takes them for itself with a process' first thread
_EXIT = struct.Struct("i")


class Preloader:
    """The runner's side. ``stream`` takes orders; ``pidfd`` is ready when it has died."""

    def __init__(self, names: Sequence[str], prepared: loader.Prepared | None) -> None:
        self.stream, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = kernel.fork()
        if self.pid == 0:
            _live(names, prepared, theirs)
        theirs.close()
        self.pidfd = os.pidfd_open(self.pid)

    def outcome(self, host: socket.socket) -> str | None:
        """Wait for the imports; why there is no preloader, or None.

        Raises:
            EOFError: sandboxd let go of the slot.
        """
        poll = select.poll()
        for fd in (self.stream.fileno(), self.pidfd, host.fileno()):
            poll.register(fd, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(SECONDS * 1_000)}
        if host.fileno() in ready:
            raise EOFError
        if self.stream.fileno() in ready:
            with contextlib.suppress(EOFError, OSError, ValueError):
                message, unasked = control.receive(self.stream)
                for fd in unasked:
                    os.close(fd)
                problem = message.get("problem")
                self.stream.shutdown(socket.SHUT_RD)  # nothing more is heard, and no descriptor kept on its way here
                return None if problem is None else said(str(problem))
        if not ready or not self._dies():
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            return "it lost its connection to the runner" if ready else f"it takes longer than {SECONDS:g} s"
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return f"its process ended by itself ({f'exit code {code}' if code >= 0 else f'signal {-code}'})"

    def _dies(self) -> bool:
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(_LAST_BREATH_MS))

    def order(self, uid: int, channel: int, maker: socket.socket, told: int) -> None:
        """One more child: user ``uid``, with that channel, in the namespaces that come through ``maker``. It says ``cell.MADE`` to ``told``.

        Raises:
            OSError: it is dead.
        """
        control.send(self.stream, {"uid": uid}, [channel, maker.fileno(), told])


def said(text: str) -> str:
    """Somebody else's words, short and on one line."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:_MOST_SAID])


def _live(names: Sequence[str], prepared: loader.Prepared | None, stream: socket.socket) -> NoReturn:
    """In the child that the runner forked."""
    try:
        fd = stream.detach()
        cell.keep(fd)
        stream = socket.socket(fileno=fd)
        own_pids = _settle()
        control.send(stream, {"type": "imported", "problem": _import_all(names)})
        kernel.hold_capabilities(_CAPABILITIES, effective=True)
        gc.collect()
        gc.freeze()  # what a cell does not write to stays shared with this process
        _Children(stream, own_pids, prepared).serve()
    except (EOFError, OSError, ValueError) as error:
        os.write(2, f"cloche-guest: preloader: {error}\n".encode())
    finally:
        os._exit(1)


def _settle() -> int:
    """Namespaces and rights of its own, before anything is imported. Returns a descriptor of the slot's pid namespace."""
    own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    kernel.unshare(kernel.CELL_NAMESPACES)
    kernel.make_private()
    kernel.unmount(cell.SLOT)
    kernel.mount_tmpfs("/tmp", _TMP)  # noqa: S108 - its own
    kernel.mount_proc("/proc")
    kernel.set_dumpable(True)  # what is imported may read its own /proc/self; cells do not see this process
    fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
    os.write(fd, _VICTIM)
    os.close(fd)
    kernel.install_filter(makes_cells=False)
    kernel.hold_capabilities(_CAPABILITIES, effective=False)
    os.environ.update(ENVIRONMENT)
    return own_pids


def _import_all(names: Sequence[str]) -> str | None:
    """Import them as a cell would; what is wrong with that, or None."""
    before = _state()
    sys.path.append(str(WHEELS))
    for name in names:
        try:
            origin = getattr(importlib.import_module(name), "__file__", None)
        except BaseException as error:  # noqa: BLE001 - a package may raise anything, SystemExit included
            return said(f"cannot import '{name}': " + "".join(traceback.format_exception_only(error)).strip())
        if origin is None or not Path(origin).is_relative_to(WHEELS):
            return f"'{name}' is no module of the plugin's packages"
    with contextlib.suppress(ValueError):
        sys.path.remove(str(WHEELS))  # each cell adds it behind the plugin's own folder
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()  # or each cell would say it once more
    after = _state()
    changed = [what for what in before if before[what] != after[what]]
    return (
        f"it leaves {' and '.join(changed)} other than it found {'them' if changed[1:] else 'it'}" if changed else None
    )


def _state() -> dict[str, Any]:
    """What a cell is made in, and an import has no business with. Threads and processes are the host's to count."""
    status = dict(line.split(":\t", 1) for line in _lines("/proc/self/status") if ":\t" in line)
    return {
        "open descriptors": len(os.listdir("/proc/self/fd")),
        "signal handling": [int(status[name], 16) & ~_LIBRARYS for name in ("SigBlk", "SigIgn", "SigCgt")],
        "timers": [
            signal.getitimer(kind)[0] > 0 for kind in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
        ],
        "its user": [status[name] for name in ("Uid", "Gid", "Groups", "CapPrm")],
        "the umask": status["Umask"],
        "the working folder": os.readlink("/proc/self/cwd"),
        "limits": Path("/proc/self/limits").read_text("ascii"),
        "its priority": [os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0), os.sched_getaffinity(0)],
        "files in /tmp": os.listdir("/tmp"),  # noqa: S108 - its own
        "shared memory": _shared(),
    }


def _shared() -> list[str]:
    """Where memory lies that stays one with the cells' after a fork: what one job wrote there, the next would read."""
    mappings = [line.split(maxsplit=2) for line in _lines("/proc/self/maps")]
    return [place for place, rights, _ in mappings if "w" in rights and "s" in rights]


def _lines(path: str) -> list[str]:
    """The kernel ends no line but by a line feed, whatever is in the names that a package chose."""
    return Path(path).read_bytes().decode("utf-8", "replace").removesuffix("\n").split("\n")


class _Children:
    """Plugin processes of cells: forked, looked after, told of."""

    def __init__(self, stream: socket.socket, own_pids: int, prepared: loader.Prepared | None) -> None:
        self._stream = stream
        self._prepared = prepared
        self._own_pids = own_pids
        self._alive: dict[
            int, tuple[int, socket.socket]
        ] = {}  # by the child's pidfd: its number, and its cell's first process

    def serve(self) -> NoReturn:
        """
        Raises:
            EOFError: the runner is gone.
        """
        poll = select.poll()
        poll.register(self._stream, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd in self._alive:
                    poll.unregister(fd)
                    self._bury(fd)
                elif (made := self._make(*control.receive(self._stream))) is not None:
                    poll.register(made, select.POLLIN)

    def _make(self, order: dict[str, Any], fds: list[int]) -> int | None:
        """The new child's pidfd; None when its cell has died meanwhile."""
        channel, maker, told = fds[0], socket.socket(fileno=fds[1]), fds[2]
        try:
            _, namespaces = control.receive(maker)
        except (EOFError, OSError):
            os.close(channel)
            os.close(told)
            maker.close()
            return None
        kernel.enter(namespaces[0], kernel.NEWPID)
        pid = os.fork()  # not kernel.fork: what is imported may have hooks of its own
        if pid == 0:
            _become(int(order["uid"]), channel, told, namespaces[1:], self._prepared)
        kernel.enter(self._own_pids, kernel.NEWPID)
        for fd in (channel, told, *namespaces):
            os.close(fd)
        pidfd = os.pidfd_open(pid)
        self._alive[pidfd] = (pid, maker)
        return pidfd

    def _bury(self, pidfd: int) -> None:
        """Tell, let go of all that was the cell's, and only then reap: until then the cell's first process cannot be dead, and the host does not
        look at what is held here."""
        pid, maker = self._alive.pop(pidfd)
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        if ended is not None:
            code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
            with contextlib.suppress(OSError):  # the whole cell is dead
                maker.send(_EXIT.pack(code))
        maker.close()
        os.close(pidfd)
        os.waitpid(pid, 0)


def _become(uid: int, channel: int, told: int, namespaces: list[int], prepared: loader.Prepared | None) -> NoReturn:
    """In the child: the cell's namespaces, its user, then the agent."""
    try:
        cell.keep(channel, told, *namespaces)
        for fd, kind in zip(namespaces, _ENTERED, strict=True):
            kernel.enter(fd, kind)
            os.close(fd)
        _draw_anew()
        cell.become(uid)
        os.write(told, cell.MADE)
        os.close(told)
        cell.run(channel, prepared)
    except (OSError, ValueError) as error:
        os.write(2, f"cloche-guest: cell: {error}\n".encode())
    finally:
        os._exit(1)


def _draw_anew() -> None:
    """numpy's global generator would be in the same state in each cell; the standard library's has its own fork hook."""
    if (generator := sys.modules.get("numpy.random")) is not None:
        generator.seed()
