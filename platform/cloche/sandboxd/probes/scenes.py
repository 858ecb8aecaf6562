"""Probes that need the host's eyes: two sandboxes at once, a kill, a collection, a count of what is left."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cloche.isolation.cell_spec import RUNNER_PIDS, slot_memory
from cloche.isolation.gvisor import group_limits
from cloche.isolation.spec import NAMESPACE, memory_limit
from cloche.sandboxd import cgroups
from cloche.sandboxd.probes.bench import MIB, Bench, Live, ProbeBroken, listening, users_of
from cloche.sandboxd.probes.probe import Observe

OVERDUE_SECONDS = 1.5  # for jobs that never end: how long the host listens, once they are at it, before it kills them
BEGUN_SECONDS = 60
MOST_SOCKET_BYTES = 24 * MIB
OTHERS_SECONDS = 20.0  # for what others on this host do with their sockets meanwhile


def job(act: str, payload: dict[str, Any] | None = None, seconds: float = 30, **limits: Any) -> Observe:
    """One job of this act; the facts are :meth:`Live.facts`."""
    return lambda bench: bench.run(act, payload, seconds, **limits)


def walls(names: list[str]) -> Callable[[Bench], dict[str, Any]]:
    """All probes of these names in one sandbox, each in a child of its own; facts by name."""

    def observe(bench: Bench) -> dict[str, Any]:
        with listening() as host:
            facts = bench.run(
                "walls",
                {"probes": names, "host": {**host, "home": str(bench.home)}},
                seconds=120,
                result=1 << 20,
                pids=16,
            )
        if facts["last"] != "result":
            return {name: {"sandbox ended": facts} for name in names}
        return dict(facts["value"])

    return observe


def alone(name: str) -> Observe:
    """One wall in a sandbox of its own, which it may well end."""
    return job("walls", {"probes": [name], "host": {}}, pids=16)


def refuse_frame(text: str) -> Observe:
    """One frame with this JSON, sent past the agent."""
    return job("raw", {"text": text}, seconds=60)


def ignores_signals(bench: Bench) -> Any:
    with bench.live("deaf") as live:
        live.until("deaf")
        live.send({"type": "cancel"})
        live.sandbox.kill()
        live.drive(5)
        return live.facts() | {"left": len(live.processes())}


def never_ends(act: str) -> Observe:
    """A job that is listened to for a while from where it is at its act, and then killed; ``left``: its processes then.

    That it is shows a file in ``out/``: its log is itself frames on the channel, which the act may leave in the middle of one.
    """

    def observe(bench: Bench) -> Any:
        with bench.live(act) as live:
            begun = live.running.site.folders.out / "begun"
            deadline = time.monotonic() + BEGUN_SECONDS
            while not begun.exists():
                if time.monotonic() > deadline:
                    raise ProbeBroken(f"the job never began to {act}")
                time.sleep(0.02)
            live.drive(OVERDUE_SECONDS)
            return live.facts() | {"left": len(live.processes())}

    return observe


def forged_exit(bench: Bench) -> Any:
    """Until it is refused, or believed and over; then whether something else comes."""
    with bench.live("exit_line") as live:
        with contextlib.suppress(ProbeBroken):
            live.until("refused", BEGUN_SECONDS)
        live.drive(OVERDUE_SECONDS)
        return live.facts()


def daemons(bench: Bench) -> Any:
    with bench.live("daemons") as live:
        live.drive(20)
        before = len(live.processes())
        return live.facts() | {"before": before, "left": len(live.processes())}


def most_processes(live: Live, seconds: float = 30) -> int:
    """The most that are seen in twenty looks, once there are at least half of those that it may have."""
    deadline = time.monotonic() + seconds
    while len(live.processes()) < live.running.limits.pids // 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    return max(len(live.processes()) for _ in range(20))


def forking_for_ever(**limits: Any) -> Observe:
    def observe(bench: Bench) -> Any:
        with bench.live("fork_bomb_for_ever", **limits) as live:
            live.until("forking")
            most = most_processes(live)
            neighbour = bench.run("tick", seconds=60)
            return live.facts() | {
                "most": most,
                "neighbour": neighbour["value"],
                "left": len(live.processes()),
            }

    return observe


def spin(bench: Bench) -> Any:
    """A neighbour's ordinary work beside four processes that compute for ever on half a CPU; and what those got."""
    with bench.live("spin", cpu=0.5) as live:
        live.until("spinning")
        before, start = live.running.cgroup.usage().get("cpu_ms", 0), time.monotonic()
        neighbour = bench.run("tick", seconds=60)
        wall_ms = (time.monotonic() - start) * 1000
        share = (live.running.cgroup.usage().get("cpu_ms", 0) - before) / wall_ms
        return {"neighbour": neighbour["value"], "share": round(share, 2)}


