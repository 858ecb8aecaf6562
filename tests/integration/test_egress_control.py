"""sandboxd and the egress proxy: who is heard, what is refused, and what the end of either does. Needs root, no engine."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cloche.domain.limits import Limits
from cloche.domain.states import Reason
from cloche.errors import PlatformFailure
from cloche.isolation import wire
from cloche.isolation.spec import BadSpec
from cloche.sandboxd.egress import EgressLink
from cloche.sandboxd.running import Running
from tests.support.egress import platform, read_all, running_egress, serving
from tests.support.stores import until

NOBODY = 65_534


def running(folder: Path, number: int = 0, uid: int = NOBODY) -> Running:
    """A sandbox as the link sees it."""
    folder.mkdir(parents=True, exist_ok=True)
    site: Any = SimpleNamespace(folders=SimpleNamespace(run=folder))
    cgroup: Any = None
    return Running(f"sandbox-{number}", "w1", "c1", Limits(), uid, site, cgroup, -1, counts_swap=True, egress=True)


def as_nobody(work: Callable[[], str]) -> str:
    """What the function answers in a child that runs under that user; the interpreter's own files may be out of that user's reach."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            answer = work()
        except BaseException as error:
            answer = type(error).__name__
        os.write(writer, answer.encode())
        os._exit(0)
    os.close(writer)
    try:
        return os.read(reader, 4_096).decode()
    finally:
        os.close(reader)
        os.waitpid(child, 0)


def ask(path: Path, text: str) -> Callable[[], str]:
    """The first line of what one request is answered with."""

    def work() -> str:
        with socket.socket(socket.AF_UNIX) as stream:
            stream.settimeout(10)
            stream.connect(str(path))
            stream.sendall(text.encode())
            stream.shutdown(socket.SHUT_WR)
            return stream.recv(200).decode().partition("\r\n")[0]

    return work


def control(home: Path) -> socket.socket:
    stream = socket.socket(socket.AF_UNIX)
    stream.settimeout(10)
    stream.connect(str(home / "run" / "egress.sock"))
    return stream


