"""The agent of a plugin with an image of its own: real commands, and whatever they may leave as their result."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloche.domain.limits import Limits
from cloche_guest import command as module
from cloche_guest.command import CommandAgent, Order, Refused, read_result
from cloche_guest.link import Link
from cloche_guest.protocol import FrameReader, encode
from cloche_guest.relay import Relay
from tests.support.stores import until

LIMIT = 1_000


def refused(path: Path, reason: str, says: str, limit: int = LIMIT, used: int | None = None) -> None:
    with pytest.raises(Refused, match=says) as caught:
        read_result(path, limit)
    assert caught.value.reason == reason
    assert caught.value.numbers == (None if used is None else {"used": used})


@pytest.mark.parametrize("text", ['{"a": [1, 2.5, null, true, "é"]}', "null", "7", '"text"', " [ ] \n"])
def test_a_result(tmp_path: Path, text: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(text)
    assert read_result(path, LIMIT) == json.loads(text)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"NaN",
        b"[Infinity]",
        b"1e999",
        b'{"a": 1, "a": 2}',
        b'"\xff"',
        b'"\\ud800"',
        b"[" * 65 + b"]" * 65,
        b"[" * 480 + b"]" * 480,
        b"9" * 66,
        b"{} {}",
        b'"a\nb"',
        b"\xef\xbb\xbf{}",
        b"\0",
    ],
)
def test_what_is_no_strict_json(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "result.json"
    path.write_bytes(data)
    refused(path, "bad_result", "was refused")


def test_no_result(tmp_path: Path) -> None:
    refused(tmp_path / "result.json", "no_result", "exit code 0")


def test_its_size(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text('"' + "x" * (LIMIT - 2) + '"')
    assert read_result(path, LIMIT)
    path.write_text('"' + "x" * (LIMIT - 1) + '"')
    refused(path, "result_too_large", "1001 bytes; the limit of a result is 1000", used=1_001)
    os.truncate(path, 1 << 40)
    refused(path, "result_too_large", str(1 << 40), used=1 << 40)


def test_what_is_no_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    (tmp_path / "real").write_text("1")
    for make in (
        lambda: path.symlink_to(tmp_path / "real"),
        lambda: path.symlink_to(tmp_path / "absent"),
        lambda: path.symlink_to("/dev/zero"),
        lambda: path.symlink_to(path),
        lambda: os.mkfifo(path),
        lambda: os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5)),
    ):
        make()
        refused(path, "bad_result", "is not a regular file")
        path.unlink()
    listener = socket.socket(socket.AF_UNIX)
    with listener:
        listener.bind(str(path))
        refused(path, "bad_result", "is not a regular file")
    path.unlink()
    path.mkdir()
    refused(path, "bad_result", "is not a regular file")


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


class Host:
    """The host's end of an agent that runs in a thread."""

    def __init__(self, folder: Path, command: list[str], environment: dict[str, str] | None = None) -> None:
        self.job, self.out = folder / "job", folder / "out"
        self.job.mkdir()
        self.out.mkdir()
        self._stream, theirs = socket.socketpair()
        self._theirs = theirs
        self._stream.settimeout(30)
        self._frames = FrameReader()
        self._pipes = [os.pipe() for _ in range(2)]
        for reader, _ in self._pipes:
            os.set_blocking(reader, False)
        link = Link(theirs.fileno(), theirs.fileno())
        relay = Relay(link, self._pipes[0][0], self._pipes[1][0])
        order = Order(command, environment or {"PATH": "/usr/bin:/bin"})
        self.agent = CommandAgent(link, relay, order, self.job, folder / "in", self.out)
        self._thread = threading.Thread(target=self.agent.serve_command, daemon=True)
        self._thread.start()

    def receive(self) -> dict[str, Any]:
        while (frame := self._frames.next()) is None:
            self._frames.feed(self._stream.recv(65_536))
        return frame

    def send(self, **frame: Any) -> None:
        self._stream.sendall(encode(frame))

    def start(self, **payload: Any) -> None:
        assert self.receive()["type"] == "ready"
        limits = Limits().to_dict() | {"result": LIMIT}
        self.send(type="job", id="j", attempt=2, payload=payload, inputs=["a b.txt", "c/d"], limits=limits)

    def last(self) -> dict[str, Any]:
        while (frame := self.receive())["type"] not in ("result", "error"):
            pass
        self._thread.join(30)
        return frame


