"""What has to hold after every fault. Each check reads what it judges from the system itself and returns what is wrong, in words.

I1  every accepted job has exactly one terminal state, the one its kind has to reach; who asked to be told of it was told, in order
I2  one accepted result, of the final attempt, which had its secret; the secret is in no log
I3  no two attempts of a job alive for longer than a lease, and no output of an attempt that was given up
I4  the audit trail is valid; one terminal event for each job
I5  nothing is left: no lease, outbox row, queue entry, sandbox, container, mount, folder, cgroup; quotas count what is there
I6  running again within 3 s when only a process died, within 20 s of a host's or a store's return
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from sqlalchemy import Connection, func, select

from cloche.db import tables as t
from cloche.domain.events import Action, Trace
from cloche.domain.jobs import QUEUES
from cloche.domain.states import State
from cloche.isolation.client import SandboxdBackend
from cloche.queueing import scripts
from cloche.sandboxd import syscalls
from cloche.sandboxd.cgroups import ROOT
from cloche.sandboxd.places import home_digest
from tests.chaos.kinds import Asked
from tests.chaos.system import System
from tests.chaos.watcher import Watcher
from tests.support.sandbox import containers_of

ENDED_S = 240.0  # how long the last job may take after the load ended and the fault is over
TOLD_S = 150.0  # how long callbacks may take: what a dead scheduler had claimed is sent again after more than a minute
QUIET_S = 40.0  # how long leftovers may take to go
PROCESS_S, HOST_S = 3.0, 20.0
_TERMINAL = ("completed", "failed", "canceled")
_CANCELED = (
    "waiting",
    "stopped",
    State.BLOCKED.value,
)  # what a job was before its cancel ended it; "running" only asks for it
_CLEARED = ("job:complete", "job:fail")


@dataclass(frozen=True)
class Moment:
    """A death (``process``), or the return of a host or a store (``host``); ``at`` in seconds since the epoch. ``worker``: the one whose
    attempts it interrupted; None: anybody's."""

    at: float
    kind: str
    what: str
    worker: str | None = None

    @property
    def allowed_s(self) -> float:
        return PROCESS_S if self.kind == "process" else HOST_S


Wrong = list[str]


def all_ended(system: System, asked: Sequence[Asked]) -> Wrong:
    """I1, first half: wait for the ends."""
    deadline = time.monotonic() + ENDED_S
    waiting = {one.job_id for one in asked}
    while waiting and time.monotonic() < deadline:
        with closing(system.database()) as db:
            found = db.read(lambda c: c.execute(select(t.job.c.id).where(t.job.c.state.in_(_TERMINAL))).scalars().all())
        waiting -= set(found)
        if waiting:
            time.sleep(0.1)
    if not waiting:
        return []
    with closing(system.database()) as db:
        rows = db.read(lambda c: c.execute(select(t.job).where(t.job.c.id.in_(waiting))).mappings().all())
    states = Counter(f"{row['state']} ({row['reason']})" for row in rows)
    return [f"{len(waiting)} jobs have not ended within {ENDED_S:.0f} s: {dict(states)}"]


def check_ends(system: System, asked: Sequence[Asked]) -> Wrong:
    """I1: as the client sees them, each once."""
    wrong: Wrong = []
    for one in asked:
        job = system.client.get(f"/jobs/{one.job_id}").json()
        if job["status"] != one.expected:
            wrong.append(
                f"{one.kind} job {one.job_id} is {job['status']} ({job['reason']}), not {one.expected}: {job['error']}"
            )
    with closing(system.database()) as db:
        ids = db.read(lambda c: c.execute(select(t.job.c.id, t.job.c.payload)).all())
    numbers = Counter(payload["n"] for _, payload in ids if isinstance(payload, dict) and "n" in payload)
    wrong += [f"the client's request {n} made {count} jobs" for n, count in numbers.items() if n >= 0 and count > 1]
    missing = {one.job_id for one in asked} - {job_id for job_id, _ in ids}
    return wrong + [f"accepted job {job_id} is not in the database" for job_id in missing]


