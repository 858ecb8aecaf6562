"""What stands around the supervisor: log lines, the checks before a start, the address, the plan."""

from __future__ import annotations

import errno
import io
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import pytest

from cloche.cli.up import checks, plan
from cloche.cli.up.announce import Announcer, address
from cloche.cli.up.loglines import Console, JsonLines, Sink
from cloche.config import Settings
from cloche.errors import EnvironmentProblem
from tests.support.fake_api import Answer, serving

_DEADLINE_S = 20.0
RECORD = json.dumps(
    {
        "event": "job finished\x1b[2J",
        "level": "warning",
        "timestamp": "2026-01-01T00:00:00Z",
        "component": "worker",
        "job_id": "j1",
        "count": 3,
    }
)


def test_json_lines_keep_a_childs_own_fields_and_wrap_its_other_lines() -> None:
    stream = io.StringIO()
    sink = JsonLines(stream)
    sink.line("worker-1", RECORD)
    sink.line("worker-1", "Traceback: no JSON")
    sink.line("worker-1", '{"broken"')
    sink.line("worker-1", "[1]")
    sink.say("stopping", level="warning")
    first, second, third, fourth, last = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert first == json.loads(RECORD) | {"process": "worker-1"}
    assert [second["event"], third["event"], fourth["event"]] == ["Traceback: no JSON", '{"broken"', "[1]"]
    assert (last["event"], last["level"], last["process"]) == ("stopping", "warning", "up")
    assert last["timestamp"].endswith("Z")


def test_the_console_shows_name_event_and_fields_and_never_a_childs_escape() -> None:
    stream = io.StringIO()
    sink = Console(stream, color=False, names=("worker-1", "web"))
    sink.line("web", RECORD)
    sink.line("web", json.dumps({"event": "x", "exception": "Traceback\n  line \x1b[31m"}))
    sink.line("web", "plain \x9b")
    text = stream.getvalue()
    assert "\x1b" not in text
    assert "\x9b" not in text
    lines = text.splitlines()
    assert lines[0].split(" ", 1)[1] == "web      │ job finished\\x1b[2J  job_id=j1 count=3"
    assert [line.split("│")[1].strip() for line in lines[1:4]] == ["x", "Traceback", "line \\x1b[31m"]


def test_the_console_colors_names_and_levels() -> None:
    stream = io.StringIO()
    Console(stream, color=True, names=("web",)).line("web", RECORD)
    assert "\x1b[36mweb\x1b[0m" in stream.getvalue()
    assert "\x1b[33mjob finished" in stream.getvalue()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path


@pytest.mark.parametrize("form", [JsonLines, lambda stream: Console(stream, color=False, names=("web",))])
def test_a_log_that_cannot_be_written_costs_lines_and_nothing_else(form: Callable[[TextIO], Sink]) -> None:
    class Full(io.StringIO):
        full = True

        def flush(self) -> None:
            if self.full:
                self.seek(0)
                self.truncate()
                raise OSError(errno.ENOSPC, "No space left on device")

    stream = Full()
    sink = form(stream)
    for number in range(3):
        sink.line("web", f"line {number}")
    stream.full = False
    sink.say("there is room")
    sink.say("more")
    text = stream.getvalue()
    assert text.count("3 lines of this log could not be written") == 1
    assert text.index("could not") < text.index("there is room") < text.index("more")
    assert "line 0" not in text


def test_a_second_supervisor_on_the_same_home_is_refused_and_names_the_first(home: Path) -> None:
    lock = checks.take_lock(home)
    try:
        with pytest.raises(EnvironmentProblem, match=rf"pid {os.getpid()}\) runs on the home"):
            checks.take_lock(home)
    finally:
        os.close(lock)
    os.close(checks.take_lock(home))


