"""An exception that nobody expected, whatever one sandbox brought it about by: every other sandbox goes on."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cloche.errors import PlatformFailure
from cloche.isolation import wire
from cloche.sandboxd.budget import Budget
from cloche.sandboxd.engine import EngineAway, EngineRefused
from cloche.sandboxd.host import Host
from cloche.sandboxd.leftovers import Leftovers, Remains
from cloche.sandboxd.making import Parts
from cloche.sandboxd.server import Server
from cloche.sandboxd.sessions import Sessions
from cloche.sandboxd.supply import Supply
from tests.support import sandbox as support


class FakeHost:
    """Sandboxes by name; ``broken`` ones raise what nobody expects, and ``stuck`` ones do not die."""

    def __init__(self) -> None:
        self.killed: list[str] = []
        self.destroyed: list[str] = []
        self.broken: set[str] = set()
        self.stuck: set[str] = set()

    def find(self, name: str) -> Any:
        def kill() -> None:
            self.killed.append(name)
            if name in self.broken:
                raise ValueError("not enough values to unpack")

        return SimpleNamespace(kill=kill)

    def destroy(self, name: str) -> None:
        if name in self.broken:
            raise ValueError("not enough values to unpack")
        if name in self.stuck:
            raise PlatformFailure("engine_unavailable", "it does not die")
        self.destroyed.append(name)

    def health(self) -> dict[str, Any]:
        return {"problem": None}

    def listing(self) -> list[Any]:
        raise ValueError("not enough values to unpack")


def test_the_end_of_a_session_destroys_all_that_can_be() -> None:
    host: Any = FakeHost()
    sessions = Sessions(host)
    session = sessions.join("worker", None, 0, 0, lambda: None)
    names = {f"box-{number}" for number in range(6)}
    session.sandboxes |= names
    host.broken, host.stuck = {"box-1", "box-3"}, {"box-2"}
    sessions.end(session)
    assert set(host.killed) == names
    assert set(host.destroyed) == names - {"box-1", "box-2", "box-3"}
    assert session.done.is_set()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[FakeHost, socket.socket]]:
    """A client of a server whose host is no real one, after its greeting."""
    host: Any = FakeHost()
    supply: Any = None
    path = tmp_path / "s.sock"
    running = Server(host, supply, path, 0, 0)
    running.start()
    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(60)
        stream.connect(str(path))
        assert ask(stream, {"op": "hello", "owner": "worker", "session": None})["ok"]
        yield host, stream
    running.close()


def ask(stream: socket.socket, request: dict[str, Any]) -> dict[str, Any]:
    wire.send(stream, request, wire.MAX_REQUEST)
    answer, _ = wire.receive(stream, wire.MAX_REPLY)
    assert answer is not None, "the session was ended"
    return answer


def test_a_request_that_fails_unexpectedly_ends_no_session(server: tuple[FakeHost, socket.socket]) -> None:
    _, stream = server
    answer = ask(stream, {"op": "list"})
    assert (answer["ok"], answer["reason"]) == (False, "platform_failed")
    assert "unpack" not in answer["message"], "the log tells"
    assert ask(stream, {"op": "health"})["ok"]


def made_leftovers(engine: Any) -> Leftovers:
    groups: Any = SimpleNamespace(remove=lambda name: None)
    uids: Any = None
    return Leftovers(engine, groups, lambda name: None, uids)


def made_host(monkeypatch: pytest.MonkeyPatch, **parts: Any) -> Host:
    monkeypatch.setattr("cloche.sandboxd.host.RETRY_SECONDS", 0.02)
    runtimes = SimpleNamespace(prepare=lambda image: None, obstacle=None)
    given: dict[str, Any] = {
        "engine": None,
        "places": None,
        "uids": None,
        "home": "h",
        "seccomp": "{}",
        "max_running": 1,
    }
    given |= {"make_image": lambda engine: None, "runtimes": runtimes, "leftovers": made_leftovers(None)} | parts
    return Host(**given)


def test_the_keeper_of_the_host_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def prepare(image: str) -> None:
        calls.append(image)
        if len(calls) == 1:
            raise ValueError("nobody expected this")

    removed: list[str] = []

    def remove(container: str) -> None:
        removed.append(container)
        if removed.count(container) == 1:
            raise EngineRefused("not now")
        if removed.count(container) == 2 and container == "broken":
            raise ValueError("nobody expected this")

    runtimes = SimpleNamespace(prepare=prepare, obstacle=None)
    leftovers = made_leftovers(SimpleNamespace(remove=remove))
    host = made_host(monkeypatch, runtimes=runtimes, leftovers=leftovers)
    for name in ("broken", "sound"):
        leftovers.remove(Remains(name, None, name, dead=True))
    ready: Any = SimpleNamespace(image=SimpleNamespace(id="image"))
    host._ready = ready
    host._condemned |= {"condemned-1", "condemned-2"}
    destroyed: list[str] = []

    def destroy(name: str) -> None:
        destroyed.append(name)
        if destroyed.count(name) == 1:
            raise ValueError("nobody expected this")
        host._condemned.discard(name)

    monkeypatch.setattr(host, "destroy", destroy)
    keeper = threading.Thread(target=host._keep, daemon=True)
    keeper.start()
    try:
        support.wait_until(lambda: not leftovers and not host._condemned, "all is removed", 60)
        assert [removed.count(name) for name in ("broken", "sound")] == [3, 2]
        assert [destroyed.count(name) for name in ("condemned-1", "condemned-2")] == [2, 2]
    finally:
        host._stop.set()
        host._wake.set()
        keeper.join(60)
    assert not keeper.is_alive()


def test_what_is_left_to_the_keeper_as_sandboxd_ends_is_tried_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be running, and nobody else comes for it before the next start."""
    preparing, goes_on = threading.Event(), threading.Event()

    def prepare(image: str) -> None:
        preparing.set()
        assert goes_on.wait(60)
        host._stop.set()
        leftovers.later(Remains("box", None, "c"), "the engine did not answer")

    calls: list[str] = []
    leftovers = made_leftovers(SimpleNamespace(remove=calls.append, inspect=lambda name: None))
    monkeypatch.setattr(leftovers, "retry", first_in_vain(leftovers.retry))
    host = made_host(monkeypatch, runtimes=SimpleNamespace(prepare=prepare, obstacle=None), leftovers=leftovers)
    ready: Any = SimpleNamespace(image=SimpleNamespace(id="image"))
    host._ready = ready
    keeper = threading.Thread(target=host._keep, daemon=True)
    keeper.start()
    try:
        assert preparing.wait(60)
    finally:
        goes_on.set()
        keeper.join(60)
    assert not keeper.is_alive()
    assert (calls, len(leftovers)) == (["c"], 0)


