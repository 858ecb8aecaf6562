"""sandboxd from start to end: nothing is left, whoever dies, and whatever is sent."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cloche import config
from cloche.domain.states import Reason
from cloche.errors import EnvironmentProblem, PlatformFailure
from cloche.isolation import wire
from cloche.isolation.backend import Sandbox
from cloche.isolation.spec import LABEL
from cloche.isolation.spec_json import spec_to_json
from cloche.sandboxd import main, syscalls
from cloche.sandboxd.main import Sandboxd
from cloche.sandboxd.places import home_digest
from tests.support import sandbox as support

pytestmark = pytest.mark.docker
ENGINE = "/var/run/docker.sock"
SLEEPER = support.plugin("time.sleep(600)")


def containers(home: Path) -> list[str]:
    command = ["docker", "ps", "--all", "--quiet", "--filter", f"label={LABEL}.home={home_digest(home)}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def leftovers(home: Path) -> list[str]:
    """Everything of this home's sandboxes that the host still has."""
    folders = list((home / "sandboxes").iterdir()) if (home / "sandboxes").exists() else []
    return [*containers(home), *map(str, syscalls.mounts_below(home)), *map(str, folders)]


def ready(sandbox: Sandbox) -> Sandbox:
    frame = sandbox.channel.receive(30)
    assert frame is not None
    assert frame["type"] == "ready"
    return sandbox


@pytest.fixture
def home() -> Iterator[Path]:
    with support.temporary_home() as folder:
        yield folder


@pytest.fixture
def daemon(home: Path) -> Iterator[Sandboxd]:
    with support.running_sandboxd(home) as running:
        yield running