def check_callbacks(system: System, asked: Sequence[Asked]) -> tuple[Wrong, int]:
    """I1: each end was told at least once, the first before the second; and how often one came once more than it had to."""
    pending = select(func.count()).where(t.callback_delivery.c.status == "pending")
    until_settled = time.monotonic() + TOLD_S
    with closing(system.database()) as db:
        while db.read(lambda c: c.scalar(pending)) and time.monotonic() < until_settled:
            time.sleep(0.2)
    jobs = [one.job_id for one in asked if "callback" in one.body]
    rows = {job_id: system.client.get(f"/jobs/{job_id}/callbacks").json()["items"] for job_id in jobs}
    came: dict[str, list[int]] = defaultdict(list)
    ids: dict[tuple[str, int], set[str]] = defaultdict(set)
    for got in list(system.receiver.got):
        told = got.event["data"]
        came[told["id"]].append(told["number"])
        ids[told["id"], told["number"]].add(got.headers["webhook-id"])
    wrong: Wrong = []
    for job_id, items in rows.items():
        ends = int(system.client.get(f"/jobs/{job_id}").json()["run"])
        if sorted(item["number"] for item in items) != list(range(1, ends + 1)):
            wrong.append(f"job {job_id} has ended {ends} times and deliveries {items}")
        wrong += [f"job {job_id}: a callback is {item}" for item in items if item["status"] != "delivered"]
        first = list(dict.fromkeys(came[job_id]))
        if first != list(range(1, ends + 1)):
            wrong.append(f"job {job_id} has ended {ends} times, and its receiver was told of {came[job_id]}")
    wrong += [f"end {which} was told under {len(names)} ids" for which, names in ids.items() if len(names) != 1]
    tries = sum(item["attempts"] for items in rows.values() for item in items)
    return wrong, tries - sum(len(items) for items in rows.values())


def check_results(system: System, asked: Sequence[Asked]) -> Wrong:
    """I2."""
    wrong: Wrong = []
    key = hashlib.sha256(system.secret.encode()).hexdigest()
    for one in asked:
        job = system.client.get(f"/jobs/{one.job_id}").json()
        attempts = system.client.get(f"/jobs/{one.job_id}/attempts").json()["items"]
        accepted = [a["number"] for a in attempts if a["outcome"] == "completed"]
        if any(a["outcome"] is None for a in attempts):
            wrong.append(f"job {one.job_id} has ended and an attempt of it has not: {attempts}")
        if job["status"] != "completed":
            if accepted or job["result"] is not None:
                wrong.append(f"job {one.job_id} is {job['status']} and has a result")
            continue
        result = job["result"]
        if accepted != [job["attempt"]] or result["attempt"] != job["attempt"] or result["n"] != one.n:
            wrong.append(f"job {one.job_id}: attempt {job['attempt']}, accepted {accepted}, result {result}")
        if result["sha256"] != list(one.inputs):
            wrong.append(f"job {one.job_id} read other inputs than it was given")
        if result["key"] != key:
            wrong.append(f"job {one.job_id} had another secret than it was given")
    with closing(system.database()) as db:
        told = db.read(lambda c: c.execute(select(t.job_log.c.job_id, t.job_log.c.text)).all())
    return wrong + [f"the log of job {job_id} holds its secret" for job_id, text in told if system.secret in text]


def check_attempts(system: System, asked: Sequence[Asked], watcher: Watcher, lease_s: float) -> Wrong:
    """I3."""
    wrong = [
        f"two attempts of job …{job} were alive at once for {seconds:.1f} s"
        for job, seconds in watcher.overlaps.items()
        if seconds > lease_s
    ]
    for one in asked:
        if one.kind != "files":
            continue
        job = system.client.get(f"/jobs/{one.job_id}").json()
        outputs = system.client.get(f"/jobs/{one.job_id}/outputs").json()["items"]
        if job["status"] == "completed" and len(outputs) != len(one.inputs):
            wrong.append(f"job {one.job_id} shows {len(outputs)} outputs, not {len(one.inputs)}")
        for output, digest in zip(sorted(outputs, key=lambda out: out["path"]), one.inputs, strict=False):
            text = f"{digest} by attempt {job['attempt']}\n"
            if output["sha256"] != hashlib.sha256(text.encode()).hexdigest():
                wrong.append(f"job {one.job_id} shows {output['path']} of another attempt than {job['attempt']}")
    return wrong


