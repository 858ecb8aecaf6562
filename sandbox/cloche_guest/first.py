"""Process 1 of the container: reaps orphans, and outlives the agent so that the host can still read the sandbox's cgroup.

The agent (and with it the plugin) runs as a child: it gets ordinary signal behaviour, and a crash of it does not end the container before
usage and out-of-memory counters have been read. The engine's own init is not used: not every engine ships one.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal

from cloche_guest.protocol import EXIT_LINE

_PR_SET_DUMPABLE = 4


def split() -> None:
    """Return in the agent's process; the calling process stays behind as process 1. Does nothing outside a pid namespace of our own."""
    if os.getpid() != 1:
        return
    # Before there is an agent: the job runs as our own user, and nothing but this keeps it out of our memory, descriptors and OOM score.
    _set_dumpable(False)
    agent = os.fork()
    if agent == 0:
        _set_dumpable(True)
        prefer_as_victim()
        return
    take_no_signal()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    _linger(_wait_for(agent))


def _wait_for(agent: int) -> int:
    """Reap everything until the agent is dead; its exit code, or minus its signal."""
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == agent:
            return os.waitstatus_to_exitcode(status)


def _linger(code: int) -> None:
    """Kill what the agent left, tell the host, and wait for it to close standard input or to kill us."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)  # everything in this pid namespace but ourselves
    os.write(2, f"\n{EXIT_LINE}{code}\n".encode())
    while os.read(0, 65_536):
        continue
    os._exit(code if code >= 0 else 128 - code)


def take_no_signal() -> None:
    """The kernel drops what its own pid namespace sends to process 1, unless there is a handler: Python has one for SIGINT."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)


def _set_dumpable(allowed: bool) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, int(allowed), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE)")


def prefer_as_victim() -> None:
    """When memory runs out the kernel shall pick the plugin, not process 1."""
    fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
    os.write(fd, b"500")
    os.close(fd)