@pytest.fixture
def start(home: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts sandboxd as a process of its own."""
    code = "import sys; from cloche import config; from cloche.sandboxd.main import run; sys.exit(run(config.load(home=sys.argv[1])))"
    started: list[subprocess.Popen[bytes]] = []

    def go() -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", code, str(home)], stderr=subprocess.DEVNULL)
        started.append(process)
        probe = support.client(home, "probe")
        support.wait_until(lambda: probe.health() is None, "sandboxd is ready", support.READY_SECONDS)
        probe.close()
        return process

    yield go
    for process in started:
        process.terminate()
        process.wait(30)


def test_a_closed_connection_takes_its_sandboxes_along(home: Path, daemon: Sandboxd) -> None:
    bundle = support.write_bundle(home, SLEEPER)
    leaving, staying = support.client(home, "w1"), support.client(home, "w2")
    kept = ready(staying.create(support.spec(bundle)))
    for _ in range(2):
        ready(leaving.create(support.spec(bundle)))
    assert len(containers(home)) == 3
    leaving.close()
    support.wait_until(lambda: len(containers(home)) == 1, "two containers are gone")
    (left,) = staying.listing()
    assert (left["id"], left["owner"], left["dead"]) == (kept.id, "w2", False)
    kept.destroy()
    kept.destroy()
    staying.close()
    support.wait_until(lambda: not leftovers(home), "nothing is left")


def test_owner_gone_returns_when_the_owner_is_dead(home: Path, daemon: Sandboxd) -> None:
    bundle = support.write_bundle(home, SLEEPER)
    worker, scheduler = support.client(home, "w1"), support.client(home, "scheduler")
    sandbox = ready(worker.create(support.spec(bundle)))
    running = daemon.host.find(sandbox.id)
    assert running is not None
    scheduler.owner_gone("w1")
    assert running.is_dead()
    assert not leftovers(home)
    with pytest.raises(PlatformFailure):
        sandbox.finish()
    scheduler.owner_gone("w1")
    scheduler.owner_gone("never-seen")
    with pytest.raises(PlatformFailure):
        scheduler.owner_gone("scheduler")
    again = ready(worker.create(support.spec(bundle)))  # a new session
    again.destroy()
    worker.close()
    scheduler.close()


def test_owner_gone_while_a_sandbox_is_being_made(home: Path, daemon: Sandboxd) -> None:
    bundle = support.write_bundle(home, SLEEPER)
    worker, scheduler = support.client(home, "w1"), support.client(home, "scheduler")
    assert worker.health() is None  # the session exists
    failures: list[BaseException] = []

    def create() -> None:
        try:
            worker.create(support.spec(bundle))
        except PlatformFailure as error:
            failures.append(error)

    maker = threading.Thread(target=create)
    maker.start()
    support.wait_until(lambda: containers(home), "a container is on its way")
    scheduler.owner_gone("w1")
    assert not [item for item in scheduler.listing() if item["owner"] == "w1"]
    maker.join(30)
    support.wait_until(lambda: not leftovers(home), "nothing is left")
    worker.close()
    scheduler.close()


def test_killed_without_warning_its_orphans_are_reaped_at_the_next_start(
    home: Path, start: Callable[[], subprocess.Popen[bytes]]
) -> None:
    bundle = support.write_bundle(home, SLEEPER)
    process = start()
    worker = support.client(home, "w1")
    sandbox = ready(worker.create(support.spec(bundle)))
    sandbox.channel.send(support.job_frame(support.spec(bundle)))
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    assert len(containers(home)) == 1
    with pytest.raises(PlatformFailure) as caught:
        sandbox.finish()
    assert caught.value.reason == Reason.ENGINE_UNAVAILABLE
    assert worker.health() is not None
    start()
    assert not leftovers(home)
    ready(worker.create(support.spec(bundle))).destroy()
    worker.close()


def test_sigterm_leaves_nothing(home: Path, start: Callable[[], subprocess.Popen[bytes]]) -> None:
    bundle = support.write_bundle(home, SLEEPER)
    process = start()
    worker = support.client(home, "w1")
    for _ in range(2):
        ready(worker.create(support.spec(bundle)))
    process.terminate()
    assert process.wait(30) == 0
    assert not leftovers(home)
    assert not (home / "run" / "sandboxd.sock").exists()


def test_one_sandboxd_per_home(home: Path, daemon: Sandboxd) -> None:
    with pytest.raises(EnvironmentProblem, match="another sandboxd"):
        Sandboxd(config.load(home=home))


def test_it_needs_root(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main.os, "geteuid", lambda: 1_000)
    with pytest.raises(EnvironmentProblem, match="root"):
        Sandboxd(config.load(home=home))


def test_sandboxes_made_at_once_have_users_of_their_own(home: Path, daemon: Sandboxd) -> None:
    bundle = support.write_bundle(home, support.plugin("return os.getuid()"))
    backend = support.client(home)
    with ThreadPoolExecutor(4) as pool:
        specs = [support.spec(bundle) for _ in range(4)]
        made = list(pool.map(backend.create, specs))
        uids = []
        for sandbox, spec in zip(made, specs, strict=True):
            ready(sandbox)
            sandbox.channel.send(support.job_frame(spec))
            frame = sandbox.channel.receive(10)
            assert frame is not None
            uids.append(frame["value"])
        list(pool.map(lambda sandbox: sandbox.destroy(), made))
    assert len(set(uids)) == 4
    assert not leftovers(home)
    backend.close()


def test_no_more_than_the_limit(home: Path) -> None:
    bundle = support.write_bundle(home, SLEEPER)
    with support.running_sandboxd(home, max_running=1):
        backend = support.client(home)
        first = backend.create(support.spec(bundle))
        with pytest.raises(PlatformFailure, match="limit") as caught:
            backend.create(support.spec(bundle))
        assert caught.value.reason == Reason.ENGINE_UNAVAILABLE
        first.destroy()
        backend.create(support.spec(bundle)).destroy()
        backend.close()


def test_without_an_engine_it_says_so_and_recovers(home: Path) -> None:
    bundle = support.write_bundle(home, SLEEPER)
    place = home / "engine.sock"
    daemon = Sandboxd(config.load(home=home, sandbox={"docker_socket": str(place)}))
    daemon.start()
    backend = support.client(home)
    try:
        problem = support.wait_until(
            lambda: "engine" in (backend.health() or "") and backend.health(), "health says so"
        )
        assert "does not answer" in problem
        with pytest.raises(PlatformFailure) as caught:
            backend.create(support.spec(bundle))
        assert caught.value.reason == Reason.ENGINE_UNAVAILABLE
        place.symlink_to(ENGINE)
        support.wait_until(lambda: backend.health() is None, "the engine is found again", support.READY_SECONDS)
        ready(backend.create(support.spec(bundle))).destroy()
    finally:
        backend.close()
        daemon.close()
    assert not leftovers(home)


def test_an_engine_that_goes_away_under_a_job(home: Path) -> None:
    bundle = support.write_bundle(home, SLEEPER)
    with Relay(home / "engine.sock", ENGINE) as relay, support.running_sandboxd(home, docker_socket=str(relay.path)):
        backend = support.client(home)
        spec = support.spec(bundle)
        sandbox = ready(backend.create(spec))
        sandbox.channel.send(support.job_frame(spec))
        relay.cut()
        with pytest.raises(EOFError):
            sandbox.channel.receive(20)
        with pytest.raises(PlatformFailure) as caught:
            sandbox.finish()
        assert caught.value.reason == Reason.ENGINE_UNAVAILABLE
        assert backend.health() is not None
        sandbox.destroy()  # its processes are dead although the engine was not asked
        assert not syscalls.mounts_below(home)
        relay.mend()
        support.wait_until(lambda: not leftovers(home), "the keeper removes the container")
        assert backend.health() is None
        backend.close()


class Relay:
    """A Unix socket before the engine's, to be cut and mended."""

    def __init__(self, path: Path, target: str) -> None:
        self.path = path
        self._target = target
        self._streams: list[socket.socket] = []
        self._listener: socket.socket | None = None

    def __enter__(self) -> Relay:
        self.mend()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()

    def mend(self) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def cut(self) -> None:
        assert self._listener is not None
        self.path.unlink(missing_ok=True)
        for stream in [self._listener, *self._streams]:
            try:
                stream.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        self._streams.clear()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX)
            far.connect(self._target)
            self._streams += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pour, args=(source, sink), daemon=True).start()

    @staticmethod
    def _pour(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65_536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return


class Raw:
    """A connection that says what it likes."""

    def __init__(self, home: Path) -> None:
        self.stream = socket.socket(socket.AF_UNIX)
        self.stream.settimeout(20)
        self.stream.connect(str(home / "run" / "sandboxd.sock"))

    def ask(self, **request: Any) -> dict[str, Any] | None:
        wire.send(self.stream, request, wire.MAX_REQUEST)
        return self.answer()

    def answer(self) -> dict[str, Any] | None:
        try:
            return wire.receive(self.stream, wire.MAX_REPLY)[0]
        except ConnectionResetError:
            return None


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\xff\xff\xff",
        struct.pack(">I", 2) + b"[]",
        struct.pack(">I", 9) + b'{"op":NaN',
        struct.pack(">I", 30) + b'{"op":"health","op":"health"} ',
    ],
)
def test_garbage_ends_the_connection(home: Path, daemon: Sandboxd, data: bytes) -> None:
    for greeted in (False, True):
        raw = Raw(home)
        if greeted:
            assert raw.ask(op="hello", owner="w", session=None)
        raw.stream.sendall(data)
        assert raw.answer() is None