def hoard(bench: Bench) -> Any:
    """One job holds all it can of what the kernel counts by user; another starts beside it."""
    name = {"name": "cloche-neighbour", "port": 47_111}
    with bench.live("hoard", name) as live:
        live.until("hoarded")
        beside = bench.run("live_beside", name)
        made, error, queued, queues = _said(live, "made")
        hoarded = {"on their way": int(made), "error": error, "signals": int(queued), "queues": int(queues)}
        return {"hoarded": hoarded, "uid": live.running.uid, "beside": beside["value"], "last": beside["last"]}


def _said(live: Live, word: str) -> list[str]:
    """What the line of log says that begins with the word."""
    return next(line for line in live.log.splitlines() if line.startswith(word)).split()[1:]


def leftovers(bench: Bench) -> Any:
    """One job after the other, both on this host."""
    first, second = bench.run("leave"), bench.run("find")
    return {"first": first["value"], "second": second["value"]}


def changing(bench: Bench) -> Any:
    """Files that never hold still: read the copies twice, after the host said that it had collected them."""
    with bench.live("changing", output_files=10) as live:
        live.drive(20)
        live.finish()
        folder = live.running.site.collected
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        left = len(live.processes())
        facts = live.facts()
        links = [path.name for path in folder.iterdir() if path.is_symlink()]
        return facts | {
            "still": before == {p.name: p.read_bytes() for p in folder.iterdir()},
            "links": links,
            "left": left,
        }


def kernel_limits(bench: Bench) -> Any:
    """The limits as the kernel has them, beside those that were asked."""
    with bench.live("deaf", cpu=0.5) as live:
        live.until("deaf")
        return {"asked": _asked(live), "kernel": _kernel(live)}


def _asked(live: Live) -> dict[str, int]:
    limits = live.running.limits
    memory, pids = memory_limit(limits), limits.pids
    if live.running.group is not None:
        ours = group_limits(memory, limits, 1)
        memory, pids = ours.memory, ours.tasks
    elif live.running.level == NAMESPACE:
        memory, pids = slot_memory(limits), pids + RUNNER_PIDS
    return {"memory": memory, "swap": 0, "pids": pids, "cpu_percent": 50}


def _kernel(live: Live) -> dict[str, int]:
    group = live.running.cgroup
    if group.unified is not None:
        quota, period = (group.unified / "cpu.max").read_text().split()
        return {
            "memory": _number(group.unified / "memory.max"),
            "swap": _swap(live, group.unified / "memory.swap.max", 0),
            "pids": _number(group.unified / "pids.max"),
            "cpu_percent": 100 * int(quota) // int(period),
        }
    memory, cpu = group.controllers["memory"], group.controllers["cpu"]
    limit = _number(memory / "memory.limit_in_bytes")
    return {
        "memory": limit,
        "swap": _swap(live, memory / "memory.memsw.limit_in_bytes", limit),
        "pids": _number(group.controllers["pids"] / "pids.max"),
        "cpu_percent": 100 * _number(cpu / "cpu.cfs_quota_us") // _number(cpu / "cpu.cfs_period_us"),
    }


def _swap(live: Live, path: Path, memory: int) -> int:
    """Bytes of swap it may use; on a host that cannot count them, how many areas there are to use."""
    return _number(path) - memory if live.running.counts_swap else cgroups.swap_areas()


def _number(path: Path) -> int:
    return int(path.read_text())


def own_uids(bench: Bench) -> Any:
    """Two at once, and one after them; the users of every process that the kernel counts to the first two, and how many of each are root's."""
    with bench.live("deaf") as one, bench.live("deaf") as two:
        for live in (one, two):
            live.until("deaf")
        together = [one.running.uid, two.running.uid]
        users = [[users_of(process) for process in _members(live)] for live in (one, two)]
    found = {
        "together": together,
        "processes": sorted({uid for each in users for process in each for uid in process}),
        "root": [sum(0 in process for process in each) for each in users],
    }
    with bench.live("deaf") as three:
        return found | {"later": three.running.uid}


def _members(live: Live) -> list[str]:
    group = live.running.cgroup
    folder = group.unified or group.controllers["pids"]
    return (folder / "cgroup.procs").read_text().split()


