"""`./run bench peers`: when a job runs again whose worker was killed with `kill -9`, here and at other job queues.

Each row has a Redis of its own, two workers of one job at a time, and jobs of two seconds; a worker that is gone is started again, as a
service manager would. Where a worker has a process of its own for the job, there are two rows: that process alone killed, and the worker with all its
processes. Rows are measured at the same time, each watched until all its jobs have ended or the time is over: nearly all of it is waiting.

The peers are installed from the package index, each into an environment of its own, in a temporary folder.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.figures import Row
from bench.held import below
from bench.peers.marks import JOB_S, TICK
from bench.stack import stack

APPS = Path(__file__).parent / "peers"
JOBS = 8  # of two seconds, on two workers
_AGAIN_S = 1.0  # a worker that is gone is started after this time
_TICK_S = 5.0  # a job of no duration comes this often: the queue is in use while we wait
_START_S = 180.0  # for the first job: many programs start on a machine of few processors
JOB, WORKER = "the job's process", "the whole worker"


@dataclass(frozen=True)
class Peer:
    """`worker` is the command, `{n}` the worker's number in it; `settings` are read by the peer's module in `bench/peers`."""

    name: str
    packages: tuple[str, ...]
    module: str
    worker: str
    said: str
    settings: Mapping[str, str] = field(default_factory=dict)
    kills: tuple[str, ...] = (JOB, WORKER)

    @property
    def named(self) -> str:
        """With the versions of what is pinned."""
        pinned = [package.split("==") for package in self.packages if "==" in package]
        more = [f", {name} {version}" for name, version in pinned[1:]]
        return f"{self.name} {pinned[0][1]}{''.join(more)}"


_RQ = ("rq==3.0.0",)
_CELERY = ("celery[redis]==5.7.0",)
_SAQ = ("saq[redis]==0.26.4", "typing_extensions")
_TASKIQ = ("taskiq==0.13.0", "taskiq-redis==1.2.4")
_CELERY_RUN = "celery -A celery_app worker --concurrency 1 --hostname worker{n} --loglevel ERROR"
_TASKIQ_RUN = "taskiq worker taskiq_app:broker --workers 1 --max-async-tasks 1 --log-level ERROR"
PEERS = (
    Peer("RQ", _RQ, "rq_app", "rq worker --url {url}", "defaults"),
    Peer("RQ", _RQ, "rq_app", "rq worker --url {url}", "`Retry(max=3)`", {"RETRY": "3"}),
    Peer("Celery", _CELERY, "celery_app", _CELERY_RUN, "defaults"),
    Peer(
        "Celery",
        _CELERY,
        "celery_app",
        _CELERY_RUN,
        "`task_acks_late`, `task_reject_on_worker_lost`",
        {"LATE": "1"},
    ),
    Peer(
        "Celery",
        _CELERY,
        "celery_app",
        _CELERY_RUN,
        "`task_acks_late`, `task_reject_on_worker_lost`, `visibility_timeout` 60 s",
        {"LATE": "1", "VISIBILITY": "60"},
    ),
    Peer(
        "Dramatiq",
        ("dramatiq[redis]==2.2.1",),
        "dramatiq_app",
        "dramatiq dramatiq_app --processes 1 --threads 1",
        "defaults",
    ),
    Peer("Huey", ("huey==3.5.4", "redis"), "huey_app", "huey_consumer huey_app.huey", "defaults", kills=(WORKER,)),
    Peer("arq", ("arq==0.28.0",), "arq_app", "arq arq_app.WorkerSettings", "defaults", kills=(WORKER,)),
    Peer("saq", _SAQ, "saq_app", "saq saq_app.settings", "defaults", kills=(WORKER,)),
    Peer("saq", _SAQ, "saq_app", "saq saq_app.settings", "`retries` 3", {"RETRY": "3"}, (WORKER,)),
    Peer("taskiq", _TASKIQ, "taskiq_app", _TASKIQ_RUN, "`ListQueueBroker`", {"LIST": "1"}),
    Peer("taskiq", _TASKIQ, "taskiq_app", _TASKIQ_RUN, "`RedisStreamBroker`"),
    Peer(
        "taskiq",
        _TASKIQ,
        "taskiq_app",
        _TASKIQ_RUN,
        "`RedisStreamBroker`, `idle_timeout` 60 s, `unacknowledged_lock_timeout` 10 s",
        {"IDLE": "60"},
    ),
)


def rows(watch_s: float) -> Iterator[Row]:
    """One row for each peer, setting and kill, as they end; Cloche's own first."""
    yield of_cloche()
    home = Path(tempfile.mkdtemp(prefix="cloche-peers-", dir="/tmp"))
    try:
        environments = {packages: _environment(home, packages) for packages in {peer.packages for peer in PEERS}}
        starting = threading.Semaphore(2)  # more at once only wait for each other
        cases = [(peer, kill) for peer in PEERS for kill in peer.kills]
        with ThreadPoolExecutor(len(cases)) as pool:
            futures = [
                pool.submit(
                    _measured, _Place(home / str(n), environments[peer.packages]), peer, kill, starting, watch_s
                )
                for n, (peer, kill) in enumerate(cases)
            ]
            for future in futures:
                yield future.result()
    finally:
        shutil.rmtree(home, ignore_errors=True)


