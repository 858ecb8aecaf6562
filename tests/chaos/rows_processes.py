"""Rows in which a process of ours dies or stops."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import redis
from sqlalchemy import func, select

from cloche.db import tables as t
from cloche.domain.events import Action
from cloche.failpoints import Point
from cloche.queueing.broker import Ready
from cloche.queueing.redis_broker import RedisBroker
from tests.chaos.kinds import Asked
from tests.chaos.matrix import HIT_S, Fault, Row, Scene
from tests.chaos.system import START_S, kill
from tests.support.stores import until

_GRACE_S = 1
_TIMES = 3
PATIENT_S = 120.0  # for what happens at once on a machine that does nothing else
_PAUSE = {"failpoints": f"{Point.WORKER_STORED}=pause:10"}  # until it is stopped, which has to come first
_SHORT_LEASE = {**_PAUSE, "worker_lease": "8s", "worker_heartbeat": "1s"}
_MEMORY = Path("/sys/fs/cgroup/memory")


def of(prefix: str) -> tuple[Point, ...]:
    return tuple(point for point in Point if point.startswith(f"{prefix}."))


def at(name: str, title: str, names: tuple[Point, ...], kind: str = "quick", **more: Any) -> Row:
    """A row that lets a process die at each of these, as jobs of that kind come to it."""

    def fault(scene: Scene) -> None:
        for point in names:
            scene.hit(point, kind)

    return Row(name, title, fault, points=names, **more)


def kill_often(role: str, times: int = 3) -> Fault:
    def fault(scene: Scene) -> None:
        for turn in range(times):
            scene.load.wait_for((turn + 1) / (times + 1))
            scene.kill(role)

    return fault


def _stop_workers(scene: Scene) -> None:
    """SIGTERM to each worker while it has a job that outlives its grace; the supervisor starts another."""
    for pid in scene.system.pids("worker"):
        scene.load.more("long")
        _running(scene, "long")
        worker = _worker_id(scene, pid)
        os.kill(pid, signal.SIGTERM)
        # What still runs when its grace is over is what it interrupts.
        scene.died("worker stopped", time.time() + _GRACE_S, worker)
        until(lambda gone=pid: not Path(f"/proc/{gone}").exists(), PATIENT_S, "the worker has stopped")


def _batch_points(scene: Scene) -> None:
    scene.hit(Point.BATCH_COMMITTED, "batch")
    scene.hit(Point.BATCH_PUSHED, "batch")
    # Not timed: the batch's own jobs hold every slot for as long as its client has not repeated the cancel.
    scene.hit(Point.BATCH_ASKED, "called-off", timed=False)


def _crowd_point(scene: Scene) -> None:
    scene.settle()
    scene.system.arm(Point.SWEEPER_TOLD)
    scene.load.more("crowd")
    scene.died(
        "sweeper.told", until(lambda: scene.system.fired(Point.SWEEPER_TOLD), HIT_S, "the rest of a crowd is told")
    )


_SCHEDULER = (
    Point.RELAY_PUSHED,
    Point.SWEEPER_DUE,
    Point.SEALER_PREPARED,
    Point.SEALER_WRITTEN,
    Point.INDEX_PUSHED,
)


def _scheduler_points(scene: Scene) -> None:
    scene.hit(Point.RELAY_PUSHED)
    scene.hit(Point.SWEEPER_DUE, "fail")
    scene.hit(Point.SEALER_PREPARED)
    scene.hit(Point.SEALER_WRITTEN)
    scene.system.arm(Point.INDEX_PUSHED)
    with redis.Redis.from_url(scene.system.redis_url) as client:
        client.flushall()
    scene.died("index.pushed", until(lambda: scene.system.fired(Point.INDEX_PUSHED), PATIENT_S, "the index is rebuilt"))
    scene.load.more("quick")


def _power_cut(scene: Scene) -> None:
    scene.load.wait_for(0.5)
    _running(scene)
    scene.system.kill_everything()
    scene.system.launch()
    scene.system.stack.wait_ready(START_S)
    scene.returned("everything killed, started again")


def _supervisor_point(scene: Scene) -> None:
    """A worker dies, and its supervisor between giving its leases back and saying so: that ends everything."""
    scene.load.wait_for(0.3)
    _running(scene)
    scene.system.arm(Point.LEASES_RELEASED)
    kill(scene.system.pids("worker")[0])
    scene.system.stack.process.wait(PATIENT_S)
    scene.system.launch()
    scene.system.stack.wait_ready(START_S)
    scene.returned("supervisor killed, started again")


def _zombie(stop_s: float) -> Fault:
    """A worker that stands still at its last write, past its lease, and then goes on."""

    def fault(scene: Scene) -> None:
        before = _stale_writes(scene)
        scene.system.arm(Point.WORKER_STORED)
        while scene.system.fired(Point.WORKER_STORED) is None:
            if scene.load.waiting() < 8:
                scene.load.more("files")
            time.sleep(0.02)
        zombie = scene.system.who_fired(Point.WORKER_STORED)
        scene.system.stop_process(zombie, writing=False)
        time.sleep(stop_s)
        until(lambda: scene.load.waiting() == 0 and not scene.load.busy, PATIENT_S, "others have finished its job")
        os.kill(zombie, signal.SIGCONT)
        until(lambda: _stale_writes(scene) > before, PATIENT_S, "its write is refused and audited")
        scene.notes.append(f"stood still for {stop_s:.0f} s; its write was refused and audited")

    return fault


def _stand_still(scene: Scene) -> None:
    """A worker stopped in mid-transaction, so that nobody can write to SQLite until its supervisor has killed it."""
    scene.load.wait_for(0.4)
    _running(scene)
    pid = scene.rng.choice(scene.system.supervised("worker"))
    scene.system.stop_process(pid, writing=True)
    began = time.monotonic()
    until(lambda: not Path(f"/proc/{pid}").exists(), PATIENT_S, "the supervisor has killed it")
    scene.died("the worker that stood still, killed")
    scene.notes.append(f"killed after {time.monotonic() - began:.0f} s")


def _stale_writes(scene: Scene) -> int:
    with closing(scene.system.database()) as db:
        event = t.audit_event
        query = select(func.count()).where(event.c.action == Action.JOB_STALE_WRITE.value)
        return int(db.read(lambda connection: connection.scalar(query)) or 0)


def _host_lost(scene: Scene) -> None:
    """A worker that no supervisor watches dies with what it holds, so that its leases have to lapse; once the sweeper dies over it too."""
    for over in (None, Point.SWEEPER_CONFIRMED):
        scene.settle()
        worker = scene.system.spawn("worker", "--slots", "2")
        scene.give_work(worker.pid)
        if over is not None:
            scene.system.arm(over)
        scene.returned("a worker without a supervisor killed", kill(worker.pid))
        worker.wait(PATIENT_S)
        until(lambda gone=worker.pid: not scene.held_by(gone), PATIENT_S, "its leases are taken back")
        assert over is None or scene.system.fired(over)
    scene.give_work(scene.system.spawn("worker", "--slots", "2").pid)  # the host is back, and cleans up


def _poison(scene: Scene) -> None:
    """A job after which its worker dies, each time: a dead letter after the third."""
    poison = scene.load.more("poison")
    for _ in range(3):
        pid = until(lambda: _worker_of(scene, poison), PATIENT_S, "the poison job runs")
        scene.died("worker killed by its job", kill(pid))
        until(lambda gone=pid: _worker_of(scene, poison) != gone, PATIENT_S, "its lease is given back")
        scene.settle(poison.job_id)
    scene.notes.append("dead letter after 3 workers")


def _worker_id(scene: Scene, pid: int) -> str:
    with closing(scene.system.database()) as db:
        query = select(t.worker.c.id).where(t.worker.c.pid == pid, t.worker.c.status != "dead")
        return db.read(lambda connection: connection.execute(query).scalar_one())


def _worker_of(scene: Scene, asked: Asked) -> int | None:
    with closing(scene.system.database()) as db:
        query = (
            select(t.worker.c.pid).join(t.job, t.job.c.lease_owner == t.worker.c.id).where(t.job.c.id == asked.job_id)
        )
        return db.read(lambda connection: connection.scalar(query))


def _twins(scene: Scene) -> None:
    """A second scheduler beside the first, one of the two killed now and then: two sweepers, relays and sealers."""
    scene.system.spawn("scheduler")
    for turn in range(3):
        scene.load.wait_for((turn + 1) / 4)
        with redis.Redis.from_url(scene.system.redis_url) as client:
            client.flushall()
    kill(scene.system.pids("scheduler")[0])
    scene.died("one of two schedulers killed")


def _thrice(scene: Scene) -> None:
    """Every id is pushed three times more, whatever has become of the job; and once all have ended, again."""
    pushed: Counter[str] = Counter()
    every = select(t.job.c.id, t.job.c.queue, t.job.c.tenant_id)

    def push(times: int) -> bool:
        """Whether there was an id that has been pushed less often."""
        with closing(scene.system.database()) as db:
            rows = db.read(lambda c: c.execute(every).all())
        jobs = [Ready(*row, 0) for row in rows if pushed[row.id] < times]
        with closing(RedisBroker(scene.system.redis_url)) as broker:
            broker.push(jobs)
        pushed.update(job.job_id for job in jobs)
        time.sleep(0.1)
        return bool(jobs)

    while push(_TIMES) or scene.load.busy or scene.load.waiting():
        pass
    while push(2 * _TIMES):
        pass
    scene.notes.append(f"{sum(pushed.values())} pushes")


def _worker_out_of_memory(scene: Scene) -> None:
    scene.load.wait_for(0.3)
    group = _MEMORY / f"chaos-{os.getpid()}"
    group.mkdir()
    try:
        pid = scene.rng.choice(scene.system.pids("worker"))
        # What it uses already counts where it was; a quarter of a megabyte more is soon asked for.
        (group / "memory.limit_in_bytes").write_text(str(1 << 18))
        (group / "cgroup.procs").write_text(str(pid))
        scene.died("worker out of memory", _dead_at(scene, pid))
    finally:
        for left in (group / "cgroup.procs").read_text().split():
            (_MEMORY / "cgroup.procs").write_text(left)
        group.rmdir()


def _dead_at(scene: Scene, pid: int) -> float:
    """When the process died, jobs being added until it does."""
    deadline = time.monotonic() + PATIENT_S
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, "the worker lives on"
        if scene.load.waiting() < 6:
            scene.load.more("files")
        time.sleep(0.02)
    return time.time()


def _guests_out_of_memory(scene: Scene) -> None:
    for _ in range(4):
        scene.load.more("oom")


def _running(scene: Scene, kind: str = "") -> None:
    """Return when a job (of that kind) is being processed."""

    def found() -> bool:
        mine = {one.job_id for one in scene.load.asked if not kind or one.kind == kind}
        with closing(scene.system.database()) as db:
            busy = db.read(lambda c: set(c.execute(select(t.job.c.id).where(t.job.c.state == "processing")).scalars()))
        return bool(busy & mine)

    if not kind:
        scene.load.more("sleep")
    until(found, PATIENT_S, "a job is being processed")


ROWS = (
    Row("worker-kill", "`kill -9` of a worker, any moment", kill_often("worker")),
    at("worker-points", "`kill -9` of a worker at every failpoint", of("worker"), "files", short=12),
    Row("worker-term", "SIGTERM to each worker in mid-job", _stop_workers, {"worker_grace": f"{_GRACE_S}s"}),
    Row(
        "host-lost",
        "`kill -9` of a worker without a supervisor, and of the sweeper as it takes its leases back",
        _host_lost,
        points=(Point.SWEEPER_CONFIRMED,),
    ),
    Row("worker-oom", "a worker out of memory in its cgroup", _worker_out_of_memory),
    Row("guest-oom", "guests out of memory", _guests_out_of_memory),
    Row("poison", "a job that kills its worker", _poison, short=6),
    Row("zombie", "a worker stopped 60 s past its lease, then continued", _zombie(75), _PAUSE),
    Row("zombie-short", "the same with a lease of 8 s", _zombie(11), _SHORT_LEASE, short=8, lease_s=8),
    Row(
        "worker-stands",
        "a worker stopped in mid-transaction, which nobody continues",
        _stand_still,
        {"worker_lease": "8s", "worker_heartbeat": "1s"},
        lease_s=8,
    ),
    Row("sandboxd-kill", "`kill -9` of sandboxd, any moment", kill_often("sandboxd", 2)),
    at("sandboxd-points", "`kill -9` of sandboxd at every failpoint", of("sandboxd"), "box"),
    Row("scheduler-kill", "`kill -9` of the scheduler, any moment", kill_often("scheduler")),
    Row(
        "scheduler-points",
        "`kill -9` of relay, sweeper and sealer at every failpoint",
        _scheduler_points,
        short=8,
        points=_SCHEDULER,
        callbacks=False,  # what a dead scheduler had claimed is sent after a minute: rows that CI does not wait for see to that
    ),
    at(
        "callback-points",
        "`kill -9` of the scheduler between a callback's claim, sending and record",
        of("callback"),
        "told",
    ),
    Row(
        "crowd-point",
        "`kill -9` of the sweeper as it tells 520 dependents of an end",
        _crowd_point,
        points=(Point.SWEEPER_TOLD,),
    ),
    Row("schedulers-two", "two sweepers, relays and sealers at once, one killed", _twins),
    at(
        "web-points",
        "`kill -9` of web between commit, push and answer; the client repeats with its key",
        of("web"),
        short=8,
    ),
    Row(
        "batch-points", "the same with batches, and with the cancel of one", _batch_points, short=6, points=of("batch")
    ),
    Row("web-kill", "`kill -9` of web, any moment", kill_often("web")),
    Row(
        "supervisor-point",
        "`kill -9` of the supervisor as it gives a dead worker's leases back",
        _supervisor_point,
        points=(Point.LEASES_RELEASED,),
    ),
    Row("power-cut", "`kill -9` of everything at once, then a new start", _power_cut, short=8),
    Row("pushed-thrice", "every id pushed three times, again and again", _thrice),
)
