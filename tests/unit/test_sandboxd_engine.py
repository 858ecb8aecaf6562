"""What sandboxd makes of an engine's refusals, spoken to over a socket as an engine is."""

from __future__ import annotations

import http.server
import json
import queue
import re
import select
import socket
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from cloche.sandboxd.engine import Engine, EngineAway, EngineRefused

NOT_RUNNING = (500, {"message": "Could not kill running container x, cannot remove - Container x is not running"})
IN_PROGRESS = (409, {"message": "removal of container x is already in progress"})
CONFLICT = (409, {"message": "cannot remove container x: could not kill: container x is not running"})
GONE = (404, {"message": "No such container: x"})


class Stub(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """An engine that answers as told. ``status``: what inspect says, None when there is none; ``removals``: answers in turn, the last for ever."""

    daemon_threads = True

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), Handler)
        self.status: str | None = "exited"
        self.removals: list[tuple[int, Any]] = [(204, None)]
        self.asked = 0
        self.events: queue.Queue[bytes | None] | None = queue.Queue()  # what is told of itself; None ends it


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Stub

    def do_GET(self) -> None:
        if self.path.endswith("/version"):
            self._answer(200, {"ApiVersion": "1.41", "Version": "20.10.24"})
        elif self.path.startswith("/v1.41/events?"):
            self._stream()
        elif self.server.status is None:
            self._answer(*GONE)
        else:
            assert re.fullmatch(r"/v1\.41/containers/x/json", self.path)
            self._answer(200, {"State": {"Status": self.server.status}})

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        asked = json.loads(self.rfile.read(length))
        assert self.path.split("?")[0] in ("/v1.41/containers/create", "/v1.41/containers/x/update")
        warnings = ["Your kernel does not support that."] if asked.get("Memory") else None
        self._answer(201, {"Id": "x", "Warnings": warnings})

    def do_DELETE(self) -> None:
        assert self.path.startswith("/v1.41/containers/x?")
        left = self.server.removals
        self.server.asked += 1
        self._answer(*(left.pop(0) if len(left) > 1 else left[0]))

    def _stream(self) -> None:
        """As an engine answers: the head at once, then a chunk for each event."""
        if self.server.events is None:
            self._answer(400, {"message": "invalid filter"})
            return
        assert json.loads(parse_qs(urlsplit(self.path).query)["filters"][0]) == {"type": ["daemon"]}
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while (event := self.server.events.get()) is not None:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
        self.close_connection = True

    def _answer(self, code: int, body: Any) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def stub(home: Path) -> Iterator[Stub]:
    with Stub(home / "engine.sock") as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def engine(home: Path, stub: Stub) -> Iterator[Engine]:
    made = Engine(str(home / "engine.sock"))
    yield made
    made.close()


@pytest.mark.parametrize("refusal", [NOT_RUNNING, CONFLICT])
def test_a_container_that_ends_while_it_is_being_killed_is_removed(engine: Engine, stub: Stub, refusal: Any) -> None:
    stub.removals = [refusal, (204, None)]
    engine.remove("x")
    assert stub.asked == 2


@pytest.mark.parametrize(("status", "answer"), [(None, NOT_RUNNING), (None, GONE), ("removing", IN_PROGRESS)])
def test_what_is_gone_or_going_is_left_alone(engine: Engine, stub: Stub, status: str | None, answer: Any) -> None:
    stub.status, stub.removals = status, [answer]
    engine.remove("x")
    assert stub.asked == 1


@pytest.mark.parametrize(("status", "times"), [("running", 1), ("exited", 3), ("dead", 3)])
def test_what_cannot_be_removed_is_said(engine: Engine, stub: Stub, status: str, times: int) -> None:
    stub.status, stub.removals = status, [(500, {"message": "device or resource busy"})]
    with pytest.raises(EngineRefused, match="busy"):
        engine.remove("x")
    assert stub.asked == times


def test_an_option_that_does_not_take_stops_the_job(engine: Engine, stub: Stub) -> None:
    assert engine.create("n", {"Image": "i"}) == "x"
    assert stub.asked == 0
    with pytest.raises(EngineRefused, match="would not keep every option: Your kernel does not support that"):
        engine.create("n", {"Image": "i", "Memory": 1})
    assert stub.asked == 1, "what was made of it is removed"
    with pytest.raises(EngineRefused, match="would not set the memory"):
        engine.set_memory("x", 1 << 20, 1 << 20)


def test_a_line_on_which_changes_are_heard(engine: Engine, stub: Stub) -> None:
    assert stub.events is not None
    with engine.changes() as line:
        line.settimeout(30)
        assert select.select([line], [], [], 0)[0] == [], "the head of the answer is not left on it"
        stub.events.put(b"reload")
        assert line.recv(3) == b"6\r\n"
        stub.events.put(None)
        while line.recv(64):
            continue
    stub.events = None
    with pytest.raises(EngineRefused, match=r"did not open events: HTTP/1\.1 400"):
        engine.changes()


def test_of_an_engine_that_never_answers_each_caller_learns_it_without_waiting_for_the_others(home: Path) -> None:
    errors: list[Exception] = []

    def ask() -> None:
        with pytest.raises(EngineAway) as caught:
            silent.ping()
        errors.append(caught.value)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(home / "silent.sock"))
        listener.listen(8)
        listener.settimeout(60)
        silent = Engine(str(home / "silent.sock"))
        callers = [threading.Thread(target=ask, daemon=True) for _ in range(3)]
        for thread in callers:
            thread.start()
        taken = [listener.accept()[0] for _ in callers]
        assert not errors, "all of them are being waited for, none for another"
        for stream in taken:
            stream.close()  # nobody has to wait for it any longer
        for thread in callers:
            thread.join(60)
    assert [error.reason for error in errors] == ["engine_unavailable"] * 3