def of_cloche() -> Row:
    """The same here: two workers of one slot, jobs of two seconds, the worker of a running one killed with all its processes."""
    settings = {
        "plugin_path": str(Path(__file__).parent / "plugins"),
        "worker_count": "2",
        "worker_slots": "1",
        "logging_level": "warning",
    }
    with stack(**settings) as running:
        running.finished(running.submit({"type": "pause"})["id"], 120)  # its image is made
        ids = [running.submit({"type": "pause"})["id"] for _ in range(JOBS)]

        def working() -> Any:
            return next((w for w in running.client.get("/workers").json()["items"] if w["current_job_ids"]), None)

        worker = _until(working, _START_S, "a worker works")
        killed = worker["current_job_ids"][0]

        def begun(attempt: int) -> str | None:
            """When the plugin was given the job, in the words of its trace."""
            events = running.client.get(f"/trace/{killed}").json()["items"]
            return next(
                (e["timestamp"] for e in events if e["event_type"] == "started" and e["attempt"] == attempt), None
            )

        _until(lambda: begun(1), _START_S, "the job runs")
        time.sleep(JOB_S / 4)
        at = time.time()
        _kill([worker["pid"], *below(worker["pid"])])
        again = datetime.fromisoformat(_until(lambda: begun(2), _START_S, "the job runs again"))
        ends = [running.finished(job_id, 120)["status"] for job_id in ids]
    return {
        "what": "**Cloche**",
        "settings": "defaults",
        "killed": WORKER,
        "ran again after": f"{again.timestamp() - at:.1f} s",
        "of its eight jobs": f"{ends.count('completed')} completed",
    }


@dataclass
class _Place:
    """Where one row is measured: its folder, and the environment of its peer."""

    home: Path
    environment: Path
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, command: list[str], **more: Any) -> subprocess.Popen[bytes]:
        """In a session of its own, so that it can be ended with all that it started; what it says goes to the row's log."""
        with (self.home / "log").open("ab") as log:
            process = subprocess.Popen(command, cwd=self.home, stdout=log, stderr=log, start_new_session=True, **more)
        self.started.append(process)
        return process

    def end(self) -> None:
        for process in self.started:
            if process.poll() is None:
                _kill([process.pid, *below(process.pid)])
            process.wait()


@dataclass(frozen=True)
class _Mark:
    word: str
    number: int
    pid: int
    at: float


def _environment(home: Path, packages: tuple[str, ...]) -> Path:
    place = home / packages[0].partition("=")[0].partition("[")[0]
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    subprocess.run([str(place / "bin" / "pip"), "install", "--quiet", *packages], check=True, stderr=subprocess.PIPE)
    return place


