"""Egress under gVisor: its file server, which is root on the host, connects to the sandbox's socket on the job's behalf."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cloche.domain.egress import parse_endpoint
from cloche.egress.server import EgressServer
from cloche.isolation.backend import Sandbox
from cloche.isolation.egress import SOCKET_NAME, Verdict
from tests.support import gvisor, sandbox
from tests.support.egress import Names, platform, read_all, running_egress, serving

pytestmark = pytest.mark.docker

CONNECT = """
with socket.create_connection(("echo.example", job.payload["port"]), timeout=20) as stream:
    stream.sendall(b"from inside")
    stream.shutdown(socket.SHUT_WR)
    return stream.recv(64).decode()
"""
TRY = """
found = []
for host in job.payload["hosts"]:
    try:
        socket.create_connection((host, job.payload["port"]), timeout=20).close()
        found.append("connected")
    except OSError as error:
        found.append(type(error).__name__)
return found
"""


@pytest.fixture
def proxy(bench: gvisor.Bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[EgressServer]:
    monkeypatch.setattr("cloche.egress.grant._ENDING_S", 8)  # a busy machine sees a connection's end late
    names = Names({"echo.example": [["127.0.0.1"]], "inside.example": [["10.0.0.1"]]})
    with running_egress(bench.home, platform("echo.example:* inside.example:*"), names) as server:
        yield server


@pytest.mark.parametrize("warm", [False, True])
def test_a_job_reaches_what_it_was_allowed(bench: gvisor.Bench, proxy: EgressServer, warm: bool) -> None:
    spec = replace(bench.spec(CONNECT), egress=True, warm=warm)
    if warm:
        sandbox.warm_up(bench.backend, spec)
    starts: list[str] = []
    with serving() as target:
        allow = (f"echo.example:{target.port}",)
        outcome = sandbox.run_job(
            bench.backend, spec, {"port": target.port}, allow=allow, look=lambda one: starts.append(one.start)
        )
        assert outcome.value == "from inside"
        assert target.seen == [b"from inside"]
    assert starts == ["warm" if warm else "cold"]
    assert outcome.remains is not None
    assert outcome.remains.egress is not None
    assert outcome.remains.egress.verdicts == {Verdict.CLOSED: 1}
    assert (outcome.remains.egress.bytes_up, outcome.remains.egress.bytes_down) == (11, 11)


def test_the_proxy_without_privilege_sees_whose_a_connection_is(bench: gvisor.Bench) -> None:
    """The process itself, as an operator runs it: it has become a user of its own."""
    body = CONNECT.replace('"echo.example"', '"127.0.0.1"')
    with serving() as target:
        address = f"127.0.0.1:{target.port}"
        environment = {
            **os.environ,
            "CLOCHE_HOME": str(bench.home),
            "CLOCHE_EGRESS_ALLOW": address,
            "CLOCHE_EGRESS_PRIVATE": "127.0.0.1",
        }
        with subprocess.Popen([sys.executable, "-m", "cloche", "egress"], env=environment) as process:
            try:
                place = bench.home / "run" / "egress.sock"
                sandbox.wait_until(
                    lambda: place.exists() and _user(process.pid) != 0, "the proxy is there, and not as root"
                )
                spec = replace(bench.spec(body), egress=True)
                outcome = sandbox.run_job(bench.backend, spec, {"port": target.port}, allow=(address,))
            finally:
                process.terminate()
        assert outcome.value == "from inside"


def _user(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text("ascii", "replace")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("Uid:"))


def test_a_job_reaches_nothing_else(bench: gvisor.Bench, proxy: EgressServer) -> None:
    with serving() as target:
        hosts = ["other.example", "127.0.0.1", "inside.example"]
        spec = replace(bench.spec(TRY), egress=True)
        allow = (f"echo.example:{target.port}", f"inside.example:{target.port}")
        outcome = sandbox.run_job(bench.backend, spec, {"port": target.port, "hosts": hosts}, allow=allow)
        assert "connected" not in outcome.value
        assert not target.came.acquire(blocking=False)
    assert outcome.remains is not None
    assert outcome.remains.egress is not None
    assert set(outcome.remains.egress.verdicts) <= {Verdict.NOT_ALLOWED, Verdict.ADDRESS_REFUSED}


def test_without_a_network_there_is_no_socket(bench: gvisor.Bench, proxy: EgressServer) -> None:
    spec = bench.spec("return os.listdir('/run/cloche')")
    assert sandbox.run_job(bench.backend, spec).value == []


def test_nobody_else_is_heard_on_its_socket_not_even_root(bench: gvisor.Bench, proxy: EgressServer) -> None:
    assert os.geteuid() == 0
    verdicts: list[bytes] = []

    def look(one: Sandbox) -> None:
        one.open_egress([parse_endpoint("echo.example:1")])
        folder: Path = bench.running(one).site.folders.run
        with socket.socket(socket.AF_UNIX) as stream:
            stream.connect(str(folder / SOCKET_NAME))
            verdicts.append(read_all(stream))

    outcome = sandbox.run_job(bench.backend, replace(bench.spec("return 1"), egress=True), look=look)
    assert verdicts == [b""]
    assert outcome.remains is not None
    assert outcome.remains.egress is not None
    assert outcome.remains.egress.verdicts == {Verdict.WRONG_USER: 1}
