"""Level ``namespace`` on a real engine: who shares a container, when it is replaced, what it leaves, and what is done where it cannot be had."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cloche import config
from cloche.domain.jobs import ClaimedJob, RetryPolicy
from cloche.domain.limits import Limits
from cloche.domain.states import Reason
from cloche.errors import PlatformFailure, PluginFailure
from cloche.isolation.backend import Backend, Sandbox, SandboxSpec
from cloche.isolation.cell_spec import slot_memory
from cloche.sandboxd import cgroups, doctor_cells
from cloche.sandboxd.cells import slot_cgroup
from cloche.sandboxd.cells.cell import RunningCell
from cloche.sandboxd.cells.home import Bounds, Home
from cloche.sandboxd.cells.site import ContainerSite
from cloche.sandboxd.cells.slot import Cell, Slot, is_dead
from cloche.sandboxd.engine import Engine
from cloche.sandboxd.main import Sandboxd
from cloche.worker import conversation
from cloche.worker.conversation import Conversation
from cloche.worker.holds import Hold
from tests.support import sandbox as support
from tests.support.cells import runner

pytestmark = pytest.mark.docker
MIB = 1 << 20
SMALL = {"memory": 64 * MIB, "output": 2 * MIB, "tmp": 2 * MIB, "shm": MIB, "pids": 16}
WHERE = """
from pathlib import Path
from cloche_guest import hookimpl

seen = []

@hookimpl
def setup():
    seen.append("setup")

@hookimpl
def run(job):
    seen.append(job.id)
    before = sorted(str(p) for p in Path("/tmp").iterdir())
    Path("/tmp/left").write_text("x")
    (job.out / "left").write_text("x")
    return {"seen": len(seen), "before": before, "random": __import__("random").random()}
