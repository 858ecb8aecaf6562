"""Probes of limits: too much of everything, and what a neighbour still gets."""

from __future__ import annotations

from typing import Any

from cloche.isolation.spec import out_inodes
from cloche.sandboxd.probes import scenes
from cloche.sandboxd.probes.bench import MIB, SMALL
from cloche.sandboxd.probes.probe import Judge, Probe, refused
from cloche.sandboxd.probes.scenes import big_tmp, job


def _full(facts: Any) -> bool:
    """A write was refused for want of room, within the quota, and memory was not what ran out."""
    return (
        facts["last"] == "result"
        and facts["value"]["error"] in ("ENOSPC", "EFBIG")
        and facts["value"]["made"] * 65_536 <= 2 * MIB
        and not facts["oom"]
    )


def _no_inodes(facts: Any) -> bool:
    return facts["last"] == "result" and facts["value"]["error"] == "ENOSPC" and not facts["oom"]


def no_more_inodes(most: int) -> Judge:
    """Refused for want of inodes, of which there were no more than these."""
    return lambda facts: _no_inodes(facts) and 0 < facts["value"]["made"] <= most


def _killed_for_memory(facts: Any) -> bool:
    return facts["oom"] and facts["last"] in (None, "error") and facts["exit_code"] == -9


def _bounded(facts: Any) -> bool:
    return facts["last"] == "result" and 0 < facts["value"]["made"] < SMALL.pids


def _beside(facts: Any) -> bool:
    beside = facts["beside"]
    own = all(
        beside[name] == "DONE"
        for name in ("on their way", "files", "pipes", "signals", "queues", "locked", "processes", "bind")
    )
    hoarded = facts["hoarded"]
    return (
        own
        and all(hoarded[name] > 0 for name in ("on their way", "signals", "queues"))
        and beside["reach"] == beside["loopback"] == "ECONNREFUSED"
        and beside["uid"] != facts["uid"]
        and beside["inputs"] == ["a.txt"]
    )


def _still_bounded(facts: Any) -> bool:
    return SMALL.pids // 2 <= facts["most"] <= SMALL.pids and facts["neighbour"] == 90 and facts["left"] == 0