def check_audit(system: System, asked: Sequence[Asked]) -> Wrong:
    """I4."""
    deadline = time.monotonic() + QUIET_S
    while True:
        verdict = system.client.get("/audit/verify").json()
        if (verdict["status"] == "valid" and verdict["unsealed"] == 0) or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    wrong = [] if verdict["status"] == "valid" and verdict["unsealed"] == 0 else [f"audit: {verdict}"]
    offline = subprocess.run(
        [sys.executable, "-m", "cloche", "audit", "verify"],
        env=system.environment(), capture_output=True, text=True, check=False, cwd=system.home,
    )  # fmt: skip
    if offline.returncode != 0:
        wrong.append(f"audit verify exits {offline.returncode}: {offline.stdout[-500:]} {offline.stderr[-500:]}")
    with closing(system.database()) as db:
        events = db.read(_audit_events)
        traces = db.read(_terminal_traces)
    for one in asked:
        mine = sorted(events[f"job:{one.job_id}"])
        if [seq for seq, _, _ in mine] != list(range(1, len(mine) + 1)):
            wrong.append(f"job {one.job_id}: audit events numbered {[seq for seq, _, _ in mine]}")
        ends = [action for _, action, was in mine if action in _CLEARED or was in _CANCELED]
        runs = 1 + sum(1 for _, action, _ in mine if action == Action.JOB_RERUN.value)
        if len(ends) != runs:
            wrong.append(f"job {one.job_id}: {len(ends)} terminal audit events {ends} of {runs} runs")
        if traces[one.job_id] != runs:
            wrong.append(f"job {one.job_id}: {traces[one.job_id]} terminal trace events of {runs} runs")
    return wrong