"""


@contextmanager
def cells(**settings: Any) -> Iterator[tuple[Path, Sandboxd, Backend]]:
    """A home, a sandboxd with these settings of its cells, a client."""
    with support.temporary_home() as home:
        daemon = Sandboxd(config.load(home=home, cells=settings))
        daemon.start()
        try:
            support.wait_until(lambda: daemon.host.health()["problem"] is None, "ready", support.READY_SECONDS)
            backend = support.client(home)
            try:
                yield home, daemon, backend
            finally:
                backend.close()
        finally:
            daemon.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[Path, Sandboxd, Backend]]:
    with cells() as made:
        yield made


def spec(bundle: str, **changes: Any) -> SandboxSpec:
    return replace(support.spec(bundle, "namespace", **SMALL), **changes)


@contextmanager
def sandbox(backend: Backend, of: SandboxSpec, level: str = "namespace") -> Iterator[Sandbox]:
    made = backend.create(of)
    try:
        assert made.level == level
        yield made
    finally:
        made.destroy()


def container_of(daemon: Sandboxd, made: Sandbox) -> str:
    running = daemon.host.find(made.id)
    assert running is not None
    return running.container


def test_each_job_has_a_fresh_cell_that_was_set_up_before_it(shared: tuple[Path, Sandboxd, Backend]) -> None:
    home, _, backend = shared
    bundle = support.write_bundle(home, WHERE)
    values = [support.run_job(backend, spec(bundle)).value for _ in range(4)]
    assert [value["seen"] for value in values] == [2] * 4
    assert [value["before"] for value in values] == [[]] * 4
    assert len({value["random"] for value in values}) == 4


def test_tenants_bundles_and_limits_never_share_a_container(shared: tuple[Path, Sandboxd, Backend]) -> None:
    home, daemon, backend = shared
    one, two = support.write_bundle(home, WHERE), support.write_bundle(home, WHERE + "\nother = 1\n")
    mine = spec(one)
    others = [
        replace(mine, tenant="01890000-0000-7000-8000-00000000beef"),
        replace(mine, bundle=two),
        replace(mine, limits=replace(mine.limits, memory=48 * MIB)),
        replace(mine, limits=replace(mine.limits, nofile=256)),
    ]
    with sandbox(backend, mine) as first, sandbox(backend, mine) as second:
        home_of_first = container_of(daemon, first)
        assert container_of(daemon, second) == home_of_first
        for other in others:
            with sandbox(backend, other) as made:
                assert container_of(daemon, made) != home_of_first
    with sandbox(backend, replace(mine, limits=replace(mine.limits, time_ms=1_000, log=1, result=9))) as made:
        assert container_of(daemon, made) == home_of_first, "what the worker watches over makes no other container"


def test_a_container_is_replaced_after_its_jobs() -> None:
    with cells(jobs=3) as (home, daemon, backend):
        bundle = support.write_bundle(home, WHERE)
        seen = []
        for _ in range(5):
            with sandbox(backend, spec(bundle)) as made:
                seen.append(container_of(daemon, made))
        assert seen[0] == seen[1] == seen[2]
        assert seen[3] == seen[4] != seen[0]
        support.wait_until(lambda: seen[0] not in support.containers_of(home), "the first container is gone")


@contextmanager
def asked_together(
    home: Path, daemon: Sandboxd, monkeypatch: pytest.MonkeyPatch, bundle: str, *asked: tuple[str, int]
) -> Iterator[list[Sandbox]]:
    """The only slot is preparing its next cell, and does not get on before all of these (an owner, a priority) wait for it; what each got."""
    gate, held, prepare = threading.Event(), threading.Event(), Slot.prepare

    def prepare_later(slot: Slot, limits: Limits) -> Cell:
        if threading.current_thread().name.startswith("cells-"):
            held.set()
            gate.wait(60)
        return prepare(slot, limits)

    monkeypatch.setattr(Slot, "prepare", prepare_later)
    clients = {owner: support.client(home, owner) for owner, _ in asked}
    first = clients[asked[0][0]].create(spec(bundle))
    assert first.level == "namespace"
    first.destroy()
    support.wait_until(held.is_set, "the slot prepares its next cell")
    cells = daemon.host.cells
    assert cells is not None
    line = cells._cells._line
    found: list[Sandbox] = []
    try:
        with ThreadPoolExecutor(len(asked)) as threads:
            futures = []
            for owner, priority in asked:
                futures.append(threads.submit(clients[owner].create, replace(spec(bundle), priority=priority)))
                support.wait_until(lambda so_far=len(futures): len(line._claims) == so_far, "it waits")
            gate.set()
            found = [future.result() for future in futures]
        yield found
    finally:
        gate.set()
        for made in found:
            made.destroy()
        for client in clients.values():
            client.close()


def test_the_next_cell_goes_to_the_higher_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    with cells(slots=1, containers=1) as (home, daemon, _):
        bundle = support.write_bundle(home, WHERE)
        asked = [("w1", priority) for priority in (2, 9, 5)]
        with asked_together(home, daemon, monkeypatch, bundle, *asked) as found:
            assert [made.level for made in found] == ["container", "namespace", "container"]
            assert found[1].start == "warm"


def test_owners_take_turns_at_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who had the last one comes after who had none, though it asked first."""
    with cells(slots=1, containers=1) as (home, daemon, _):
        bundle = support.write_bundle(home, WHERE)
        asked = [("greedy", 5), ("greedy", 5), ("modest", 5)]
        with asked_together(home, daemon, monkeypatch, bundle, *asked) as found:
            assert [made.level for made in found] == ["container", "container", "namespace"]