@pytest.fixture
def deaths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The signals that the agent would have ended by."""
    seen: list[int] = []

    def die(number: int) -> None:
        seen.append(number)
        raise Refused("plugin_failed", "here the agent's process ends")

    monkeypatch.setattr(module, "die_of", die)
    return seen


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    # The frames' thread ends its process with the host; here that would be the test's own.
    ended = threading.Event()
    monkeypatch.setattr(os, "_exit", lambda code: ended.set())
    made: list[Host] = []

    def begin(script: str, **environment: str) -> Host:
        made.append(
            Host(
                tmp_path,
                ["/bin/sh", "-c", script],
                {"PATH": "/usr/bin:/bin", "JOB": str(tmp_path / "job"), **environment},
            )
        )
        return made[0]

    yield begin
    for each in made:
        each._stream.close()
        assert ended.wait(10)
        each._theirs.close()
        for pair in each._pipes:
            for fd in pair:
                os.close(fd)


def test_the_contract(host: Any, tmp_path: Path) -> None:
    here = host(
        'cp "$JOB/job.json" copy.json; pwd > where; printf \'{"got": "%s"}\' "$MORE" > "$JOB/result.json"', MORE="é"
    )
    here.start(word="x\ny é")
    assert here.last() == {"type": "result", "value": {"got": "é"}}
    text = (here.out / "copy.json").read_text("utf-8")
    assert text.count("\n") == 1
    assert json.loads(text) == {
        "id": "j",
        "attempt": 2,
        "payload": {"word": "x\ny é"},
        "inputs": [str(tmp_path / "in" / "a b.txt"), str(tmp_path / "in" / "c" / "d")],
        "out": str(here.out),
        "limits": Limits().to_dict() | {"result": LIMIT},
    }
    assert (here.out / "where").read_text().strip() == str(here.out)


def test_an_exit_code(host: Any) -> None:
    here = host('echo 1 > "$JOB/result.json"; exit 3')
    here.start()
    last = here.last()
    assert (last["reason"], last["message"]) == ("plugin_failed", "the command ended with exit code 3")


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("true", "no_result"),
        ('echo NaN > "$JOB/result.json"', "bad_result"),
        ('ln -s job.json "$JOB/result.json"', "bad_result"),
        ('mkfifo "$JOB/result.json"', "bad_result"),
        ('head -c 2000 /dev/zero > "$JOB/result.json"', "result_too_large"),
        ("exit 126", "plugin_failed"),
    ],
)
def test_failures_by_name(host: Any, script: str, reason: str) -> None:
    here = host(script)
    here.start()
    assert here.last()["reason"] == reason


def test_a_command_that_is_not_there(host: Any) -> None:
    here = host("true")
    here.agent._order = Order(["/bin/absent"], {})
    here.start()
    last = here.last()
    assert last["reason"] == "plugin_failed"
    assert last["message"] == "the command /bin/absent cannot be started: No such file or directory"


def test_what_it_leaves_running_is_killed_before_its_result_is_read(host: Any) -> None:
    here = host('sleep 600 & echo $! > pid; echo 1 > "$JOB/result.json"')
    here.start()
    assert here.last()["type"] == "result"
    pid = int((here.out / "pid").read_text())
    until(lambda: gone(pid), 10, "it has died")


def test_cancel_reaches_the_whole_group(host: Any) -> None:
    here = host(
        "trap 'echo 1 > \"$JOB/result.json\"; exit 0' TERM; mkfifo ready; (echo x > ready; sleep 600) & read x < ready; : > up; wait"
    )
    here.start()
    until((here.out / "up").exists, 30, "the command runs")
    here.send(type="cancel")
    assert here.last() == {"type": "result", "value": 1}


def test_cancel_before_the_command_runs(host: Any, deaths: list[int]) -> None:
    here = host("sleep 600")
    here.agent._cancel()
    here.start()
    here.last()
    assert deaths == [signal.SIGTERM]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, signal.SIGPIPE, signal.SIGABRT])
def test_a_signal_is_passed_on(number: signal.Signals) -> None:
    code = f"""
import resource
from cloche_guest.command import die_of
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
die_of({int(number)})
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -number


def test_the_agent_ends_as_its_command_did(host: Any, deaths: list[int]) -> None:
    here = host("kill -SEGV $$")
    here.start()
    here.last()
    assert deaths == [signal.SIGSEGV]