def listener(folder: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.bind(str(folder / f"l-{len(list(folder.iterdir()))}.sock"))
    made.listen(1)
    return made


def test_the_sandboxs_user_is_let_through_and_told_of(home):
    home.chmod(0o755)
    with serving() as target, running_egress(home, platform()):
        link = EgressLink(home / "run" / "egress.sock", frozenset({0}))
        # a path far longer than a socket's address may be
        folder = home / ("deep" * 20) / ("deeper" * 10) / "run"
        one = running(folder)
        link.open(one, [target.address])
        (home / "short").symlink_to(folder)
        said = as_nobody(ask(home / "short" / "egress.sock", f"CONNECT {target.address} HTTP/1.1\r\n\r\n"))
        assert said == "HTTP/1.1 200 Connection established"
        report = link.close(one)
        assert report is not None
        assert report.total == 1
        assert link.close(one) is None
        link.disconnect()


@pytest.mark.parametrize("allow", [[], None, "a:1", [1], ["a"], ["*:443"], ["127.1:80"], ["a.example:1"] * 33])
def test_a_malformed_list_is_refused_before_a_socket_is_made(home, allow):
    with running_egress(home, platform()):
        link = EgressLink(home / "run" / "egress.sock", frozenset({0}))
        one = running(home / "box")
        with pytest.raises(BadSpec):
            link.open(one, allow)
        assert list((home / "box").iterdir()) == []


def test_a_sandbox_that_has_ended_gets_nothing(home):
    with running_egress(home, platform()):
        link = EgressLink(home / "run" / "egress.sock", frozenset({0}))
        for change in ({"killed": True}, {"finished": True}, {"egress": False}):
            one = running(home / "box")
            for name, value in change.items():
                setattr(one, name, value)
            with pytest.raises(BadSpec):
                link.open(one, ["a.example:1"])


def test_an_impostor_on_the_proxys_path_is_not_trusted(home):
    """Whoever may write to the run folder can put a socket there; the kernel tells whose it is."""
    path = home / "egress.sock"
    impostor = socket.socket(socket.AF_UNIX)
    impostor.bind(str(path))
    path.chmod(0o666)
    # Who listens is who is told: the credentials are those of the moment of listen().
    os.seteuid(NOBODY)
    try:
        impostor.listen()
    finally:
        os.seteuid(0)
    try:
        with pytest.raises(PlatformFailure) as caught:
            EgressLink(path, frozenset({0})).open(running(home / "box"), ["a.example:1"])
        assert caught.value.reason == Reason.EGRESS_UNAVAILABLE
    finally:
        impostor.close()


def test_nobody_but_root_is_heard_by_the_proxy(home):
    home.chmod(0o755)
    with running_egress(home, platform()):
        path = home / "run" / "egress.sock"
        assert path.lstat().st_mode & 0o777 == 0o600
        assert "PermissionError" in as_nobody(ask(path, "x"))
        path.chmod(0o666)  # even where the file's mode would let them
        said = as_nobody(ask(path, '\0\0\0\x0f{"op":"health"}'))
        assert '"ok"' not in said  # a word of the answer; "BrokenPipeError" has it too, without the quotes


@pytest.mark.parametrize(
    "request_",
    [
        {"op": "health", "more": 1},
        {"op": "nonsense"},
        {"sandbox": "x"},
        {"op": "open", "sandbox": "x", "peers": [1], "allow": ["a.example:1"]},  # without a descriptor
        {"op": "close"},
        {"op": "close", "sandbox": 5},
    ],
)
def test_a_malformed_request_ends_the_connection_and_all_it_opened(home, request_):
    with running_egress(home, platform()):
        link = EgressLink(home / "run" / "egress.sock", frozenset({0}))
        link.open(running(home / "kept"), ["a.example:1"])
        with control(home) as stream:
            door = listener(home)
            wire.send(
                stream,
                {"op": "open", "sandbox": "mine", "peers": [NOBODY], "allow": ["a.example:1"]},
                wire.MAX_REQUEST,
                door.fileno(),
            )
            assert wire.receive(stream, wire.MAX_REPLY)[0] == {"ok": True}
            door.close()
            wire.send(stream, request_, wire.MAX_REQUEST)
            assert read_all(stream) == b""
        # what another connection opened stays
        with control(home) as stream:
            until(lambda: _health(stream)["sandboxes"] == 1, 5, "only what was broken off is gone")
        link.disconnect()
        with control(home) as stream:
            until(lambda: _health(stream)["sandboxes"] == 0, 5, "the end of the link ends the rest")


def _health(stream: socket.socket) -> dict[str, Any]:
    wire.send(stream, {"op": "health"}, wire.MAX_REQUEST)
    reply, _ = wire.receive(stream, wire.MAX_REPLY)
    assert reply is not None
    return reply


@pytest.mark.parametrize("peers", [[], [0], [True], ["1"], [-1], [1 << 32], None, list(range(1, 200))])
def test_root_is_no_sandboxs_user(home, peers):
    with running_egress(home, platform()), control(home) as stream:
        door = listener(home)
        wire.send(
            stream,
            {"op": "open", "sandbox": "x", "peers": peers, "allow": ["a.example:1"]},
            wire.MAX_REQUEST,
            door.fileno(),
        )
        door.close()
        assert read_all(stream) == b""


@pytest.mark.parametrize(
    "group", ["/", "", None, 1, "/x", "/a/b/other", "/a/b/x/", "a/b/x", "/a/b\n/x", "/a/../x" + "y", "/" * 3 + "x"]
)
def test_a_group_is_the_sandboxs_own(home, group):
    with running_egress(home, platform()), control(home) as stream:
        door = listener(home)
        request = {"op": "open", "sandbox": "x", "group": group, "allow": ["a.example:1"]}
        wire.send(stream, request, wire.MAX_REQUEST, door.fileno())
        door.close()
        assert read_all(stream) == b""


def test_users_and_a_group_together_are_malformed(home):
    with running_egress(home, platform()), control(home) as stream:
        door = listener(home)
        request = {"op": "open", "sandbox": "x", "group": "/a/b/x", "peers": [1], "allow": ["a.example:1"]}
        wire.send(stream, request, wire.MAX_REQUEST, door.fileno())
        door.close()
        assert read_all(stream) == b""


def test_only_a_listening_unix_socket_is_taken(home):
    with running_egress(home, platform()):
        reader, writer = os.pipe()
        inet = socket.create_server(("127.0.0.1", 0))
        idle = socket.socket(socket.AF_UNIX)
        try:
            for number in (reader, inet.fileno(), idle.fileno()):
                with control(home) as stream:
                    request = {"op": "open", "sandbox": "x", "peers": [NOBODY], "allow": ["a.example:1"]}
                    wire.send(stream, request, wire.MAX_REQUEST, number)
                    assert read_all(stream) == b""
        finally:
            os.close(reader)
            os.close(writer)
            inet.close()
            idle.close()


def test_nothing_of_a_thousand_jobs_is_left(home):
    """Descriptors, tasks, grants: what the proxy holds after them is what it held before."""
    with serving() as target, running_egress(home, platform()) as server:
        link = EgressLink(home / "run" / "egress.sock", frozenset({0}))

        def job(number: int) -> None:
            folder = home / "box"
            one = running(folder, number, uid=NOBODY)
            link.open(one, [target.address])
            with socket.socket(socket.AF_UNIX) as stream:
                stream.connect(str(folder / "egress.sock"))  # root: accepted and sent away
                link.close(one)
            (folder / "egress.sock").unlink()

        for number in range(20):
            job(number)
        before = len(os.listdir("/proc/self/fd"))
        for number in range(1_000):
            job(number)
        until(lambda: len(os.listdir("/proc/self/fd")) <= before, 10, "no descriptor more than before")
        assert not server._grants
        link.disconnect()