def test_a_container_is_replaced_when_it_is_old() -> None:
    """A job that runs then ends as ever, and none is lost."""
    with cells(lifetime="1s", idle="1h") as (home, daemon, backend):
        waits = """
import time
from pathlib import Path
from cloche_guest import hookimpl

@hookimpl
def run(job):
    while not Path("/job/in/go").exists():
        time.sleep(0.02)
    return "done"
"""
        bundle = support.write_bundle(home, waits)
        with sandbox(backend, spec(bundle)) as early:
            old = container_of(daemon, early)
            early.channel.send(support.job_frame(spec(bundle)))

            def replaced() -> bool:
                places: list[tuple[str, str]] = []
                done = support.run_job(
                    backend,
                    spec(bundle),
                    inputs={"go": b""},
                    look=lambda made: places.append((made.level, container_of(daemon, made))),
                )
                assert (done.value, places[0][0]) == ("done", "namespace")
                return places[0][1] != old

            support.wait_until(replaced, "another container takes the jobs that come", 60)
            assert old in support.containers_of(home), "a job runs in it"
            (early.in_folder / "go").write_text("")
            last = None
            while last is None or last["type"] != "result":
                last = early.channel.receive(20)
                assert last is not None
            assert last["value"] == "done"
            assert not early.finish().oom_killed
        support.wait_until(lambda: old not in support.containers_of(home), "it went with its last job", 60)


def test_a_container_that_nobody_needs_goes() -> None:
    with cells(idle="1s") as (home, daemon, backend):
        with sandbox(backend, spec(support.write_bundle(home, WHERE))) as made:
            container = container_of(daemon, made)
        support.wait_until(lambda: container not in support.containers_of(home), "it is gone")
        support.wait_until(lambda: daemon.host.health()["cells"]["containers"] == 0, "and is not counted any more")


def test_no_more_containers_than_allowed_and_the_idle_one_makes_room() -> None:
    with cells(containers=1) as (home, daemon, backend):
        one, two = (support.write_bundle(home, WHERE + f"\nnumber = {n}\n") for n in range(2))
        with sandbox(backend, spec(one)), sandbox(backend, spec(two), level="container"):
            assert daemon.host.health()["cells"]["containers"] == 1
        support.wait_until(lambda: daemon.host.health()["cells"]["ready"], "its next cell is ready")

        with sandbox(backend, spec(two)):
            assert daemon.host.health()["cells"]["containers"] == 1


def test_more_jobs_at_once_than_slots_get_containers_of_their_own() -> None:
    with cells(slots=2, containers=2) as (home, daemon, backend):
        bundle = support.write_bundle(home, WHERE)
        made = [backend.create(spec(bundle)) for _ in range(5)]
        try:
            assert [one.level for one in made] == ["namespace"] * 4 + ["container"]
            containers = [container_of(daemon, one) for one in made]
            assert len(set(containers[:4])) == 2
            uids = [running.uid for one in made if (running := daemon.host.find(one.id))]
            assert len(set(uids)) == 5
        finally:
            for one in made:
                one.destroy()


def test_switched_off_the_level_is_container() -> None:
    with cells(enabled=False) as (home, daemon, backend):
        bundle = support.write_bundle(home, WHERE)
        with sandbox(backend, spec(bundle), level="container"):
            assert daemon.host.health()["cells"] is None
            row = doctor_cells.check(config.load(home=home))
            assert (row.status, row.detail) == ("warn", "switched off in the sandboxd that runs")


def test_where_it_cannot_be_had_the_level_is_container(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Any) -> None:
        raise slot_cgroup.CgroupProblem("no cgroup controller pids")

    monkeypatch.setattr("cloche.sandboxd.cells.container.open_for_slots", refuse)
    with cells() as (home, daemon, backend):
        bundle = support.write_bundle(home, WHERE)
        assert support.run_job(backend, spec(bundle)).value["seen"] == 2
        facts = daemon.host.health()["cells"]
        assert facts["problem"] == "no cgroup controller pids"
        assert facts["containers"] == 0
        row = doctor_cells.check(config.load(home=home))
        assert (row.status, row.detail.rpartition(": ")[2]) == ("warn", "no cgroup controller pids")
        with sandbox(backend, spec(bundle), level="container") as made:

            def known() -> set[str]:
                """Those of jobs and of sandboxes that wait for one at level container, which are made meanwhile."""
                return {running.container for running in daemon.host.listing()}

            assert container_of(daemon, made) in support.containers_of(home)
            support.wait_until(lambda: set(support.containers_of(home)) == known(), "no container of cells is left", 60)


