"""Warm pools on a real engine: who waits is used once, leaves nothing, and is found when it is dead or wedged."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloche.errors import PlatformFailure
from cloche.isolation.backend import Sandbox, SandboxSpec
from cloche.isolation.spec import LABEL
from cloche.sandboxd import cgroups, pools, syscalls
from cloche.sandboxd.main import Sandboxd
from cloche.sandboxd.places import home_digest
from cloche.sandboxd.pool import Key, Pool
from cloche.sandboxd.running import Running
from tests.support import sandbox as support

pytestmark = pytest.mark.docker
MIB = 1 << 20
SMALL = {"memory": 64 * MIB, "output": MIB, "tmp": MIB, "shm": MIB, "pids": 16}
COUNTER = """
    import os
    from pathlib import Path
    from cloche_guest import hookimpl
    uses = 0

    @hookimpl
    def setup():
        global uses
        uses += 1
        print("set up", flush=True)

    @hookimpl
    def run(job):
        global uses
        uses += 1
        seen = sorted(os.listdir("/tmp")), sorted(os.listdir("/dev/shm")), sorted(os.listdir(job.out))
        for place in (Path("/tmp"), Path("/dev/shm"), job.out):
            (place / "mine").write_text("mine")
        return [uses, os.getuid(), seen]
