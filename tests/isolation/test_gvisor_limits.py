"""Limits under gVisor hold by cgroups of our own, with everything of the sandbox inside them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cloche.isolation.backend import Sandbox
from cloche.isolation.gvisor import group_limits
from cloche.isolation.spec import memory_limit
from cloche.sandboxd import trees
from cloche.sandboxd.groups import Group
from cloche.sandboxd.proof import SLACK
from tests.support import sandbox as support
from tests.support.gvisor import MIB, Bench

pytestmark = pytest.mark.docker


def test_memory(bench: Bench) -> None:
    outcome = bench.run("kept = [bytes([1]) * (1 << 20) for _ in range(1000)]")
    assert outcome.last is None
    remains = outcome.remains
    assert remains is not None
    assert remains.oom_killed
    assert remains.usage["oom_kills"] >= 1
    limits = bench.spec("pass").limits
    assert 64 * MIB <= remains.usage["memory_peak"] <= group_limits(memory_limit(limits), limits, 2).memory + SLACK


def test_what_was_asked_can_be_had(bench: Bench) -> None:
    assert bench.run("kept = bytes([1]) * (60 << 20)\nreturn len(kept)").value == 60 << 20


def test_memory_of_a_child_and_of_tmp(bench: Bench) -> None:
    for body in (
        "import subprocess\nsubprocess.run([sys.executable, '-c', 'kept = [bytes([1]) * (1 << 20) for _ in range(1000)]'])",
        "for n in range(100_000):\n    Path(f'/tmp/{n:0200}').touch()",
    ):
        remains = bench.run(body).remains
        assert remains is not None
        assert remains.oom_killed


FORK = """
    made = 0
    try:
        while made < 1000:
            if os.fork() == 0:
                time.sleep(600)
            made += 1
    except OSError as error:
        return [made, error.errno]
"""


def test_processes(bench: Bench) -> None:
    made, number = bench.run(FORK, pids=16, memory=512 * MIB).value
    assert 0 < made < 16
    assert number == 11


FORK_WHEN_TOLD = """
    made = 0
    print('waiting', flush=True)
    try:
        while not Path('/job/in/go').exists():
            time.sleep(0.05)
        while made < 1000:
            if os.fork() == 0:
                time.sleep(600)
            made += 1
    except OSError as error:
        return [made, error.errno]
"""


def test_processes_on_the_host(bench: Bench) -> None:
    """Should gVisor's own count fail: the cgroup's holds, and what wants more ends."""
    spec = bench.spec(FORK_WHEN_TOLD, pids=512, memory=512 * MIB)
    box = bench.backend.create(spec)
    try:
        box.channel.send(support.job_frame(spec))
        while (frame := box.channel.receive(30)) is None or "waiting" not in str(frame):
            continue
        # Not before: to take its job gVisor may need another process, and without one it takes none.
        group = _group(bench, box)
        folder = group.cgroup.unified or group.cgroup.controllers["pids"]
        (folder / "pids.max").write_text((folder / "pids.current").read_text())
        (box.in_folder / "go").touch()
        last = _last(box)
        remains = box.finish()
    finally:
        box.destroy()
    assert remains.usage["pids_denied"] > 0
    assert last is None or last["value"][0] < 64


def _last(box: Sandbox) -> Mapping[str, Any] | None:
    """Its result; None when the channel ends before."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            frame = box.channel.receive(deadline - time.monotonic())
        except EOFError:
            return None
        if frame is not None and frame["type"] in ("result", "error"):
            assert frame["type"] == "result", frame
            return frame
    raise AssertionError("it did not end in time")


def test_every_process_is_inside_and_the_kernel_has_the_limits(bench: Bench) -> None:
    seen: dict[str, Any] = {}

    def look(box: Sandbox) -> None:
        running = bench.running(box)
        group = _group(bench, box)
        pid = _main(running.pidfd)
        inside = trees.members(pid, running.container)
        seen["outside"] = inside - group.members()
        seen["held"] = all(group.holds(process) for process in inside)
        seen["names"] = sorted(Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")[0] for process in inside)
        cpu = group.cgroup.controllers.get("cpu")
        seen["cpu"] = (cpu / "cpu.cfs_quota_us").read_text() if cpu else (group.folders[0] / "cpu.max").read_text()

    children = "import subprocess\nchild = subprocess.run(['/bin/sh', '-c', 'exit 7'])\nreturn child.returncode"
    assert bench.run(children, look=look, cpu=0.5).value == 7
    assert seen["outside"] == set()
    assert seen["held"]
    assert {b"runsc-sandbox", b"runsc-gofer"} <= set(seen["names"])
    assert seen["cpu"].split()[0] == "50000"


def test_a_process_born_later_is_inside(bench: Bench) -> None:
    spec = bench.spec("os.fork()\nprint('forked', flush=True)\ntime.sleep(60)")
    box = bench.backend.create(spec)
    try:
        before = len(_group(bench, box).members())
        box.channel.send(support.job_frame(spec))
        while (frame := box.channel.receive(30)) is None or "forked" not in str(frame):
            continue
        running = bench.running(box)
        group = _group(bench, box)
        inside = trees.members(_main(running.pidfd), running.container)
        assert len(inside) > before
        assert all(group.holds(process) for process in inside)
    finally:
        box.destroy()


def test_processor_time(bench: Bench) -> None:
    spec = bench.spec(
        "for _ in range(3):\n    os.fork()\nprint('spinning', flush=True)\nwhile True: pass", cpu=0.5, memory=256 * MIB
    )
    box = bench.backend.create(spec)
    try:
        box.channel.send(support.job_frame(spec))
        while (frame := box.channel.receive(30)) is None or "spinning" not in str(frame):
            continue
        cpu = _group(bench, box).cgroup.controllers.get("cpu", _group(bench, box).folders[0])
        throttled = support.wait_until(lambda: _throttled(cpu), "it is held back")
        assert throttled > 0
    finally:
        box.destroy()


def _throttled(folder: Path) -> int:
    pairs = [line.split() for line in (folder / "cpu.stat").read_text().splitlines()]
    return {name: int(value) for name, value in pairs}["nr_throttled"]


def _group(bench: Bench, box: Sandbox) -> Group:
    group = bench.running(box).group
    assert group is not None
    return group


def _main(pidfd: int) -> int:
    lines = Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pid:"))