def kept_within(bench: Bench) -> Any:
    """A job that is granted priorities, scores and terminals by a kernel of its own: whether the host's processes of that sandbox have any of it."""
    with bench.live("take_ranks") as live:
        live.until("before")
        before = _ranks(live)
        (live.sandbox.in_folder / "go").write_text("")
        live.until("taken")
        after = _ranks(live)
        terminals = [
            path for process in live.processes() for path in _open_paths(process) if path.startswith("/dev/pt")
        ]
        (live.sandbox.in_folder / "end").write_text("")
        live.drive(20)
        return {"inside": live.facts()["value"], "before": before, "after": after, "terminals": terminals}


def _ranks(live: Live) -> dict[str, int]:
    """The lowest nice value and OOM score of all its processes: what a job would want."""
    nice, scores = [], []
    for process in live.processes():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            nice.append(int(Path("/proc", process, "stat").read_text().rsplit(") ", 1)[1].split()[16]))
            scores.append(int(Path("/proc", process, "oom_score_adj").read_text()))
    return {"nice": min(nice), "score": min(scores)}


def _open_paths(process: str) -> list[str]:
    found = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for name in os.listdir(f"/proc/{process}/fd"):
            with contextlib.suppress(FileNotFoundError):
                found.append(os.readlink(f"/proc/{process}/fd/{name}"))
    return found


def kill_first(bench: Bench) -> Any:
    """``answers``: what the signals to process 1 were answered, before the agent ended itself; empty where they ended the sandbox."""
    with bench.live("kill_first") as live:
        answers: list[str] = []
        with contextlib.suppress(ProbeBroken):
            live.until("tried")
            answers = _said(live, "answers")
            (live.sandbox.in_folder / "go").write_text("")
        live.drive(20)
        return live.facts() | {"answers": answers}


def log_flood(bench: Bench) -> Any:
    return bench.run("flood_log", seconds=60, log=50_000)


def big_tmp(folder: str, act: str) -> Observe:
    """Fill a folder with more than enough memory left."""
    return job(act, {"folder": folder}, output=2 * MIB)


def odd_streams(bench: Bench) -> Any:
    """The agent dies with what it shares with process 1 left odd. Is process 1 still there to be asked what was used?"""
    with bench.live("odd_streams") as live:
        live.drive(20)
        alive = not live.running.is_dead()
        return live.facts() | {"alive": alive}


def record_locks(bench: Bench) -> Any:
    """One job takes more locks than it may, spread over files; a neighbour takes some of its own."""
    with bench.live("record_locks", {"files": 50, "each": 100}) as live:
        live.drive(20)
        return live.facts() | {"neighbour": _few_locks(bench)}


def record_locks_within(bench: Bench) -> Any:
    """The same where they are the sandbox's own kernel's: looked at from the host while all of them are held."""
    with bench.live("record_locks", {"files": 50, "each": 100}) as live:
        live.until("locked 5000", 60)
        facts = {"alive": len(live.processes()), "on_host": _locks_on_host(live), "neighbour": _few_locks(bench)}
        return live.facts() | facts


def _few_locks(bench: Bench) -> Any:
    return bench.run("record_locks", {"files": 2, "each": 5, "end": True})["value"]


def _locks_on_host(live: Live) -> int:
    """Locks that the host's kernel keeps for this sandbox's processes."""
    mine = {str(pid) for pid in live.running.processes()}
    return sum(
        len(mine.intersection(line.split()[4:6])) for line in Path("/proc/locks").read_text("ascii").splitlines()
    )


def _host_tcp_bytes() -> int:
    """Memory of all TCP sockets of this host."""
    line = next(text for text in Path("/proc/net/sockstat").read_text("ascii").splitlines() if text.startswith("TCP:"))
    return int(line.split()[-1]) * os.sysconf("SC_PAGE_SIZE")


def socket_memory(bench: Bench) -> Any:
    """Buffers of connections within the sandbox, as the kernel counts them to it and to the whole host. What others there hold comes and goes:
    it is the least that is seen before, and too much after it has to stay."""
    before = min(_looks(5))
    with bench.live("socket_memory", {"connections": 20}) as live:
        live.until("filled", 60)
        deadline = time.monotonic() + OTHERS_SECONDS
        while (held := _host_tcp_bytes() - before) > MOST_SOCKET_BYTES and time.monotonic() < deadline:
            time.sleep(0.1)  # while they are filled: facts() ends it
        return live.facts() | {"held": held, "sent": int(_said(live, "sent")[0])}


def _looks(number: int) -> Iterator[int]:
    for _ in range(number):
        yield _host_tcp_bytes()
        time.sleep(0.1)