"""


def with_setup(body: str, run: str = "return 'ran'") -> str:
    """A plugin whose ``setup()`` has this body."""
    head = "import ctypes, os, subprocess, sys, threading, time\nfrom cloche_guest import hookimpl\n\n@hookimpl\ndef setup():\n"
    middle = "\n\n@hookimpl\ndef run(job):\n"
    return head + _indented(body) + middle + _indented(run) + "\n"


def _indented(body: str) -> str:
    return textwrap.indent(textwrap.dedent(body).strip("\n"), "    ")


def warm_spec(bundle: str, **limits: Any) -> SandboxSpec:
    return replace(support.spec(bundle, **{**SMALL, **limits}), warm=True)


def containers(home: Path) -> list[str]:
    command = ["docker", "ps", "--all", "--quiet", "--filter", f"label={LABEL}.home={home_digest(home)}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def leftovers(home: Path) -> list[str]:
    folders = list((home / "sandboxes").iterdir()) if (home / "sandboxes").exists() else []
    return [*containers(home), *map(str, syscalls.mounts_below(home)), *map(str, folders)]


def waiting(daemon: Sandboxd) -> list[Running]:
    """Sandboxes that have no job."""
    return [running for running in daemon.host.listing() if running.owner is None]


def agent(running: Running) -> int:
    """Host number of the process that has the plugin."""
    first = running.cgroup.processes()
    children = [pid for pid in first if _parent(pid) in first]
    return min(children)


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.fixture
def home() -> Iterator[Path]:
    with support.temporary_home() as folder:
        yield folder


@pytest.fixture
def daemon(home: Path) -> Iterator[Sandboxd]:
    with support.running_sandboxd(home) as running:
        yield running


@pytest.fixture
def backend(home: Path, daemon: Sandboxd) -> Iterator[support.SandboxdBackend]:
    found = support.client(home)
    yield found
    found.close()


def test_each_serves_one_job_and_nothing_of_it_reaches_the_next(home: Path) -> None:
    bundle = support.write_bundle(home, COUNTER)
    with support.running_sandboxd(home):
        backend = support.client(home)
        _serve_four(backend, bundle)
        backend.close()
    assert not leftovers(home)


def _serve_four(backend: support.SandboxdBackend, bundle: str) -> None:
    starts, values, ids = [], [], []

    def look(sandbox: Sandbox) -> None:
        starts.append(sandbox.start)
        ids.append(sandbox.id)

    for _ in range(4):
        support.warm_up(backend, warm_spec(bundle))
        outcome = support.run_job(backend, warm_spec(bundle), look=look)
        values.append(outcome.value)
        assert outcome.log == "set up\n", "what setup said comes with the job that got it"
        assert outcome.contents == {"mine": b"mine"}
    assert starts == ["warm"] * 4
    assert len(set(ids)) == 4
    assert [value[0] for value in values] == [2] * 4
    assert len({value[1] for value in values}) == 4
    assert [value[2] for value in values] == [[[], [], []]] * 4


def test_labels_name_no_job_and_sandboxd_knows_whose_it_is(
    home: Path, daemon: Sandboxd, backend: support.SandboxdBackend
) -> None:
    bundle = support.write_bundle(home, COUNTER)
    support.warm_up(backend, warm_spec(bundle))
    (container,) = containers(home)
    found = daemon.host._engine.inspect(container)
    assert found is not None
    labels = {name for name in found["Config"]["Labels"] if name.startswith(LABEL)}
    assert {f"{LABEL}.home", f"{LABEL}.sandbox", f"{LABEL}.bundle", f"{LABEL}.warm"} <= labels
    assert not labels & {f"{LABEL}.job", f"{LABEL}.attempt", f"{LABEL}.worker", f"{LABEL}.lease"}
    (item,) = backend.listing()
    assert item["owner"] is None
    sandbox = backend.create(warm_spec(bundle))
    assert sandbox.start == "warm"
    assert {item["owner"] for item in backend.listing() if item["id"] == sandbox.id} == {"test-worker"}
    assert support.pool_of(backend, bundle)["busy"] == 1
    sandbox.destroy()


def test_what_setup_used_is_not_the_jobs(home: Path, backend: support.SandboxdBackend) -> None:
    busy = with_setup("end = time.process_time() + 0.5\nwhile time.process_time() < end: pass\nbytearray(40 << 20)")
    bundle = support.write_bundle(home, busy)
    support.warm_up(backend, warm_spec(bundle))
    outcome = support.run_job(backend, warm_spec(bundle), look=lambda sandbox: _assert_warm(sandbox))
    assert outcome.remains is not None
    assert outcome.remains.usage["cpu_ms"] < 400
    if cgroups.version() == 1:  # version 2 keeps the highest since the start
        assert outcome.remains.usage["memory_peak"] < 40 * MIB


def _assert_warm(sandbox: Sandbox) -> None:
    assert (sandbox.start, sandbox.why) == ("warm", None)


def test_one_that_died_is_not_handed_out(home: Path, daemon: Sandboxd, backend: support.SandboxdBackend) -> None:
    for kill in (_kill_agent, _kill_first, _kill_container):
        bundle = support.write_bundle(home, COUNTER, {"which.txt": kill.__name__})
        support.warm_up(backend, warm_spec(bundle))
        (victim,) = [r for r in waiting(daemon) if r.template is not None and r.template.bundle == bundle]
        kill(victim)
        support.wait_until(lambda bundle=bundle: support.pool_of(backend, bundle)["lost"] == 1, "it was found")
        outcome = support.run_job(backend, warm_spec(bundle), look=lambda s, dead=victim.id: _assert_other(s, dead))
        assert outcome.value[0] == 2
        support.wait_until(lambda place=victim.site.root: not place.exists(), "it was cleared away")


def _assert_other(sandbox: Sandbox, dead: str) -> None:
    assert sandbox.id != dead
    assert sandbox.start == "cold"
    assert "setup failed" in (sandbox.why or "")


def _state(pid: int) -> str | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return None


def _kill_agent(running: Running) -> None:
    os.kill(agent(running), signal.SIGKILL)


def _kill_first(running: Running) -> None:
    signal.pidfd_send_signal(running.pidfd, signal.SIGKILL)


def _kill_container(running: Running) -> None:
    subprocess.run(["docker", "kill", running.container], check=True, capture_output=True)


def test_one_that_died_this_moment_is_not_handed_out(
    home: Path, daemon: Sandboxd, backend: support.SandboxdBackend
) -> None:
    bundle = support.write_bundle(home, COUNTER)
    support.warm_up(backend, warm_spec(bundle))
    (victim,) = waiting(daemon)
    victim.kill()
    assert victim.is_dead(10)
    sandbox = backend.create(warm_spec(bundle))  # nobody may have noticed yet
    assert sandbox.id != victim.id
    sandbox.destroy()


def test_a_wedged_one_is_not_handed_out(home: Path, daemon: Sandboxd, backend: support.SandboxdBackend) -> None:
    bundle = support.write_bundle(home, COUNTER)
    support.warm_up(backend, warm_spec(bundle))
    (victim,) = waiting(daemon)
    wedged = agent(victim)
    os.kill(wedged, signal.SIGSTOP)
    support.wait_until(lambda: _state(wedged) in ("T", None), "it stands still, or was found already")
    outcome = support.run_job(backend, warm_spec(bundle), look=lambda sandbox: _assert_other(sandbox, victim.id))
    assert outcome.value[0] == 2
    assert victim.is_dead(10)


SETUPS = {
    "raises": ("raise RuntimeError('no luck')", "no luck", "its setup raised an error"),
    "exits": ("os._exit(3)", "its process ended (exit code 3)", None),
    "memory": ("kept = [bytearray(1 << 20) for _ in range(4096)]", "it ran out of memory", None),
    "memory of a child": (
        "subprocess.run([sys.executable, '-c', 'kept = [bytearray(1 << 20) for _ in range(4096)]'])",
        "it ran out of memory",
        None,
    ),
    "processes": (
        "try:\n    for _ in range(64): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "except RuntimeError: pass",
        "it met its limit of processes",
        None,
    ),
    "spins": (
        "def spin():\n    while True: pass\nthreading.Thread(target=spin, daemon=True).start()",
        "it does not keep still after its setup",
        None,
    ),
    "garbage": (
        "for fd in range(3, 20):\n    try: os.write(fd, b'\\xff' * 64)\n    except OSError: pass",
        "the guest broke the protocol",
        None,
    ),
    "stops": ("os.kill(os.getpid(), 19)", "its process is stopped", None),
    "hangs": ("time.sleep(600)", "its setup took longer than 2 s", None),
}


@pytest.mark.parametrize("name", SETUPS)
def test_a_setup_that_goes_wrong_backs_off_and_its_jobs_say_why(
    home: Path, daemon: Sandboxd, backend: support.SandboxdBackend, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if name == "hangs":  # whatever else goes wrong does so in its own time
        monkeypatch.setattr(pools, "SETUP_S", 2.0)
    body, why, shown = SETUPS[name]
    bundle = support.write_bundle(home, with_setup(body))
    backend.create(warm_spec(bundle)).destroy()

    def gone_wrong() -> bool:
        pool = support.pool_of(backend, bundle)
        return bool(pool["failures"] + pool["lost"])

    support.wait_until(gone_wrong, "it went wrong", 60)
    pool = support.pool_of(backend, bundle)
    assert (pool["warm"], pool["filling"], pool["busy"]) == (0, 0, 0), "no other one is made at once"
    assert (shown or why) in pool["last_error"]
    sandbox = backend.create(warm_spec(bundle))
    assert sandbox.start == "cold"
    assert sandbox.why is not None
    assert sandbox.why.startswith("setup failed: ")
    assert why in sandbox.why
    sandbox.destroy()
    support.wait_until(lambda: not leftovers(home), "nothing is left")


def test_a_setup_that_says_a_lot_is_read_by_the_worker(home: Path, backend: support.SandboxdBackend) -> None:
    chatty = with_setup("for n in range(2_000): print('line', n)", "print('the job'); return 1")
    bundle = support.write_bundle(home, chatty)
    support.warm_up(backend, warm_spec(bundle))
    outcome = support.run_job(backend, warm_spec(bundle), look=_assert_warm)
    lines = outcome.log.splitlines()
    assert lines[:2] == ["line 0", "line 1"]
    assert lines[1_999:] == ["line 1999", "the job"]


def test_a_job_with_tighter_limits_starts_cold(home: Path, backend: support.SandboxdBackend) -> None:
    bundle = support.write_bundle(home, COUNTER)
    support.warm_up(backend, warm_spec(bundle))
    tightened = replace(warm_spec(bundle, memory=48 * MIB), warm=False)  # as a worker asks for it
    sandbox = backend.create(tightened)
    assert sandbox.start == "cold"
    sandbox.destroy()
    assert len(backend.pools()) == 1
    sandbox = backend.create(warm_spec(bundle, time_ms=500))
    assert sandbox.start == "warm", "time is the worker's to watch"
    sandbox.destroy()


def test_retiring_a_bundle_destroys_what_waits(home: Path, daemon: Sandboxd, backend: support.SandboxdBackend) -> None:
    bundle = support.write_bundle(home, COUNTER)
    other = support.write_bundle(home, COUNTER, {"other.txt": "x"})
    for each in (bundle, other):
        support.warm_up(backend, warm_spec(each))
    running = backend.create(warm_spec(bundle))
    support.warm_up(backend, warm_spec(bundle))
    assert backend.retire(bundle) == 1
    assert [r.template.bundle for r in waiting(daemon) if r.template is not None and not r.is_dead(5)] == [other]
    support.wait_until(lambda: len(containers(home)) == 2, "its container is gone")
    made = daemon.host.find(running.id)
    assert made is not None
    assert not made.is_dead(), "a job that runs goes on"
    running.destroy()
    with pytest.raises(PlatformFailure, match="64 hex digits"):
        backend.retire("x")


def test_the_end_of_a_session_leaves_what_waits(home: Path, daemon: Sandboxd) -> None:
    bundle = support.write_bundle(home, COUNTER)
    first, second = support.client(home, "w1"), support.client(home, "w2")
    support.warm_up(first, warm_spec(bundle))
    first.close()
    second.owner_gone("w1")
    assert len(waiting(daemon)) == 1
    sandbox = second.create(warm_spec(bundle))
    assert sandbox.start == "warm"
    second.close()
    running = daemon.host.find(sandbox.id)
    assert running is None or running.is_dead(10), "but takes along what it was given"


def test_two_workers_share_a_pool(home: Path) -> None:
    bundle = support.write_bundle(home, COUNTER)
    with support.running_sandboxd(home, pool={"min": 2, "max": 2}) as daemon:  # whatever the demand is measured to be
        workers = [support.client(home, name) for name in ("w1", "w2")]
        workers[0].create(warm_spec(bundle)).destroy()
        support.warm_up(workers[0], warm_spec(bundle), count=2)
        with ThreadPoolExecutor(2) as both:
            found = list(both.map(lambda worker: worker.create(warm_spec(bundle)), workers))
        assert [sandbox.start for sandbox in found] == ["warm", "warm"]
        assert found[0].id != found[1].id
        assert {daemon.host.find(sandbox.id).owner for sandbox in found} == {"w1", "w2"}  # type: ignore[union-attr]
        for worker in workers:
            worker.close()


def test_the_last_one_goes_to_the_higher_priority(home: Path) -> None:
    bundle = support.write_bundle(home, COUNTER)
    with support.running_sandboxd(home, pool={"max": 1}) as daemon:
        backend = support.client(home)
        support.warm_up(backend, warm_spec(bundle))
        (last,) = waiting(daemon)
        gate = daemon.supply.pools
        with gate.changed, ThreadPoolExecutor(3) as threads:  # nobody is served before all have asked
            asked = {n: threads.submit(backend.create, replace(warm_spec(bundle), priority=n)) for n in (2, 9, 5)}
            until = threading.Event()
            while len(gate._asked) < 3:
                until.wait(0.005)
            gate.changed.release()
            try:
                found = {priority: future.result() for priority, future in asked.items()}
            finally:
                gate.changed.acquire()
        assert [priority for priority, sandbox in found.items() if sandbox.id == last.id] == [9]
        for sandbox in found.values():
            sandbox.destroy()
        backend.close()


def test_the_budget_makes_room_by_eviction(home: Path) -> None:
    bundles = [support.write_bundle(home, COUNTER, {"which.txt": str(number)}) for number in range(2)]
    with support.running_sandboxd(home, pool={"memory": 30 * MIB}) as daemon:
        backend = support.client(home)
        support.warm_up(backend, warm_spec(bundles[0]))
        support.warm_up(backend, warm_spec(bundles[1]))
        assert support.pool_of(backend, bundles[0])["warm"] == 0
        assert support.pool_of(backend, bundles[0])["evictions"] == 1
        assert len(waiting(daemon)) == 1
        backend.close()


def test_a_job_gets_the_room_of_one_that_waits(home: Path) -> None:
    bundles = [support.write_bundle(home, COUNTER, {"which.txt": str(number)}) for number in range(2)]
    with support.running_sandboxd(home, max_running=2):
        backend = support.client(home)
        support.warm_up(backend, warm_spec(bundles[0]))
        made = [backend.create(support.spec(bundles[1], **SMALL)) for _ in range(2)]
        assert support.pool_of(backend, bundles[0])["evictions"] == 1
        with pytest.raises(PlatformFailure, match="limit"):
            backend.create(support.spec(bundles[1], **SMALL))
        for sandbox in made:
            sandbox.destroy()
        backend.close()


def test_who_waits_too_long_is_replaced_or_goes(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = support.write_bundle(home, COUNTER)
    opened: list[Pool] = []

    class Noted(Pool):
        """Kept here for its counts: a pool is forgotten once nothing waits, which may be before its first request is answered."""

        def __init__(self, key: Key) -> None:
            super().__init__(key)
            opened.append(self)

    monkeypatch.setattr(pools, "Pool", Noted)
    with support.running_sandboxd(home, pool={"idle": "2s"}):
        backend = support.client(home)
        backend.create(warm_spec(bundle)).destroy()
        (pool,) = opened
        counts = pool.counts
        support.wait_until(lambda: counts.expired >= 1, "one waited too long", 60)
        support.wait_until(lambda: backend.pools() == [], "the pool is forgotten", 60)
        assert opened == [pool]
        assert (counts.hits, counts.evicted, counts.lost, counts.failed) == (0, 0, 0, 0)
        support.wait_until(lambda: not leftovers(home), "nothing is left")
        backend.close()


def test_switched_off(home: Path) -> None:
    bundle = support.write_bundle(home, COUNTER)
    with support.running_sandboxd(home, pool={"enabled": False}):
        backend = support.client(home)
        for _ in range(2):
            sandbox = backend.create(warm_spec(bundle))
            assert (sandbox.start, sandbox.why) == ("cold", "the pool is off")
            sandbox.destroy()
        assert backend.pools() == []
        backend.close()


def test_killed_without_warning_who_waited_is_reaped_at_the_next_start(home: Path) -> None:
    code = "import sys; from cloche import config; from cloche.sandboxd.main import run; sys.exit(run(config.load(home=sys.argv[1])))"
    bundle = support.write_bundle(home, COUNTER)

    def start() -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", code, str(home)], stderr=subprocess.DEVNULL)
        probe = support.client(home, "probe")
        support.wait_until(lambda: probe.health() is None, "sandboxd is ready", support.READY_SECONDS)
        probe.close()
        return process

    first = start()
    backend = support.client(home)
    support.warm_up(backend, warm_spec(bundle))
    orphans = containers(home)
    assert len(orphans) == 1
    first.kill()
    first.wait(10)
    backend.close()
    assert containers(home) == orphans
    second = start()
    try:
        support.wait_until(lambda: not set(containers(home)) & set(orphans), "the orphan is gone")
    finally:
        second.terminate()
        assert second.wait(60) == 0
    assert not leftovers(home)


def test_nothing_leaks_over_many_jobs(home: Path) -> None:
    bundle = support.write_bundle(home, support.plugin("return 1"))
    kept = 2  # at all times, whatever the demand is measured to be: each that waits has its descriptors and mounts
    with support.running_sandboxd(home, pool={"min": kept, "max": kept}) as daemon:
        backend = support.client(home)

        def settled() -> bool:
            pool = support.pool_of(backend, bundle)
            counts = pool["warm"], pool["filling"], len(containers(home)), len(waiting(daemon))
            return counts == (kept, 0, kept, kept)

        def look() -> tuple[int, int, int]:
            support.wait_until(settled, "as many wait as ever, and all others are gone", 60)
            return len(os.listdir("/proc/self/fd")), threading.active_count(), len(syscalls.mounts_below(home))

        def jobs(count: int) -> None:
            for _ in range(count):
                support.run_job(backend, warm_spec(bundle))

        jobs(4)
        before = look()
        jobs(16)
        after = look()
        assert after[0] <= before[0] + 8
        assert after[1] <= before[1] + 2
        assert after[2] == before[2]
        backend.close()
