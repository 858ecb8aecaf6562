"""Other job queues, in the same run on the same machine: RQ with a fork for each job, and Celery with ``acks_late``. Neither isolates a job,
keeps it durably or records it.

``folder`` (``--peers``, ``CLOCHE_BENCH_PEERS``) holds ``queues/p_rq.py`` and ``queues/p_celery.py``: each takes the number of jobs and of
rounds as its arguments, ``PEERS_REDIS_PORT`` and ``PEERS_HOME`` from the environment, starts its own workers, and prints one JSON line with
``drain`` and ``e2e`` (jobs a second), ``res_p50`` and ``res_p95`` (ms from enqueue to result).
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.peers_environment import Figures, NotInstalled, environment, unmeasured, version

_NEEDS = ("celery[redis]", "rq", "hiredis")
_SECONDS = 180


@dataclass(frozen=True)
class Peer:
    """``program`` in ``queues/``, with ``jobs`` jobs and ``rounds`` rounds of one at a time."""

    name: str
    package: str
    program: str
    jobs: int
    rounds: int
    environment: Mapping[str, str]


PEERS = (
    Peer("RQ, a fork for each job", "rq", "p_rq.py", 800, 100, {}),
    Peer("Celery, acks_late, prefork 2", "celery", "p_celery.py", 4_000, 100, {"CELERY_LATE": "1"}),
)


def measured(folder: Path | None) -> dict[str, Figures]:
    """Figures of each peer by its name."""
    names = [peer.name for peer in PEERS]
    if folder is None:
        return unmeasured(names, "no folder of peers is given (--peers)")
    for program in ("redis-server", "redis-cli"):
        if shutil.which(program) is None:
            return unmeasured(names, f"{program} is not on PATH")
    with tempfile.TemporaryDirectory(prefix="cloche-peers-") as home:
        try:
            python = environment(Path(home), *_NEEDS)
        except NotInstalled as error:
            return unmeasured(names, str(error))
        return {peer.name: _one(peer, folder, python, Path(home)) for peer in PEERS}


def _one(peer: Peer, folder: Path, python: Path, home: Path) -> Figures:
    with _redis(home) as port:
        variables = {
            **os.environ,
            **peer.environment,
            "PEERS_HOME": str(home),
            "PEERS_REDIS_PORT": str(port),
            "BENCH_REC": str(home / "stamps"),
        }
        command = [python, folder / "queues" / peer.program, str(peer.jobs), str(peer.rounds)]
        try:
            done = subprocess.run(
                command, cwd=folder / "queues", env=variables, capture_output=True, timeout=_SECONDS, check=True
            )
        except subprocess.SubprocessError as error:
            return {"not measured": f"{peer.program}: {type(error).__name__}"}
    return {"version": version(python, peer.package), **json.loads(done.stdout.decode().strip().rpartition("\n")[2])}


@contextmanager
def _redis(home: Path) -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(home)]
    server = subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if time.monotonic() > deadline:
                raise RuntimeError("redis-server does not come up")
            time.sleep(0.05)
        yield port
    finally:
        server.terminate()
        server.wait(10)
