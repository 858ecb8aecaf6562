"""Scenes of level ``namespace``: two slots of one container, a slot after many jobs, a runner that dies."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

from cloche.errors import PlatformFailure
from cloche.sandboxd import syscalls
from cloche.sandboxd.cells.slot_cgroup import SlotCgroup
from cloche.sandboxd.probes import network
from cloche.sandboxd.probes.bench import Bench, Live, users_of
from cloche.sandboxd.probes.probe import Observe
from cloche.sandboxd.probes.scenes import most_processes

_JOBS = 1_000
_LEAVES = 10  # every so many of them
_MOST_SLOTS = 16
_SPINNERS = 12
_LOOKS = 5


def _slot(live: Live) -> SlotCgroup:
    group: SlotCgroup = live.running.slot_cgroup  # type: ignore[attr-defined]
    return group


def _runner(live: Live) -> int:
    """The number of the slot's runner: the one process there that is neither the cell's user's nor a child of another there."""
    members = _slot(live).processes()
    parents = {int(Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()[1]) for pid in members}
    return next(
        pid
        for pid in members
        if pid in parents and live.running.uid not in users_of(str(pid)) and _parent(pid) not in members
    )


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()[1])


def neighbours(bench: Bench) -> Any:
    with bench.live("mark") as one:
        one.until("marked")
        with bench.live("look_for_marks") as two:
            same = one.running.container == two.running.container
            two.drive(30)
            return {"same container": same, "beside": two.facts()["value"]}


def outlive(bench: Bench) -> Any:
    with bench.live("outlive") as live:
        group = _slot(live)
        live.drive(20)
        facts = live.facts()
        return {"exit_code": facts["exit_code"], "processes": len(group.processes())}


def one_port(bench: Bench) -> Any:
    return {"values": [bench.run("take_port")["value"] for _ in range(10)]}


def network_left(bench: Bench) -> Any:
    """Seen from the host: a slot's network before, during and after a job that uses all of it."""
    with bench.live("use_network") as live:
        live.until("here")
        runner = _runner(live)
        before = network.look(runner)
        (live.sandbox.in_folder / "go").write_text("")
        live.until("in use")
        during = network.look(runner)
        (live.sandbox.in_folder / "end").write_text("")
        live.drive(30)
        done = live.facts()["value"]
        after = network.look(runner)
        for _ in range(_LOOKS):  # the kernel may be at the last of them yet
            if after.sockets == before.sockets:
                break
            time.sleep(1)
            after = network.look(runner)
    changed = {
        name: [before.settings.get(name), after.settings.get(name)]
        for name in before.settings.keys() | after.settings.keys()
        if before.settings.get(name) != after.settings.get(name)
    }
    return {
        "done": done,
        "addresses": [sorted(before.addresses), sorted(after.addresses)],
        "sockets": [look.sockets for look in (before, during, after)],
        "settings": len(before.settings),
        "kept when closed": before.settings.get("ipv4/tcp_max_tw_buckets"),
        "changed": changed,
    }


def cpu_beside(bench: Bench) -> Any:
    """Many processes that compute for ever in one slot, one that computes in another of the same limits: CPU time of each while both do."""
    with bench.live("spin", {"processes": _SPINNERS}) as one:
        one.until("spinning")
        with bench.live("compute", {"seconds": 1}) as two:
            two.until("here")
            before = [_slot(live).usage()["cpu_ms"] for live in (one, two)]
            (two.sandbox.in_folder / "go").write_text("")
            two.drive(180)
            hostile, victim = (
                _slot(live).usage()["cpu_ms"] - was for live, was in zip((one, two), before, strict=True)
            )
            return {
                "same container": one.running.container == two.running.container,
                "same limits": one.running.limits == two.running.limits,
                "hostile": hostile,
                "victim": victim,
                "value": two.facts()["value"],
            }


def memory_beside(bench: Bench) -> Any:
    with bench.live("tick") as one, bench.live("memory") as two:
        same = one.running.container == two.running.container
        two.drive(30)
        oom = two.facts()["oom"]
        one.drive(60)
        return {"same container": same, "oom": oom, "neighbour": one.facts()["value"]}


def forks_beside(bench: Bench) -> Any:
    with bench.live("fork_bomb_for_ever") as one:
        one.until("forking")
        most = most_processes(one)
        with bench.live("tick") as two:
            same = one.running.container == two.running.container
            two.drive(60)
            return {
                "same container": same,
                "most": most,
                "limit": one.running.limits.pids,
                "neighbour": two.facts()["value"],
            }