def test_what_is_given_up_for_a_job_asks_nothing_of_the_engine_in_the_jobs_own_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its place, user id and mounts are free at once; a silent engine has the container removed later."""
    calls: list[str] = []
    given_back: list[int] = []
    groups: Any = SimpleNamespace(remove=lambda name: calls.append("group"))
    uids: Any = SimpleNamespace(give_back=given_back.append)
    engine: Any = SimpleNamespace(remove=calls.append)
    leftovers = Leftovers(engine, groups, lambda name: calls.append("site"), uids)
    host = made_host(monkeypatch, leftovers=leftovers)
    warm: Any = SimpleNamespace(
        id="box", uid=7, container="c", kill=lambda: None, close=lambda: None, dies=lambda: True
    )
    host._running["box"] = warm
    settings: Any = SimpleNamespace(enabled=True, max=1, min=0, idle=1_000, fill_rate=1.0)
    supply = Supply(host, settings, Path("/"), Budget(1 << 30).share())
    monkeypatch.setattr(supply.pools, "give_up_one", lambda: SimpleNamespace(running=warm))
    with host._place("next", "worker"):
        assert (calls, given_back, host.listing()) == (["group", "site"], [7], [])
    assert host._wake.is_set(), "the keeper comes for it"
    leftovers.retry()
    assert (calls, len(leftovers), given_back) == (["group", "site", "c"], 0, [7])
    supply.close()


def first_in_vain(retry: Callable[[], None]) -> Callable[[], None]:
    """As where the engine is silent still."""
    tries: list[int] = []

    def tried() -> None:
        tries.append(1)
        if len(tries) > 1:
            retry()

    return tried


@pytest.mark.parametrize("container", [None, "c"])
def test_an_engine_that_did_not_answer_is_not_asked_again_in_the_jobs_own_thread(
    monkeypatch: pytest.MonkeyPatch, container: str | None
) -> None:
    """Its worker waits for the answer. What the engine may have made is the keeper's to remove; where it was asked for nothing, all goes at once."""
    calls: list[str] = []
    leftovers = made_leftovers(SimpleNamespace(remove=calls.append, inspect=lambda name: None))
    host = made_host(monkeypatch, leftovers=leftovers)

    def make(spec: Any, parts: Parts, ready: Any) -> Any:
        parts.container = container
        raise EngineAway("engine_unavailable", "the engine does not answer")

    monkeypatch.setattr(host, "_maker", SimpleNamespace(make=make))
    nothing: Any = None
    with pytest.raises(PlatformFailure, match="does not answer"):
        host._create("box", nothing, "worker", nothing)
    assert calls == []
    assert len(leftovers) == (container is not None)
    assert host._wake.is_set() == (container is not None)
    leftovers.retry()
    assert calls == ([] if container is None else [container])
    assert not leftovers