@pytest.mark.parametrize(
    "request_",
    [
        {"op": "health"},
        {"op": "hello"},
        {"op": "hello", "owner": "../x", "session": None},
        {"op": "hello", "owner": "w", "session": "guessed"},
        {"op": "hello", "owner": "w", "session": 1},
        {"op": "hello", "owner": "w", "session": None, "root": True},
    ],
)
def test_a_bad_greeting_ends_the_connection(home: Path, daemon: Sandboxd, request_: dict[str, Any]) -> None:
    assert Raw(home).ask(**request_) is None


def test_bad_requests_are_refused_or_end_the_session(home: Path, daemon: Sandboxd) -> None:
    raw = Raw(home)
    assert raw.ask(op="hello", owner="w", session=None)
    good = spec_to_json(support.spec("a" * 64))
    for request in (
        {"op": "health", "extra": 1},
        {"op": "create"},
        {"op": "create", "spec": {**good, "HostConfig": {"Privileged": True}}},
        {"op": "create", "spec": {**good, "bundle": "../../../../etc"}},
        {"op": "create", "spec": good, "image": "evil"},
        {"op": "kill", "id": ["x"]},
        {"op": "finish", "id": "not-mine"},
        {"op": "owner_gone", "owner": "w"},
    ):
        reply = raw.ask(**request)
        assert reply is not None, request
        assert reply["ok"] is False, request
    health = raw.ask(op="health")
    assert health is not None
    assert health["problem"] is None
    assert raw.ask(op="exec", id="x") is None
    assert not leftovers(home)