def runner_lost(bench: Bench) -> Any:
    """What nothing in a cell can do: the host kills the runner."""
    failed = "nothing"
    with bench.live("deaf") as live:
        live.until("deaf")
        lost = live.running.container
        os.kill(_runner(live), signal.SIGKILL)
        live.drive(10)
        try:
            live.finish()
        except PlatformFailure as error:
            failed = error.reason
    with bench.live("tick") as live:
        another = live.running.container != lost
        live.drive(30)
        return {"failed": failed, "next": live.facts()["last"], "another": another}


def thousand(bench: Bench) -> Any:
    """Jobs one after the other, and what the slot and the host hold before and after them; some leave a trace in every place there is."""
    for _ in range(5):
        bench.run("take_port")
    before = _held(bench)
    failed, slots, left = 0, set[Path](), list[Any]()
    for number in range(_JOBS):
        if number % _LEAVES:
            failed += bench.run("take_port")["value"] != "taken"
        else:
            with bench.live("leave") as live:
                slots.add(_slot(live).folders()[0])
                live.drive(30)
                left.append(live.facts()["value"])
    found, unseen = _found(bench, slots)
    after = _held(bench)
    for _ in range(_LOOKS):  # what is only on its way out is no leftover
        if all(count <= before["counts"][name] for name, count in after["counts"].items()):
            break
        time.sleep(1)
        after = _held(bench)
    grown = after["memory"] - before["memory"]
    facts = {"failed": failed, "left": left[-1], "traces": len(left), "found": found, "unseen": unseen}
    return {**facts, "before": before, "after": after, "grown": grown}


def _found(bench: Bench, slots: set[Path]) -> tuple[list[Any], int]:
    """What a job finds in each of these slots, and in how many none did. Kept until the last has looked, so that each gets another slot."""
    found, unseen = [], set(slots)
    with contextlib.ExitStack() as kept:
        for _ in range(_MOST_SLOTS):
            if not unseen:
                break
            live = kept.enter_context(bench.live("find"))
            live.drive(30)
            unseen.discard(_slot(live).folders()[0])
            found.append(live.facts()["value"])
    return found, len(unseen)


def _held(bench: Bench) -> dict[str, Any]:
    with bench.live("deaf") as live:
        live.until("deaf")
        runner = _runner(live)
        site = live.running.site
        return {
            "counts": {
                "descriptors": len(os.listdir("/proc/self/fd")),
                "threads": len(os.listdir("/proc/self/task")),
                "mounts": len(syscalls.mounts_below(site.root.parents[2])),
                "runner's descriptors": len(os.listdir(f"/proc/{runner}/fd")),
                "runner's mounts": len(Path(f"/proc/{runner}/mountinfo").read_text().splitlines()),
                "processes": len(_slot(live).processes()),
                "folders": len(list(site.folders.inputs.parents[1].iterdir())),
                "cells": len(list(site.root.parent.iterdir())),
            },
            "memory": _resident(runner),
        }


def _resident(pid: int) -> int:
    fields = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * int(next(line for line in fields if line.startswith("VmRSS")).split()[1])


def memory_left(bench: Bench) -> Any:
    values = []
    for _ in range(5):
        bench.run("leave_memory", {"megabytes": 50})
        values.append(bench.run("use_memory", {"megabytes": 60})["value"])
    return {"values": values}


def runner_taken(bench: Bench) -> Any:
    with bench.live("tick") as one, bench.live("smaller_than_the_runner") as two:
        same = one.running.container == two.running.container
        two.drive(30)
        oom = two.facts()["oom"]
        one.drive(60)
        return {"same container": same, "oom": oom, "neighbour": one.facts()["value"]}


def oom_again(bench: Bench) -> Any:
    ooms = sum(bench.run("memory_by_memfd")["oom"] for _ in range(5))
    return {"ooms": ooms, "after": bench.run("tick")["value"]}


def preload_power(bench: Bench) -> Any:
    """What a package finds out that is hostile while it is imported beforehand; told by a job of its slot, and by another after it."""
    return [bench.run("beforehand", preload="reach_out")["value"] for _ in range(2)]


def unfit(kind: str) -> Observe:
    """A package that cannot be preloaded for this reason."""
    return lambda bench: bench.refused(kind)
