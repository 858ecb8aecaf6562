"""A job that reaches out, through the whole of `cloche up`: policies, proxy, sandbox, trace, metrics."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import stack as stacks
from tests.support.egress import serving
from tests.support.plugins import write_bundle
from tests.support.stores import until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

CODE = """
import os
import socket
from cloche_guest import Job, hookimpl


@hookimpl
def run(job: Job) -> dict:
    host, _, port = job.payload["where"].rpartition(":")
    with job.connect(host, int(port)) as stream:
        stream.sendall(b"hello")
        stream.shutdown(socket.SHUT_WR)
        return {"said": stream.recv(10).decode(), "proxy": os.environ["HTTPS_PROXY"][:17]}
"""
MORE = """[params]
type = "object"
properties = { where = { type = "string" } }
[network]
allow = ["param:where"]
[retry]
max_retries = 0
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="cl-") as name:
        yield Path(name)


def test_one_job_out_and_back(folder: Path) -> None:
    write_bundle(folder / "plugins", "caller", code=CODE, more=MORE)
    with serving() as target, serving() as other:
        settings = {
            "CLOCHE_PLUGIN_PATH": str(folder / "plugins"),
            "CLOCHE_EGRESS_ALLOW": f"{target.address}, *:{other.port}",
            "CLOCHE_EGRESS_PRIVATE": "127.0.0.1",
        }
        with stacks.running(folder, **settings) as stack, stack.client() as client:

            def submit(where: str) -> dict:
                return client.post("/jobs", json={"type": "caller", "payload": {"where": where}}).json()

            def finished(job: dict) -> dict:
                return client.get(f"/jobs/{job['id']}", params={"wait": "60s"}).json()

            assert submit(target.address)["errors"][0]["pointer"] == "/payload/where"
            allow = [target.address, f"localhost:{other.port}"]
            put = client.put("/egress-policy", json={"allow": allow}, headers={"If-Match": '"v0"'})
            assert put.status_code == 200, put.text

            done = finished(submit(target.address))
            assert done["result"] == {"said": "hello", "proxy": "http://127.0.0.1:"}, done
            assert (done["usage"]["egress_up"], done["usage"]["egress_down"]) == (5, 5)
            trace = client.get(f"/trace/{done['id']}").json()["items"]
            [one] = [event["details"] for event in trace if event["event_type"] == "egress_connection"]
            assert (one["host"], one["address"], one["verdict"]) == ("127.0.0.1", "127.0.0.1", "closed")

            # allowed by a wildcard of the operator, and leads inside
            inside = finished(submit(f"localhost:{other.port}"))
            assert inside["status"] == "failed"
            assert "leads to an address that is not public" in inside["error"]["message"]
            assert not other.came.acquire(blocking=False)

            metrics = client.get(f"{stack.url}/metrics").text
            assert 'cloche_egress_connections_total{verdict="address_refused"} 1.0' in metrics

            pid = _proxy(stack.process.pid)
            assert _users(pid) == {209_999}
            # killed, it is started again, and the next job finds the new one
            os.kill(pid, 9)
            until(lambda: _proxy(stack.process.pid) not in (None, pid), 30, "the proxy is started again")
            assert finished(submit(target.address))["status"] == "completed"
    assert stack.process.returncode == 0


def _proxy(supervisor: int) -> int | None:
    """The number of the egress process under this `cloche up`, once it is what it is meant to be."""
    for name in Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split():
        words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
        if b"egress" in words:
            return int(name)
    return None


def _users(pid: int) -> set[int]:
    status = Path(f"/proc/{pid}/status").read_text()
    lines = [line.split()[1:] for line in status.splitlines() if line.startswith(("Uid:", "Gid:", "Groups:"))]
    assert "NoNewPrivs:\t1" in status
    assert "CapEff:\t0000000000000000" in status
    return {int(number) for line in lines for number in line}
