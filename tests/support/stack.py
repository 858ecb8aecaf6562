"""A whole Cloche, started with `cloche up` as an operator does it, in a home of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

PASSWORD = "correct horse battery"
DEADLINE_S = 90.0


@dataclass
class Stack:
    """A running `cloche up`; ``log`` holds what it wrote to stderr, ``out`` what it wrote to stdout."""

    home: Path
    out: Path
    log: Path
    process: subprocess.Popen[bytes]
    environment: dict[str, str] = field(repr=False)
    url: str = ""

    def client(self) -> httpx.Client:
        """A REST client with a token of the admin."""
        answer = httpx.post(
            f"{self.url}/api/v1/tokens", json={"name": "test"}, auth=("admin", PASSWORD), trust_env=False
        )
        answer.raise_for_status()
        headers = {"Authorization": f"Bearer {answer.json()['token']}"}
        return httpx.Client(base_url=f"{self.url}/api/v1", headers=headers, timeout=70, trust_env=False)

    def wait_for(self, what: str, found: Any) -> Any:
        """Poll ``found`` until it returns something true."""
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            if value := found():
                return value
            assert self.process.poll() is None, f"cloche up ended: {self.log.read_text()[-3000:]}"
            time.sleep(0.05)
        raise AssertionError(f"{what} did not happen; the log ends with: {self.log.read_text()[-3000:]}")

    def wait_ready(self) -> None:
        def listening() -> str | None:
            match = re.search(r"^Cloche: (\S+)$", self.out.read_text(), re.MULTILINE)
            return match[1] if match else None

        self.url = self.wait_for("listening", listening)
        self.wait_for(
            "readiness", lambda: httpx.get(f"{self.url}/readyz", trust_env=False, timeout=10).status_code == 200
        )

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.terminate()
        return self.process.wait(DEADLINE_S)


def environment(home: Path, **more: str) -> dict[str, str]:
    """A clean one for ``home``: no setting of the surrounding machine but where its engine is."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("CLOCHE_") or name.startswith("CLOCHE_SANDBOX_")
    }
    return kept | {"CLOCHE_HOME": str(home), "CLOCHE_LOGGING_FORMAT": "console"} | more


def up(folder: Path, *arguments: str, **more: str) -> Stack:
    """Start `cloche up` in ``folder`` (short: sockets) without waiting for it."""
    home = folder / "home"
    variables = environment(home, **more)
    out, log = folder / "out", folder / "log"
    with out.open("wb") as stdout, log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "cloche", "up", *(arguments or ("--port", "0"))],
            cwd=folder,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
        )
    return Stack(home, out, log, process, variables)


@contextmanager
def running(folder: Path, **more: str) -> Iterator[Stack]:
    """`cloche up`, ready, with the admin's password in :data:`PASSWORD`; stopped in the end."""
    stack = up(folder, **{"CLOCHE_ADMIN_PASSWORD": PASSWORD, **more})
    try:
        stack.wait_ready()
        yield stack
    finally:
        if stack.process.poll() is None:
            stack.stop()
