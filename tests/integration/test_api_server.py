"""The real server process: what only shows over real sockets."""

from __future__ import annotations

import signal
import socket
import time
from pathlib import Path

import httpx
import pytest

from tests.support.server import Server, raw
from tests.support.stores import short_folder, until
from tests.support.web import ADMIN_PASSWORD


@pytest.fixture(scope="module")
def server():
    with short_folder() as home:
        running = Server(home, CLOCHE_SERVER_MAX_WAITS="2", CLOCHE_SERVER_MAX_UPLOAD="64MB").ready()
        try:
            yield running
        finally:
            running.stop()


@pytest.fixture(scope="module")
def client(server):
    answer = httpx.post(f"{server.url}/api/v1/tokens", json={"name": "t"}, auth=("admin", ADMIN_PASSWORD))
    with httpx.Client(
        base_url=f"{server.url}/api/v1", headers={"Authorization": f"Bearer {answer.json()['token']}"}, timeout=30
    ) as made:
        yield made


@pytest.fixture
def job(client):
    stored = client.post("/files", params={"name": "a.csv"}, content=b"a\n1\n").json()
    body = {"type": "csv_profile", "inputs": [{"from": f"artifact:{stored['id']}"}]}
    answer = client.post("/jobs", json=body)
    assert answer.status_code == 202, answer.text  # with Redis away: the relay will tell it
    return answer.json()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_uploads_and_downloads_stream(server, client):
    def pieces():
        for n in range(600):
            yield bytes([n % 256]) * 65_536

    peak = max(_peak(pid) for pid in server.children())
    made = client.post("/files", files={"file": ("big.bin", b"".join(pieces()))})
    assert made.status_code == 201, made.text
    size = 600 * 65_536
    assert made.json()["size"] == size
    again = client.post("/files", params={"name": "b.bin"}, content=pieces(), headers={"Content-Length": str(size)})
    assert again.json()["sha256"] == made.json()["sha256"]
    with client.stream("GET", f"/files/{again.json()['id']}/content") as answer:
        assert sum(len(chunk) for chunk in answer.iter_bytes()) == size
    assert max(_peak(pid) for pid in server.children()) - peak < size // 2


def _peak(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no such process")


def test_too_large_is_refused_before_it_is_read(server, client):
    head = f"POST /api/v1/files?name=x HTTP/1.1\nHost: x\nAuthorization: {client.headers['Authorization']}\nContent-Length: 99999999999"
    assert b" 413 " in raw(server, head, b"x", finish=False).split(b"\r\n")[0]


def test_a_client_that_breaks_off_stores_nothing(server, client):
    before = _stored(server)
    token = client.headers["Authorization"]
    head = f"POST /api/v1/files?name=x HTTP/1.1\nHost: x\nAuthorization: {token}\n"
    raw(server, head + "Content-Length: 500000", b"x" * 1_000)
    chunked = raw(server, head + "Transfer-Encoding: chunked", b"5\r\nhello\r\n")
    assert not chunked or b" 411 " in chunked.split(b"\r\n")[0]
    assert _stored(server) == before


def _stored(server) -> int:
    return sum(path.is_file() for path in (server.home / "artifacts" / "tenants").rglob("*"))


def test_an_empty_file_is_a_file(client):
    assert client.post("/files", params={"name": "empty"}, content=b"").json()["size"] == 0


def test_the_stream_comes_as_it_happens_and_a_hang_up_frees_its_place(client, job):
    for _ in range(5):  # more than there are places, one after the other

        def first_event() -> bool:
            with client.stream("GET", f"/jobs/{job['id']}/events") as answer:
                if answer.status_code == 503:
                    return False
                assert answer.headers["Content-Type"].startswith("text/event-stream")
                return any(line == "event: job" for line in answer.iter_lines())

        until(first_event, 20, "a place for a stream is free")


def test_waiting_does_not_hold_up_others(client, job):
    def waited() -> bool:
        began = time.monotonic()
        assert client.get(f"/jobs/{job['id']}", params={"wait": "500ms"}).json()["status"] == "pending"
        return time.monotonic() - began >= 0.5

    until(
        waited, 20, "a place for waiting is free"
    )  # who finds none is answered at once; streams hung up before give theirs back late


def test_readiness_says_what_is_missing(server):
    reasons = httpx.get(f"{server.url}/readyz").json()["reasons"]
    assert any("worker" in reason for reason in reasons)
    assert any("Redis" in reason for reason in reasons)


def test_a_port_in_use_is_one_clear_line(server):
    with short_folder() as home:
        second = Server(home, port=server.address[1])
        text, _ = second.process.communicate(timeout=30)
        assert second.process.returncode not in (0, None)
        lines = [line for line in text.splitlines() if line.strip()]
        assert len(lines) == 1, text
        assert "in use" in lines[0]
        assert "CLOCHE_SERVER_PORT" in lines[0]


def test_sigterm_ends_streams_and_leaves_nothing():
    with short_folder() as home:
        server = Server(home).ready()
        try:
            children = server.children()
            token = httpx.post(
                f"{server.url}/api/v1/tokens", json={"name": "t"}, auth=("admin", ADMIN_PASSWORD)
            ).json()["token"]
            headers = {"Authorization": f"Bearer {token}"}
            upload = httpx.post(f"{server.url}/api/v1/files?name=a.csv", content=b"a\n1\n", headers=headers).json()
            body = {"type": "csv_profile", "inputs": [{"from": f"artifact:{upload['id']}"}]}
            job = httpx.post(f"{server.url}/api/v1/jobs", json=body, headers=headers).json()
            with httpx.stream(
                "GET", f"{server.url}/api/v1/jobs/{job['id']}/events", headers=headers, timeout=30
            ) as answer:
                lines = answer.iter_lines()
                assert next(lines)
                server.process.send_signal(signal.SIGTERM)
                for _ in lines:  # ends in order, with no cut connection
                    pass
            assert server.process.wait(timeout=20) == 0
            assert not server.place.exists()
            until(lambda: not any(map(alive, children)), 10, "the worker process has ended")
        finally:
            server.stop()


def test_a_killed_parent_takes_its_child_along():
    with short_folder() as home:
        server = Server(home).ready()
        try:
            children = server.children()
            assert children
            server.process.kill()
            server.process.wait()
            until(lambda: not any(map(alive, children)), 20, "the child has ended")
        finally:
            server.stop()


def test_clients_that_send_their_bodies_slowly_leave_threads_for_others(server):
    """Forty requests announce a body and never send it."""
    slow = []
    try:
        for _ in range(40):
            opened = socket.create_connection(server.address, timeout=10)
            opened.sendall(
                b"POST /api/v1/session HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
            )
            slow.append(opened)
        assert httpx.get(f"{server.url}/healthz", timeout=10).status_code == 200
        answer = httpx.post(f"{server.url}/api/v1/session", json={"username": "x", "password": "y"}, timeout=10)
        assert answer.status_code == 503
        assert answer.headers["Retry-After"] == "1"
    finally:
        for opened in slow:
            opened.close()
