"""Process 1 of the container: reaps orphans, and outlives the agent so that the host can still read the sandbox's cgroup.

The agent (and with it the plugin) runs as a child: it gets ordinary signal behaviour, and a crash of it does not end the container before
usage and out-of-memory counters have been read. The engine's own init is not used: not every engine ships one.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal

from cloche_guest.protocol import EXIT_LINE

_PR_SET_DUMPABLE = 4


def split(gated: bool = False) -> None:
    """Return in the agent's process; the calling process stays behind as process 1. Does nothing outside a pid namespace of our own.

    ``gated``: wait for one byte on standard input first. The host sends it when the sandbox's limits hold, where they cannot hold from the start.
    """
    if os.getpid() != 1:
        return
    if gated:
        os.read(0, 1)
    # Before there is an agent: the job runs as our own user, and nothing but this keeps it out of our memory, descriptors and OOM score.
    set_dumpable(False)
    # A signal of the agent's, which may run long before us, waits until it is ignored, which drops it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    agent = os.fork()
    if agent == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        set_dumpable(True)
        prefer_as_victim()
        return
    take_no_signal()
    # The kernel keeps, and counts, what is blocked, even if it is ignored.
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
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
    _until_closed(0)
    os._exit(code if code >= 0 else 128 - code)


def _until_closed(fd: int) -> None:
    """Throw away what comes until the host closes its end. The job shared this stream, and may have left it non-blocking."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while True:
        poll.poll()
        with contextlib.suppress(BlockingIOError):
            if not os.read(fd, 65_536):
                return


def take_no_signal() -> None:
    """The kernel drops what its own pid namespace sends to process 1, unless there is a handler: Python has one for SIGINT.

    gVisor's kernel drops only what is ignored, and lets a job's SIGKILL through; the host knows.
    """
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_IGN)


def set_dumpable(allowed: bool) -> None:
    """Whether processes of the same user may look into this one. A new program starts with True."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, int(allowed), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE)")


def prefer_as_victim() -> None:
    """When memory runs out the kernel shall pick the plugin, not process 1."""
    fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
    os.write(fd, b"500")
    os.close(fd)