def test_the_children_of_a_supervisor_that_is_gone_are_waited_for(home: Path) -> None:
    """A process that is gone wrote the lock; its child, which inherited the descriptor, still holds it."""
    lock = checks.take_lock(home)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock]) as child:
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(gone.pid).encode(), 0)
        os.close(lock)
        with pytest.raises(EnvironmentProblem, match="still hold"):
            checks.take_lock(home, leftovers_s=0.0)
        found: list[int] = []
        waiting = threading.Thread(target=lambda: found.append(checks.take_lock(home, leftovers_s=_DEADLINE_S)))
        waiting.start()
        assert child.stdin is not None
        child.stdin.write(b"\n")
        child.stdin.close()
        waiting.join(_DEADLINE_S)
    assert found
    os.close(found[0])


def test_a_port_in_use_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EnvironmentProblem, match=f"port {port} on 127.0.0.1 is in use"):
            checks.free_port("127.0.0.1", port)
    assert checks.free_port("127.0.0.1", port) == port
    assert checks.free_port("127.0.0.1", 0) > 0


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_an_address_that_is_not_this_machines(host: str) -> None:
    with pytest.raises(EnvironmentProblem, match=f"cannot listen on {host}"):
        checks.free_port(host, 0)


def test_not_root_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(EnvironmentProblem, match="sudo"):
        checks.require_root()


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("cloche.example", "http://cloche.example:80"),
    ],
)
def test_address(host: str, url: str) -> None:
    assert address(host, 80) == url


class Heard:
    """Collects what an announcer says."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self._changed = threading.Condition()

    def add(self, word: str) -> None:
        with self._changed:
            self.words.append(word)
            self._changed.notify_all()

    def wait_for(self, word: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: word in self.words, _DEADLINE_S), self.words


@contextmanager
def announcing(heard: Heard, port: int) -> Iterator[None]:
    announcer = Announcer(
        "127.0.0.1",
        port,
        listening=lambda: heard.add("listening"),
        waiting=heard.add,
        ready=lambda: heard.add("ready"),
    )
    announcer.start()
    try:
        yield
    finally:
        announcer.stop()
        announcer.stop()


def test_the_address_is_announced_once_and_each_reason_once() -> None:
    heard = Heard()
    with serving() as server:
        not_yet = Answer({"ready": False, "reasons": ["no Docker engine answers", "no worker"]}, 503)
        server.routes["GET /readyz"] = not_yet
        with announcing(heard, int(server.url.rpartition(":")[2])):
            heard.wait_for("no Docker engine answers; no worker")
            server.routes["GET /readyz"] = Answer({"ready": True, "reasons": []})
            heard.wait_for("ready")
    assert heard.words == ["listening", "no Docker engine answers; no worker", "ready"]


def _settings(home: Path) -> Settings:
    return Settings().model_copy(update={"home": home})


def test_the_plan_starts_the_daemon_first_and_the_workers_last(home: Path) -> None:
    planned = plan.services(_settings(home), {}, own_valkey=True)
    assert [service.name for service in planned] == ["valkey", "egress", "sandboxd", "scheduler", "web", "worker-1"]
    assert [service.stage for service in planned] == sorted(service.stage for service in planned)
    assert list(planned[-1].argv("an-id"))[-3:] == ["worker", "--id", "an-id"]


def test_the_egress_proxy_gets_no_password_of_a_database(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOCHE_REDIS_URL", "redis://:secret@queue.example/0")
    monkeypatch.setenv("SOME_TOKEN", "secret")
    monkeypatch.setenv("CLOCHE_EGRESS_ALLOW", "*:443")
    planned = plan.services(_settings(home), plan.child_environment(_settings(home), 1), own_valkey=False)
    environment = next(service.environment for service in planned if service.name == "egress")
    assert "secret" not in str(environment)
    assert environment["CLOCHE_EGRESS_ALLOW"] == "*:443"
    assert environment["CLOCHE_HOME"] == str(home)


def test_children_get_no_admin_password(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOCHE_ADMIN_PASSWORD", "correct horse battery")
    environment = plan.child_environment(_settings(home), 4321)
    assert "CLOCHE_ADMIN_PASSWORD" not in environment
    assert environment["CLOCHE_HOME"] == str(home)
    assert environment["CLOCHE_SERVER_PORT"] == "4321"