def test_one_session_cannot_touch_anothers_sandbox(home: Path, daemon: Sandboxd) -> None:
    bundle = support.write_bundle(home, SLEEPER)
    backend = support.client(home, "w1")
    sandbox = ready(backend.create(support.spec(bundle)))
    raw = Raw(home)
    assert raw.ask(op="hello", owner="w1", session=None)
    for op in ("kill", "destroy", "finish"):
        raw.ask(op=op, id=sandbox.id)
    running = daemon.host.find(sandbox.id)
    assert running is not None
    assert not running.is_dead()
    backend.close()


def test_a_descriptor_in_a_request_ends_the_connection(home: Path, daemon: Sandboxd) -> None:
    raw = Raw(home)
    assert raw.ask(op="hello", owner="w", session=None)
    wire.send(raw.stream, {"op": "health"}, wire.MAX_REQUEST, 2)
    assert raw.answer() is None


def test_other_users_are_refused_by_the_kernels_word(home: Path, daemon: Sandboxd) -> None:
    os.chmod(home, 0o755)
    os.chmod(home / "run", 0o755)
    os.chmod(home / "run" / "sandboxd.sock", 0o666)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgid(12_345)
            os.setuid(12_345)
            raw = Raw(home)
            code = 0 if raw.ask(op="hello", owner="w", session=None) is None else 2
        except (BrokenPipeError, ConnectionResetError):
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert Raw(home).ask(op="hello", owner="w", session=None)


def test_a_bundle_that_is_a_link_is_not_there(home: Path, daemon: Sandboxd) -> None:
    (home / "bundles").mkdir()
    (home / "bundles" / ("e" * 64)).symlink_to("/etc")
    backend = support.client(home)
    with pytest.raises(PlatformFailure) as caught:
        backend.create(support.spec("e" * 64))
    assert caught.value.reason == Reason.BUNDLE_UNAVAILABLE
    assert not leftovers(home)
    backend.close()


def test_a_home_that_another_user_can_change_is_not_where_sandboxes_live(home: Path) -> None:
    os.chown(home, 12_345, 12_345)
    with support.running_sandboxd(home):
        backend = support.client(home)
        bundle = support.write_bundle(
            home, support.plugin("(job.out / 'f').write_text('x'); return job.inputs[0].read_text()")
        )
        places: list[Path] = []
        outcome = support.run_job(
            backend, support.spec(bundle), inputs={"a": b"in"}, look=lambda sandbox: places.append(sandbox.in_folder)
        )
        backend.close()
    assert outcome.value == "in"
    assert outcome.contents == {"f": b"x"}
    (place,) = places
    root = place.parents[1]
    assert root.is_relative_to("/var/lib/cloche")
    assert root.stat().st_mode & 0o7777 == 0o710
    assert list(root.iterdir()) == []
    root.rmdir()
    root.parent.rmdir()
    with contextlib.suppress(OSError):
        root.parents[1].rmdir()  # unless another home lives there