def _measured(place: _Place, peer: Peer, kill: str, starting: threading.Semaphore, watch_s: float) -> Row:
    row: Row = {"what": peer.named, "settings": peer.said, "killed": kill}
    place.home.mkdir()
    try:
        return row | _watched(place, peer, kill, starting, watch_s)
    except (OSError, RuntimeError) as error:
        log = place.home / "log"
        print(f"{row['what']}, {peer.said}, {kill}: {error}", log.read_text()[-2000:], sep="\n", file=sys.stderr)
        return row | {"ran again after": "not measured", "of its eight jobs": "–"}
    finally:
        place.end()


def _watched(place: _Place, peer: Peer, kill: str, starting: threading.Semaphore, watch_s: float) -> Row:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url, marks = f"redis://127.0.0.1:{port}/0", place.home / "marks"
    marks.touch()
    place.start(["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
    settings = {f"PEER_{name}": value for name, value in peer.settings.items()}
    path = f"{place.environment / 'bin'}:{os.environ['PATH']}"
    own = {
        "PATH": path,
        "PYTHONPATH": str(APPS),
        "MARKS": str(marks),
        "PEER_REDIS": url,
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    environment = {**os.environ, **own, **settings}

    def worker(n: int) -> subprocess.Popen[bytes]:
        words = peer.worker.format(url=url, n=n).split()
        return place.start([str(place.environment / "bin" / words[0]), *words[1:]], env=environment)

    def seen() -> list[_Mark]:
        words = [line.split() for line in marks.read_text().splitlines()]
        return [_Mark(word, int(number), int(pid), float(at)) for word, number, pid, at in words]

    with starting:
        sender = place.start(
            [str(place.environment / "bin" / "python"), str(APPS / f"{peer.module}.py")],
            env=environment,
            stdin=subprocess.PIPE,
            text=True,
        )
        send = _sender(sender)
        workers = [worker(0), worker(1)]
        send(TICK)

        def served() -> bool:
            if any(process.poll() is not None for process in (sender, *workers)):
                raise RuntimeError("it ended as it started")
            return any(mark.number == TICK for mark in seen())

        _until(served, _START_S, "the first job")
        time.sleep(3)  # the other worker listens too
    for number in range(JOBS):
        send(number)
    first = _until(lambda: next(iter(_running(seen())), None), _START_S, "a job runs")
    time.sleep(max(0.0, first.at + JOB_S / 4 - time.monotonic()))
    root = next(process.pid for process in workers if first.pid in (process.pid, *below(process.pid)))
    at = time.monotonic()
    _kill([first.pid] if kill == JOB else [root, *below(root)])
    ended: set[int] = set()
    began: list[float] = []
    ticks = 0
    while time.monotonic() < at + watch_s and not (began and len(ended) == JOBS):
        for n, process in enumerate(workers):
            if process.poll() is not None:
                time.sleep(_AGAIN_S)
                workers[n] = worker(n)
        if time.monotonic() > at + (ticks + 1) * _TICK_S:
            ticks += 1
            send(TICK + ticks)
        time.sleep(0.25)
        found = seen()
        began = [mark.at for mark in found if mark.word == "started" and mark.number == first.number and mark.at > at]
        ended = {mark.number for mark in found if mark.word == "finished" and mark.number < TICK}
    again = f"{began[0] - at:.1f} s" if began else f"not within {watch_s:.0f} s"
    return {"ran again after": again, "of its eight jobs": f"{len(ended)} completed"}


def _sender(process: subprocess.Popen[Any]) -> Callable[[int], None]:
    def send(number: int) -> None:
        process.stdin.write(f"{number}\n")  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]

    return send


def _running(marks: Iterable[_Mark]) -> Iterator[_Mark]:
    marks = list(marks)
    ended = {mark.number for mark in marks if mark.word == "finished"}
    return (mark for mark in marks if mark.number < TICK and mark.number not in ended)


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue  # it ended with the one that was killed before


def _until(found: Callable[[], Any], seconds: float, what: str) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := found()):
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.02)
    return value