def check_rest(system: System) -> Wrong:
    """I5 while the system runs on: what belongs to jobs is gone; sandboxes that wait for a job may stay."""
    deadline = time.monotonic() + QUIET_S
    while (wrong := _rest(system)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return wrong


def check_stopped(system: System) -> Wrong:
    """I5 after an orderly stop."""
    digest = home_digest(system.home)
    wrong = [f"process {pid}" for pid in system.processes()]
    wrong += [f"container {found[:12]}" for found in containers_of(system.home)]
    wrong += [f"mount {point}" for point in syscalls.mounts_below(system.home)]
    for folder in (system.home / "sandboxes", system.home / "work"):
        wrong += [f"folder {path}" for path in folder.glob("*")]
    wrong += [f"cgroup {path}" for path in Path(ROOT).glob(f"*/cloche/{digest}/*") if path.is_dir()]
    return wrong


def check_recovery(system: System, moments: Iterable[Moment]) -> tuple[Wrong, dict[str, float]]:
    """I6: for each moment, when what it interrupted ran again; where it interrupted nothing, when the next job ran. To run: in its sandbox.

    Returns what is wrong and the longest time in seconds of each kind of moment.
    """
    with closing(system.database()) as db:
        attempts = db.read(_attempts)
    wrong: Wrong = []
    longest: dict[str, float] = {}
    for moment in moments:
        found = _again(attempts, moment)
        if found is None:
            continue
        took, last = found
        longest[moment.kind] = max(longest.get(moment.kind, 0.0), took)
        if took > moment.allowed_s:
            wrong.append(f"{moment.what}: running again after {took:.1f} s, allowed {moment.allowed_s:.0f} s ({last})")
    return wrong, longest


@dataclass(frozen=True)
class _Try:
    job_id: str
    number: int
    worker: str | None
    began: float
    ended: float
    ran: float | None  # since when the plugin was at work; None: it never was
    cut: bool  # by a failure of the platform


def _again(attempts: Sequence[_Try], moment: Moment) -> tuple[float, str] | None:
    """In how many seconds the last of what the moment interrupted ran again, and which that was, in words."""
    by_job: dict[str, list[_Try]] = defaultdict(list)
    for one in attempts:
        by_job[one.job_id].append(one)
    theirs = [one for one in attempts if moment.worker in (None, one.worker)]
    found: list[tuple[float, str]] = []
    for one in (one for one in theirs if one.cut and one.began <= moment.at <= one.ended):
        later = [two for two in by_job[one.job_id] if two.number > one.number and two.ran]
        if later:
            two = min(later, key=lambda two: two.ran or 0.0)
            seconds = [round((at or 0.0) - moment.at, 2) for at in (one.ended, two.began, two.ran)]
            words = f"job {one.job_id}: attempt {one.number} was given up at {{}} s, attempt {two.number} claimed at {{}} s, ran at {{}} s"
            found.append(((two.ran or 0.0) - moment.at, words.format(*seconds)))
    if found:
        return max(found)
    ran = min((one.ran for one in attempts if one.ran and one.ran >= moment.at), default=None)
    return None if ran is None else (ran - moment.at, "it interrupted nothing; the next job ran then")


def _attempts(connection: Connection) -> list[_Try]:
    event = t.trace_event
    started = select(event.c.job_id, event.c.attempt, event.c.at).where(event.c.event_type == Trace.STARTED.value)
    ran = {(job_id, number): at / 1000 for job_id, number, at in connection.execute(started)}
    return [
        _Try(
            row["job_id"],
            row["number"],
            row["worker_id"],
            row["started_at"] / 1000,
            (row["finished_at"] or 0) / 1000 or float("inf"),
            ran.get((row["job_id"], row["number"])),
            row["outcome"] == "abandoned" or (row["reason"] or "") in _PLATFORM,
        )
        for row in connection.execute(select(t.attempt)).mappings()
    ]


_PLATFORM = ("engine_unavailable", "platform_failed", "storage_failed", "worker_stopped", "lease_lapsed")


def _audit_events(connection: Connection) -> dict[str, list[tuple[int, str, Any]]]:
    event = t.audit_event
    query = select(event.c.object, event.c.object_seq, event.c.action, event.c.details).where(
        event.c.object.like("job:%")
    )
    found: dict[str, list[tuple[int, str, Any]]] = defaultdict(list)
    for name, seq, action, details in connection.execute(query):
        found[name].append((seq, action, json.loads(details or "{}").get("was")))
    return found


def _terminal_traces(connection: Connection) -> Counter[str]:
    event = t.trace_event
    query = select(event.c.job_id, func.count()).where(event.c.event_type.in_(_TERMINAL)).group_by(event.c.job_id)
    return Counter({job_id: count for job_id, count in connection.execute(query)})


def _rest(system: System) -> Wrong:
    wrong: Wrong = []
    with closing(system.database()) as db:
        held = db.read(lambda c: c.scalar(select(func.count()).where(t.job.c.lease_owner.is_not(None))))
        outbox = db.read(lambda c: c.scalar(select(func.count()).select_from(t.outbox)))
        leases = db.read(lambda c: set(c.execute(select(t.lease.c.name)).scalars()))
    wrong += _counted(system)
    if held or outbox or leases - {"sealer"}:
        wrong.append(f"{held} leases held, {outbox} outbox rows, process leases {leases}")
    with redis.Redis.from_url(system.redis_url, decode_responses=True) as client:
        keys = {
            key for key in client.scan_iter() if client.ttl(key) == -1
        }  # others, such as counts of sign-ins, go by themselves
    # Of a queue its rules stay, and perhaps tokens that wake whoever waits; a ready job or one in flight has a key of its own.
    known = {scripts.EPOCH, scripts.EVENTS, scripts.QUEUES}
    known |= {key(queue) for queue in QUEUES for key in (scripts.rules_key, scripts.wake_key)}
    if keys - known:
        wrong.append(f"keys left in the index: {sorted(keys - known)}")
    with closing(SandboxdBackend(system.home / "run" / "sandboxd.sock", "chaos")) as sandboxd:
        items = sandboxd.listing()
    wrong += [f"sandbox {item['id']} of {item['owner']}" for item in items if item["owner"] is not None]
    work = system.home / "work"
    wrong += [f"file {path}" for path in work.glob("*/*") if not path.name.startswith(".")]
    with closing(system.database()) as db:
        pids = dict(db.read(lambda c: [(row.id, row.pid) for row in c.execute(select(t.worker.c.id, t.worker.c.pid))]))
    # A worker's own folder lives as long as it does.
    left = [path for path in work.glob("*") if not Path(f"/proc/{pids.get(path.name, 0)}").exists()]
    return wrong + [f"folder {path} of a worker that is gone" for path in left]


def _counted(system: System) -> Wrong:
    """What the tenant's quota counts are the jobs that have not ended, and the files that are stored."""
    used = system.client.get("/usage/limits").json()["tenant"]
    with closing(system.database()) as db:
        live = db.read(lambda c: c.scalar(select(func.count()).where(t.job.c.state.not_in(_TERMINAL))))
        stored = db.read(lambda c: c.scalar(select(func.coalesce(func.sum(t.artifact.c.size), 0))))
    found = used["jobs"]["used"], used["storage_bytes"]["used"]
    return [] if found == (live, stored) else [f"quotas count {found} jobs and bytes, and there are {(live, stored)}"]
