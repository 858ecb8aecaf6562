"""Other processes: seeing, signalling and reading them; and not dying when told to."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cloche_guest import Job

from .base import act, begun, say, tried, wait, wait_for, wall


@wall
def processes_seen(_: Job) -> Any:
    """Process 1, the agent and this probe are all there are; and all are the same user."""
    pids = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
    return {
        "number": len(pids),
        "first": pids[0],
        "uids": sorted({os.stat(f"/proc/{pid}").st_uid for pid in pids} - {os.getuid()}),
    }


@wall
def host_process(job: Job) -> Any:
    """The very process on the host that made this sandbox, by its number there."""
    pid = job.payload["host"]["pid"]
    return {
        "kill": tried(os.kill, pid, 0),
        "memory": tried(lambda: os.close(os.open(f"/proc/{pid}/mem", os.O_RDONLY))),
        "environ": tried(lambda: os.close(os.open(f"/proc/{pid}/environ", os.O_RDONLY))),
        "pidfd": tried(lambda: os.close(os.pidfd_open(pid))),
        "group": tried(os.killpg, pid, 0),
    }


@wall
def first_process(_: Job) -> Any:
    """Process 1 takes no signal of ours. ``state``: its state afterwards, or the error of who wants to see it."""
    signals = {number.name: tried(os.kill, 1, number) for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP)}
    time.sleep(0.05)
    try:
        state = Path("/proc/1/stat").read_text().rsplit(") ", 1)[1][0]
    except OSError as error:
        state = errno.errorcode.get(error.errno or 0, str(error))
    return {"signals": signals, "state": state}


@wall
def files_of_first(_: Job) -> Any:
    """Process 1 watches over the job and runs as its user: its memory, descriptors and OOM score must still not be the job's."""
    found = {
        name: tried(lambda n=name, f=flags: os.close(os.open(f"/proc/1/{n}", f)))
        for name, flags in (("mem", os.O_RDWR), ("fd/2", os.O_WRONLY), ("environ", os.O_RDONLY), ("maps", os.O_RDONLY),
                            ("oom_score_adj", os.O_WRONLY), ("syscall", os.O_RDONLY), ("map_files", os.O_RDONLY), ("clear_refs", os.O_WRONLY))
    }  # fmt: skip
    found["timerslack_ns"] = tried(Path("/proc/1/timerslack_ns").write_text, "1")
    return found | {
        "fd": tried(os.listdir, "/proc/1/fd"),
        "cwd": tried(os.readlink, "/proc/1/cwd"),
        "exe": tried(os.readlink, "/proc/1/exe"),
    }


@wall
def limits_of_first(_: Job) -> Any:
    """Taking memory or CPU time from process 1, so that it dies and the job's end looks like the platform's fault."""
    return {
        name: tried(resource.prlimit, 1, getattr(resource, f"RLIMIT_{name}"), (0, 0))
        for name in ("AS", "DATA", "CPU", "NOFILE", "STACK", "FSIZE")
    }


@wall
def memory_of_others(_: Job) -> Any:
    """Which processes' memory can be opened: those of this sandbox, whatever number is tried. ``own``: this one's, which shows that it can be."""
    opened = []
    for pid in range(1, 5_000):
        if tried(lambda p=pid: os.close(os.open(f"/proc/{p}/mem", os.O_RDONLY))) == "DONE":
            opened.append(pid)
    threads = [f"/proc/{name}/task" for name in os.listdir("/proc") if name.isdigit()]
    inside = {int(name) for folder in threads for name in os.listdir(folder)}
    return {"outside": [pid for pid in opened if pid not in inside], "own": os.getpid() in opened}


@act
def daemons(_: Job) -> Any:
    """Sessions of their own, double-forked, ignoring everything; orphans and zombies beside them."""
    for _number in range(4):
        if child := os.fork():
            os.waitpid(child, 0)
        else:
            os.setsid()
            if os.fork() == 0:
                for number in range(1, 32):
                    if number not in (signal.SIGKILL, signal.SIGSTOP):
                        signal.signal(number, signal.SIG_IGN)
                os.closerange(0, 3)
                wait()
            os._exit(0)
    return os.getuid()


@act
def kill_all(_: Job) -> Any:
    if os.fork() == 0:
        os.kill(-1, signal.SIGKILL)  # all but ourselves and process 1: the agent too
        os._exit(0)
    wait()


@act
def kill_first(_: Job) -> Any:
    """The shim by every signal, from the agent itself; then the agent."""
    answers = {tried(os.kill, 1, number) for number in (*range(1, 32), 34, 64)}
    say(f"answers {' '.join(sorted(answers))}")
    wait_for("go", "tried")
    os.kill(os.getpid(), signal.SIGKILL)


@act
def stop_all(job: Job) -> Any:
    begun(job)
    tried(os.kill, -1, signal.SIGSTOP)
    os.kill(os.getpid(), signal.SIGSTOP)


@act
def deaf(_: Job) -> Any:
    """Ignores every signal that can be ignored, in a main thread that never returns."""
    for number in range(1, 65):
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            continue
    say("deaf")
    while True:
        time.sleep(1)


@act
def spin(job: Job) -> Any:
    """Four processes, or as many as are asked for, that compute for ever."""
    for _number in range(job.payload.get("processes", 4) - 1):
        if os.fork() == 0:
            break
    else:
        say("spinning")
    while True:
        pass


@act
def tick(_: Job) -> Any:
    """Ordinary work of a neighbour: processes, files and arithmetic."""
    total = 0
    for number in range(10):
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", f"print({number} * 2)"], capture_output=True, text=True, check=True
        )
        Path("/tmp/work").write_text(done.stdout)
        total += int(Path("/tmp/work").read_text())
    return total