def with_setup(body: str) -> str:
    return f"import os, time\nfrom cloche_guest import hookimpl\n\n@hookimpl\ndef setup():\n    {body}\n\n@hookimpl\ndef run(job):\n    return 1\n"


def setup_outcome(made: Sandbox) -> tuple[str, str] | int | None:
    """What a worker learns while it waits for the plugin's setup: the reason and the message of a failure; or, of a guest that died, how."""
    job = ClaimedJob(
        id="job", tenant_id="t", type="p", plugin_version="1", plugin_digest="b" * 64, payload={}, inputs=(), outputs=(),
        limits=spec("0" * 64).limits.to_dict(), retry=RetryPolicy(), attempt=1, lease_until=0, submitted_by="u",
    )  # fmt: skip
    journal: Any = SimpleNamespace(tick=lambda: None)
    try:
        Conversation(made.channel, Hold(job), journal).await_ready()
    except PluginFailure as failure:
        assert not made.finish().oom_killed
        return str(failure.reason), failure.message
    except EOFError:
        return made.finish().exit_code
    raise AssertionError("it was set up")


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        ("raise ValueError('no luck')", ("plugin_failed", "the plugin could not be loaded: ValueError: no luck")),
        ("os._exit(4)", 4),
        ("os.kill(os.getpid(), 9)", -9),
        ("time.sleep(600)", ("timed_out", "the plugin's setup took longer than 2 s")),
    ],
)
def test_a_setup_that_fails_says_so_to_each_job(
    shared: tuple[Path, Sandboxd, Backend],
    monkeypatch: pytest.MonkeyPatch,
    body: str,
    outcome: tuple[str, str] | int,
) -> None:
    """And other jobs go on."""
    home, _, backend = shared
    bundle, works = support.write_bundle(home, with_setup(body)), support.write_bundle(home, WHERE)
    if "sleep" in body:
        monkeypatch.setattr(conversation, "SETUP_S", 2.0)
    for _ in range(3):
        with sandbox(backend, spec(bundle)) as made:
            assert support.run_job(backend, spec(works)).value["seen"] == 2
            assert setup_outcome(made) == outcome