# fmt: off
LIMITS = (
    Probe("kernel_limits", "limits", "compare the kernel's limits with those asked", "memory, no swap, processes, CPU: the same",
          lambda f: f["asked"] == f["kernel"], scenes.kernel_limits),
    Probe("fill_out", "limits", "fill out/", "refused at its quota, by name",
          lambda f: _full(f) and f["usage"].get("output_full") == 1, big_tmp("/job/out", "fill_disk")),
    Probe("fill_disk_out", "limits", "fill an out/ of 72 MB, which lies on disk", "refused at its quota; what is collected never exceeds it; memory is not what ends it",
          lambda f: f["value"]["error"] in ("ENOSPC", "EFBIG") and 1_000 < f["value"]["made"] <= 1_152 + 4 and f["usage"]["output_bytes"] <= 72 * MIB and not f["oom"],
          job("fill_disk", {"folder": "/job/out"}, output=72 * MIB, output_files=2_000)),
    Probe("fill_disk_out_inodes", "limits", "files without end in an out/ that lies on disk", "refused at its quota of inodes", no_more_inodes(2 * out_inodes(SMALL)),
          job("fill_inodes", {"folder": "/job/out"}, output=72 * MIB)),
    Probe("sparse_on_disk", "limits", "a sparse file of 1 TB in an out/ that lies on disk", "EFBIG or ENOSPC",
          lambda f: set(f["value"].values()) <= {"EFBIG", "ENOSPC"} and f["usage"]["output_bytes"] <= 72 * MIB, job("sparse", output=72 * MIB)),
    Probe("fill_out_inodes", "limits", "files without end in out/", "refused at its quota of inodes, by name",
          lambda f: no_more_inodes(out_inodes(SMALL))(f) and f["usage"].get("output_inodes_full") == 1 and len(f["files"]) <= 50, big_tmp("/job/out", "fill_inodes")),
    Probe("fill_tmp", "limits", "fill /tmp", "refused at its size", _full, big_tmp("/tmp", "fill_disk")),
    Probe("fill_tmp_inodes", "limits", "files without end in /tmp", "refused at its number of inodes",
          no_more_inodes(4_096), big_tmp("/tmp", "fill_inodes")),
    Probe("fill_shm", "limits", "fill /dev/shm", "refused at its size", _full, big_tmp("/dev/shm", "fill_disk")),
    Probe("fill_shm_inodes", "limits", "files without end in /dev/shm", "refused, or ended by the memory limit; the host is none the wiser",
          lambda f: f["oom"] or _no_inodes(f), big_tmp("/dev/shm", "fill_inodes")),
    Probe("sparse", "limits", "a sparse file of 1 TB", "EFBIG or ENOSPC",
          lambda f: set(f["value"].values()) <= {"EFBIG", "ENOSPC"} and f["usage"]["output_bytes"] <= 2 * MIB, job("sparse")),
    Probe("memory", "limits", "memory without end", "killed, and called out of memory", _killed_for_memory, job("memory")),
    Probe("memory_of_a_child", "limits", "a child alone takes too much", "the child is killed; the job is told, and so are we",
          lambda f: f["oom"] and f["value"] == -9, job("memory_of_a_child")),
    Probe("memory_by_memfd", "limits", "memory in a file nobody sees", "counted: killed, out of memory", _killed_for_memory, job("memory_by_memfd")),
    Probe("memory_by_sysv", "limits", "memory in System V segments", "counted: killed, out of memory", _killed_for_memory, job("memory_by_sysv")),
    Probe("huge_pages", "limits", "memory from the host's pool of huge pages, which nothing counts", "each is EPERM", refused),
    Probe("foreign_locks", "limits", "record locks that name no process, or outlive the one they name", "each is EPERM", refused),
    Probe("record_locks", "limits", "5,000 record locks, which the kernel counts to nobody", "ended, and called by name; a neighbour has its few",
          lambda f: f["last"] is None and f["usage"].get("locks_over") == 1_001 and f["neighbour"] == {"made": 10, "error": None}, scenes.record_locks),
    Probe("socket_memory", "limits", "fill the buffers of 20 connections within the sandbox", "at most 24 MB, wherever the kernel counts them",
          lambda f: f["sent"] > 0 and f["held"] <= scenes.MOST_SOCKET_BYTES, scenes.socket_memory),
    Probe("memory_of_first", "limits", "become tiny and fill memory, so that process 1 is the largest", "killed, and called out of memory all the same",
          lambda f: f["oom"] and f["last"] is None, job("memory_of_first", {"megabytes": 56})),
    Probe("memory_locked", "limits", "lock 512 MB in memory", "refused, or killed",
          lambda f: f["oom"] or f["value"]["lock"] in ("ENOMEM", "EPERM", "EAGAIN"), job("memory_locked")),
    Probe("fork_bomb", "limits", "fork without end", "EAGAIN below the limit, and counted",
          lambda f: _bounded(f) and f["value"]["error"] == "EAGAIN" and f["usage"]["pids_denied"] > 0, job("fork_bomb")),
    Probe("fork_bomb_for_ever", "limits", "every child forks too, and none gives up", "never more than the limit; a neighbour works; all die",
          _still_bounded, scenes.forking_for_ever()),
    Probe("thread_bomb", "limits", "threads without end", "refused below the limit", _bounded, job("thread_bomb")),
    Probe("queues", "limits", "message queues without end", "refused by a limit",
          lambda f: f["oom"] or (f["value"]["error"] in ("EMFILE", "ENOSPC", "ENOMEM") and 0 < f["value"]["made"] < 1_000),
          job("queues")),
    Probe("open_files", "limits", "open files without end", "EMFILE at the limit",
          lambda f: f["value"]["error"] == "EMFILE" and f["value"]["made"] <= SMALL.nofile, job("open_files")),
    Probe("spin", "limits", "four processes compute for ever on half a CPU", "half a CPU it is, and a neighbour finishes its work",
          lambda f: f["neighbour"] == 90 and 0 < f["share"] <= 0.75, scenes.spin),
    Probe("hoard", "limits", "hold every descriptor on its way, signal, pipe and name there is", "a neighbour gets its own, and cannot be reached",
          _beside, scenes.hoard),
    Probe("flood_log", "limits", "flood both streams, with control characters", "cut at the limit, said once; the result arrives",
          lambda f: f["value"] == "done" and 25_000 < f["log"] < 51_000 and f["frames"]["log"] < 500 and f["log_end"].count("log truncated") == 1,
          scenes.log_flood),
    Probe("long_line", "limits", "a line of 100 MB", "cut at the limit; the result arrives",
          lambda f: f["value"] == "done" and f["log"] < 101_000 and "log truncated" in f["log_end"], job("long_line", seconds=60)),
    Probe("flood_progress", "limits", "200,000 reports of progress", "thinned out; the last one and the result arrive",
          lambda f: f["value"] == "done" and f["frames"]["progress"] < 500 and f["progress"] == 200_000, job("flood_progress", seconds=60)),
)

DEATH = (
    Probe("ignores_signals", "death", "ignore every signal, and a cancel", "killed; nothing is left",
          lambda f: f["last"] is None and f["left"] == 0, scenes.ignores_signals),
    Probe("stops_itself", "death", "SIGSTOP to everything, itself too", "the deadline passes, it is killed; nothing is left",
          lambda f: f["overdue"] and f["left"] == 0, scenes.never_ends("stop_all")),
    Probe("daemons", "death", "double-forked daemons in sessions of their own, deaf, with closed streams", "alive with the job, dead with it",
          lambda f: f["last"] == "result" and f["before"] >= 6 and f["left"] == 0, scenes.daemons),
    Probe("kill_all", "death", "kill -9 -1 from a child", "the job has crashed by SIGKILL, and says so",
          lambda f: f["last"] is None and f["exit_code"] == -9 and not f["oom"], job("kill_all", seconds=20)),
    Probe("signals_by_files", "death", "have the kernel send process 1 a signal for a file that is ready", "process 1 lives, and the result arrives",
          lambda f: f["last"] == "result" and set(f["value"].values()) == {"DONE"} and not f["oom"], job("signals_by_files", seconds=20)),
    Probe("odd_streams", "death", "leave the streams shared with process 1 non-blocking, then die", "process 1 lives, and what was used is known",
          lambda f: f["alive"] and f["exit_code"] == -9 and f["usage"].get("memory_peak", 0) > 0, scenes.odd_streams),
    Probe("kill_first", "death", "every signal to process 1, then SIGKILL to the agent", "process 1 lives to report it",
          lambda f: f["last"] is None and f["exit_code"] == -9 and not f["oom"] and f["answers"] == ["DONE"], scenes.kill_first),
)
# fmt: on
