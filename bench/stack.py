"""A whole Cloche in a temporary home, for benchmarks and acceptance tests: the real `cloche up`, spoken to over HTTP."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[1]


class Stack:
    """`client` speaks as user admin. `home` is the stack's home directory; `pid` the supervisor's."""

    def __init__(
        self, home: Path, process: subprocess.Popen[bytes], log: Path, password: str, ready: str = "/readyz"
    ) -> None:
        self._path = ready
        self.home = home
        self.process = process
        self.log = log
        self.password = password
        self.url = ""
        self.client = httpx.Client()

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_ready(self, seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        place = self.home / "run" / "web.json"
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"cloche up ended with {self.process.returncode}:\n{self.tail()}")
            if place.exists():
                where = json.loads(place.read_text())
                self.url = f"http://{where['host']}:{where['port']}"
                if self._ready():
                    self._sign_in()
                    return
            time.sleep(0.05)
        raise RuntimeError(f"not ready within {seconds} s:\n{self.tail()}")

    def submit(self, body: Mapping[str, Any]) -> dict[str, Any]:
        answer = self.client.post("/jobs", json=body)
        if answer.status_code != 202:
            raise RuntimeError(answer.text)
        return answer.json()

    def finished(self, job_id: str, seconds: float = 60) -> dict[str, Any]:
        """The job once it has ended."""
        deadline = time.monotonic() + seconds
        while True:
            job = self.client.get(f"/jobs/{job_id}", params={"wait": "20s"}, timeout=30).json()
            if job["status"] in ("completed", "failed", "canceled"):
                return job
            if time.monotonic() > deadline:
                raise RuntimeError(f"job {job_id} is still {job['status']} ({job['reason_text']}):\n{self.tail()}")

    def tail(self, size: int = 6_000) -> str:
        return self.log.read_text(errors="replace")[-size:]

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def _ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}{self._path}", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def _sign_in(self) -> None:
        api = f"{self.url}/api/v1"
        made = httpx.post(f"{api}/tokens", json={"name": "stack"}, auth=("admin", self.password), timeout=10)
        made.raise_for_status()
        self.client = httpx.Client(
            base_url=api, headers={"Authorization": f"Bearer {made.json()['token']}"}, timeout=30
        )


@contextmanager
def stack(ready: str = "/readyz", **settings: str) -> Iterator[Stack]:
    """Start a stack with these settings (`CLOCHE_…` names without the prefix, in lower case); stop and remove it at the end. ``ready``: the
    address that answers 200 once it can be used; one without workers is never quite ready."""
    home = Path(tempfile.mkdtemp(prefix="cloche-", dir="/tmp"))
    log = home.with_suffix(".log")
    password = secrets.token_urlsafe(16)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CLOCHE_")}
    environment |= {"CLOCHE_HOME": str(home), "CLOCHE_SERVER_PORT": "0", "CLOCHE_ADMIN_PASSWORD": password}
    environment |= {f"CLOCHE_RATE_{name}": "0" for name in ("ADDRESS", "USER", "TOKEN")}  # a load is no abuse
    environment |= {f"CLOCHE_{name}".upper(): value for name, value in settings.items()}
    with log.open("wb") as out:
        command = [str(Path(sys.executable).parent / "cloche"), "up"]
        process = subprocess.Popen(command, cwd=home, env=environment, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
    running = Stack(home, process, log, password, ready)
    try:
        running.wait_ready()
        yield running
    finally:
        running.client.close()
        running.stop()
        shutil.rmtree(home, ignore_errors=True)
        log.unlink(missing_ok=True)