@pytest.mark.parametrize(
    "body", ["raise ValueError('no luck')", "os._exit(4)", "os.kill(os.getpid(), 9)", "time.sleep(600)"]
)
def test_a_bad_setup_is_tried_again_for_jobs_alone(body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is why no pause is needed: at most two cells a job, one more for each slot, and none while nobody asks."""
    looks: list[Home] = []
    judge = Home.judge

    def counted(home: Home, bounds: Bounds, now: float) -> bool:
        looks.append(home)
        return judge(home, bounds, now)

    monkeypatch.setattr(Home, "judge", counted)
    monkeypatch.setattr("cloche.sandboxd.cells.pool._TICK_SECONDS", 0.05)
    with cells(slots=1) as (home, daemon, backend):
        bundle = support.write_bundle(home, with_setup(body))
        jobs = 4
        for _ in range(jobs):
            with sandbox(backend, spec(bundle)) as made:
                container = container_of(daemon, made)
        support.wait_until(lambda: daemon.host.health()["cells"]["ready"] == 1, "the last one was made")
        assert daemon.host.cells is not None
        (of_bundle,) = daemon.host.cells._cells._homes
        (slot,) = of_bundle.slots
        so_far = slot.made
        assert so_far <= 2 * jobs + 1
        before = len(looks)
        support.wait_until(lambda: len(looks) >= before + 20, "the keeper looked again and again", 60)
        assert (slot.made, daemon.host.health()["cells"]["ready"]) == (so_far, 1)
        assert support.containers_of(home) == [container]


def test_no_namespace_of_users_can_be_made_by_whoever_is_root_in_there(shared: tuple[Path, Sandboxd, Backend]) -> None:
    """The kernel's own count stops it, filter or no filter: tried from the host, as root of the cells' user namespace."""
    home, daemon, backend = shared
    with sandbox(backend, spec(support.write_bundle(home, WHERE))) as made:
        running = daemon.host.find(made.id)
        assert running is not None
        uid = running.uid

        def its_process() -> int | None:
            return next((int(name) for name in os.listdir("/proc") if name.isdigit() and _is_in(name, uid)), None)

        # One that was just made may still be at its mounts, as root.
        pid = support.wait_until(its_process, "its process has its user", 60)
        enter = ["nsenter", "--user", f"--target={pid}"]
        inside = subprocess.run([*enter, "unshare", "--mount", "true"], capture_output=True, text=True, check=False)
        assert inside.returncode == 0, inside.stderr
        further = subprocess.run([*enter, "unshare", "--user", "true"], capture_output=True, text=True, check=False)
        assert further.returncode != 0
        assert "No space left on device" in further.stderr


def _is_in(name: str, uid: int) -> bool:
    try:
        return f"Uid:\t{uid}\t" in Path("/proc", name, "status").read_text()
    except OSError:
        return False


def test_nothing_is_left_when_sandboxd_ends() -> None:
    taken: list[Path] = []
    with cells() as (home, daemon, backend):
        bundle = support.write_bundle(home, WHERE)
        support.run_job(backend, spec(bundle))
        kept = backend.create(spec(bundle))
        row = doctor_cells.check(config.load(home=home))
        assert (row.status, row.detail.split(",")[0]) == ("ok", "1 containers")
        running = daemon.host.find(kept.id)
        assert running is not None
        group = running.cgroup
        taken += [group.unified] if group.unified is not None else list(group.controllers.values())
        assert all(folder.exists() for folder in taken)
        assert Path("/run/cloche/uid-blocks").exists()
        folders = [running.site.root, running.site.folders.inputs]
    support.wait_until(lambda: not any(folder.exists() for folder in taken), "the slots' cgroups are gone")
    assert not any(folder.exists() for folder in folders)
    assert support.containers_of(home) == []


def test_a_slots_cgroup_is_below_its_containers(shared: tuple[Path, Sandboxd, Backend]) -> None:
    home, daemon, backend = shared
    with sandbox(backend, spec(support.write_bundle(home, WHERE))) as made:
        running = daemon.host.find(made.id)
        assert running is not None
        group = running.cgroup
        folder = group.unified or group.controllers["memory"]
        assert folder.name.startswith("slot-")
        assert running.container in str(folder.parent)
        agent = cgroups.of_process(_agent(folder))
        assert (agent.unified or agent.controllers["memory"]) != folder


def _agent(slot: Path) -> int:
    """The container's first process: in the cgroup above the slot's, or beside it."""
    for folder in (slot.parent, slot.parent / "agent"):
        if (folder / "cgroup.procs").exists() and (pids := (folder / "cgroup.procs").read_text().split()):
            return int(pids[0])
    raise AssertionError("no agent")


def test_an_anomaly_in_one_slot_costs_its_neighbour_an_attempt_and_nothing_more() -> None:
    """The container is destroyed while another job runs in it: that one fails by the platform, the worker's session and other jobs go on."""
    with cells() as (home, daemon, backend):
        waits = support.write_bundle(home, support.plugin("time.sleep(600)"))
        with (
            sandbox(backend, spec(waits)) as neighbour,
            sandbox(backend, replace(spec(waits), bundle=support.write_bundle(home, WHERE))),
        ):
            with sandbox(backend, spec(waits)) as lost:
                running = daemon.host.find(lost.id)
                assert isinstance(running, RunningCell)
                assert container_of(daemon, neighbour) == running.container
                container = running.container
                os.kill(runner(running), signal.SIGKILL)
                support.wait_until(lambda: running.is_dead(), "its cell died with its runner")
                with pytest.raises(PlatformFailure) as caught:
                    lost.finish()
                assert caught.value.reason == Reason.ENGINE_UNAVAILABLE
            support.wait_until(lambda: container not in support.containers_of(home), "the container is gone")
            with pytest.raises(PlatformFailure) as caught:
                neighbour.finish()
            assert caught.value.reason == Reason.ENGINE_UNAVAILABLE
        assert support.run_job(backend, spec(support.write_bundle(home, WHERE))).value["seen"] == 2


def test_nothing_of_a_container_is_let_go_of_while_anything_in_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the kernel's word: an engine that says it is about to remove it has not killed it yet."""
    with cells() as (home, daemon, backend):
        bundle = support.write_bundle(home, support.plugin("time.sleep(600)"))
        seen: list[bool] = []
        remove, give_up = Engine.remove, ContainerSite.remove
        with sandbox(backend, spec(bundle)) as made:
            running = daemon.host.find(made.id)
            assert isinstance(running, RunningCell)
            pid = _agent(running.cgroup.unified or running.cgroup.controllers["memory"])
            agent = os.pidfd_open(pid)
            os.kill(pid, signal.SIGSTOP)  # it does not see that its socket is closed

            def looked(site: ContainerSite) -> None:
                seen.append(is_dead(agent))
                give_up(site)

            monkeypatch.setattr(Engine, "remove", lambda engine, container: None)
            monkeypatch.setattr(ContainerSite, "remove", looked)
            assert daemon.host.cells is not None
            daemon.host.cells.condemn(running)
            support.wait_until(lambda: seen, "its folder goes", 60)
            monkeypatch.setattr(Engine, "remove", remove)
        os.close(agent)
        assert seen[0]
        daemon.host._engine.remove(running.container)


def test_a_runner_taken_for_memory_costs_no_neighbour() -> None:
    """Two jobs in one container; the runner of one dies as if its job had used up the memory; the other ends as ever."""
    with cells() as (home, daemon, backend):
        waits = support.write_bundle(home, support.plugin("time.sleep(600)"))
        with sandbox(backend, spec(waits)) as neighbour:
            with sandbox(backend, spec(waits)) as lost:
                running = daemon.host.find(lost.id)
                assert isinstance(running, RunningCell)
                container = running.container
                assert container_of(daemon, neighbour) == container
                counted = running.slot_cgroup.usage
                running.slot_cgroup.usage = lambda: {**counted(), "oom_kills": 1}  # type: ignore[method-assign]
                running.slot_cgroup.oom_kills = lambda: 1  # type: ignore[method-assign]
                os.kill(runner(running), signal.SIGKILL)
                support.wait_until(lambda: running.is_dead(), "its cell died with its runner")
            assert neighbour.usage()["memory_peak"] > 0
            neighbour.finish()
        support.wait_until(lambda: container not in support.containers_of(home), "it went when the last job had ended")


def test_no_room_for_another_cell_ends_no_neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    with cells() as (home, daemon, backend):
        bundle = support.write_bundle(home, support.plugin("time.sleep(600)"))
        with sandbox(backend, spec(bundle)) as neighbour:
            container = container_of(daemon, neighbour)

            def full(*_: Any) -> None:
                raise OSError(28, "No space left on device")

            monkeypatch.setattr("cloche.sandboxd.cells.site.mount_out", full)
            with sandbox(backend, spec(bundle), level="container"):
                assert neighbour.usage()["memory_peak"] > 0
            assert "No space left" in daemon.host.health()["cells"]["problem"]
            neighbour.finish()
        support.wait_until(lambda: container not in support.containers_of(home), "it went when the last job had ended")


@pytest.mark.parametrize("rest", [0, 3])
def test_cells_that_work_without_a_job_do_not_wait_for_one(rest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that rest now and then, so that no two looks in a row find them at work."""
    monkeypatch.setattr(
        "cloche.sandboxd.cells.slot._SETUP_CPU_MS", 500
    )  # a busy machine may not give it more in the test's time
    monkeypatch.setattr("cloche.sandboxd.cells.slot._IDLE_SHARE", 0.01)
    source = f"""
import os, time
from cloche_guest import hookimpl

@hookimpl
def setup():
    for _ in range(6):
        if os.fork() == 0:
            while True:
                until = time.monotonic() + 3
                while time.monotonic() < until:
                    pass
                time.sleep({rest})

@hookimpl
def run(job):
    return 1
"""
    with cells() as (home, daemon, backend):
        with sandbox(backend, spec(support.write_bundle(home, source))) as made:
            container = container_of(daemon, made)
        support.wait_until(lambda: container not in support.containers_of(home), "the container is gone", 90)


@pytest.fixture
def hung(shared: tuple[Path, Sandboxd, Backend]) -> Callable[[], str]:
    home, _, _ = shared
    return lambda: support.write_bundle(home, support.plugin("time.sleep(600)"))


def test_resizing_a_cell_is_bounded_by_what_its_slot_was_made_for(
    shared: tuple[Path, Sandboxd, Backend], hung: Callable[[], str]
) -> None:
    _, daemon, backend = shared
    with sandbox(backend, spec(hung())) as made:
        made.resize(48 * MIB, MIB)
        running = daemon.host.find(made.id)
        assert running is not None
        facts = os.statvfs(running.site.folders.out)
        assert facts.f_blocks * facts.f_frsize == MIB
        with pytest.raises(Exception, match="larger"):
            made.resize(65 * MIB, MIB)
    with sandbox(backend, spec(hung())) as again:
        running = daemon.host.find(again.id)
        assert running is not None
        group = running.cgroup
        file = group.unified / "memory.max" if group.unified else group.controllers["memory"] / "memory.limit_in_bytes"
        assert int(file.read_text()) == slot_memory(spec("0" * 64).limits), "the next cell has the whole again"


def test_what_dies_slowly_gets_all_the_cpu_and_the_next_cell_its_share_again(
    shared: tuple[Path, Sandboxd, Backend], hung: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job can leave so much for the kernel to take apart that its death, at its share of the CPU, would count as none."""
    _, daemon, backend = shared
    monkeypatch.setattr("cloche.sandboxd.running._QUICK_SECONDS", -1)  # every death is slow: the poll is not waited for
    bundle = hung()
    seen: list[str] = []
    with sandbox(backend, spec(bundle)) as made:
        running = daemon.host.find(made.id)
        assert isinstance(running, RunningCell)
        group = running.slot_cgroup.group
        file = group.unified / "cpu.max" if group.unified else group.controllers["cpu"] / "cpu.cfs_quota_us"
        bound = file.read_text()
        monkeypatch.setattr(
            RunningCell, "is_dead", lambda self, seconds=0: seconds > 0 and RunningCell._has_ended(self, seconds)
        )
        made.finish()
        seen.append(file.read_text().split()[0])
        monkeypatch.undo()
    assert seen in (["-1"], ["max"])
    with sandbox(backend, spec(bundle)) as again:
        running = daemon.host.find(again.id)
        assert isinstance(running, RunningCell)
        assert running.slot_cgroup.group == group, "the same slot"
        assert file.read_text() == bound


def test_cells_that_take_much_memory_while_they_wait_are_given_up() -> None:
    """All that wait have one budget together, whatever each may take when it has a job."""
    greedy = "from cloche_guest import hookimpl\nkept = []\n\n@hookimpl\ndef setup():\n    kept.append(bytearray(b'x' * (40 << 20)))\n\n"
    greedy += "@hookimpl\ndef run(job):\n    return len(kept[0])\n"
    with support.temporary_home() as home, support.running_sandboxd(home, pool={"memory": 30 * MIB}) as daemon:
        backend = support.client(home)
        try:
            modest, bundle = support.write_bundle(home, WHERE), support.write_bundle(home, greedy)
            support.run_job(backend, spec(modest))
            assert support.run_job(backend, spec(bundle)).value == 40 << 20
            support.wait_until(lambda: support.pool_of(backend, bundle).get("evictions"), "it is given up", 60)
            support.wait_until(lambda: not support.pool_of(backend, bundle), "its container goes", 60)
            assert support.pool_of(backend, modest)["warm"] == 1
            assert daemon.host.health()["cells"]["containers"] == 1
        finally:
            backend.close()
