"""The least that a web application does for a job: check it, put it into a Redis stream, answer 202. Nothing is durable, nobody signs in.

The same Flask, pydantic, redis-py and web server as Cloche's, with as many processes and threads; what `./run bench queue` holds submits against.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import redis
from flask import Flask, request
from granian import Granian
from granian.constants import HTTPModes, Interfaces
from granian.log import LogLevels
from pydantic import BaseModel, ConfigDict

from cloche.cli.up import valkey


class NewJob(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    type: str
    payload: dict[str, Any] = {}
    priority: int = 5


def load(valkey_socket: str) -> Callable[..., Any]:
    """The application, in the server's worker process."""
    app = Flask("bare")
    stream = redis.Redis(unix_socket_path=valkey_socket)

    @app.post("/jobs")
    def submit() -> tuple[dict[str, Any], int]:
        job = NewJob.model_validate_json(request.get_data())
        job_id = str(uuid4())
        stream.xadd("jobs", {"id": job_id, "job": json.dumps(job.model_dump())})
        return {"id": job_id, "status": "pending"}, 202

    return app


def serve(valkey_socket: str, port: int, threads: int) -> None:
    Granian(
        "bench.bare",
        address="127.0.0.1",
        port=port,
        interface=Interfaces.WSGI,
        workers=1,
        blocking_threads=threads,
        http=HTTPModes.http1,
        websockets=False,
        log_level=LogLevels.error,
    ).serve(target_loader=partial(load, valkey_socket), wrap_loader=False)


@contextmanager
def running(folder: Path, threads: int) -> Iterator[str]:
    """The URL of the bare application, with an embedded Valkey of its own in ``folder``."""
    place = folder / "bare.sock"
    server = subprocess.Popen(valkey.argv(valkey.binary(), place, folder), stdout=subprocess.DEVNULL)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "bench.bare", str(place), str(port), str(threads)]
    web = subprocess.Popen(command, cwd=Path(__file__).parents[1])
    try:
        _until(lambda: valkey.answers(place), "Valkey")
        _until(lambda: _listens(port), "the bare application")
        yield f"http://127.0.0.1:{port}/jobs"
    finally:
        for process in (web, server):
            process.send_signal(signal.SIGTERM)
            process.wait(20)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _until(there: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not there():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what} does not come up")
        time.sleep(0.05)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
