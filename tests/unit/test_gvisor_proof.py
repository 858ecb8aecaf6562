"""For how long gVisor is believed to be what was proven."""

from __future__ import annotations

import os
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cloche.domain.states import Reason
from cloche.errors import PlatformFailure
from cloche.sandboxd import runtimes as module
from cloche.sandboxd.engine import EngineAway, EngineRefused
from cloche.sandboxd.leftovers import Leftovers
from cloche.sandboxd.proof import Proof
from cloche.sandboxd.runtimes import NotProven, Runtimes
from tests.support import sandbox as support
from tests.support.gvisor import StillEngine
from tests.unit.test_sensitive_runtime import IMAGE, spec


class Bench:
    """Runtimes on an engine that tells of itself what the test wants. ``problem``: what the next proof finds, None: nothing."""

    def __init__(self, policy: str = "plugin") -> None:
        self.engine = StillEngine()
        self.problem: str | Exception | None = None
        self.proofs = self.forgotten = 0
        self.runtimes = Runtimes(self.engine, None, policy, "runsc", self._prove)  # type: ignore[arg-type]
        self.runtimes.forgotten = self._forget

    def _prove(self, *_: object) -> None:
        self.proofs += 1
        if isinstance(self.problem, Exception):
            raise self.problem
        if self.problem is not None:
            raise NotProven(self.problem)

    def _forget(self) -> None:
        self.forgotten += 1

    def runtime(self, **changes: Any) -> str:
        return self.runtimes.resolve(spec(**changes), IMAGE)[0].runtime

    def goes_away(self) -> None:
        self.engine.lines[-1][0].close()

    def reloads(self) -> None:
        self.engine.lines[-1][0].sendall(b'7b\r\n{"Type":"daemon","Action":"reload"}')

    def enclose(self, began: float | None = None) -> None:
        self.runtimes.enclose(None, None, 1, time.monotonic() if began is None else began)  # type: ignore[arg-type]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_one_proof_for_as_long_as_nothing_changes(bench: Bench) -> None:
    assert [bench.runtime() for _ in range(3)] == ["runsc"] * 3
    assert (bench.proofs, len(bench.engine.lines)) == (1, 1)


@pytest.mark.parametrize("happens", [Bench.goes_away, Bench.reloads])
def test_after_a_restart_or_a_reload_it_is_proven_anew_before_the_next_job(bench: Bench, happens: Any) -> None:
    assert bench.runtime() == "runsc"
    happens(bench)
    assert bench.runtime() == "runsc"
    assert (bench.proofs, bench.forgotten) == (2, 1)
    assert bench.engine.lines[0][1].fileno() == -1, "the line of a proof that is forgotten is closed"
    happens(bench)
    bench.problem = "it is not gVisor"
    assert bench.runtime() == "runc", (
        "a sensitive job gets the strongest that there is, and that is not gVisor any more"
    )
    with pytest.raises(PlatformFailure, match="it is not gVisor"):
        bench.runtime(runtime="runsc")
    assert bench.runtimes.problem == "it is not gVisor"
    assert bench.proofs == 3, "nor is it asked for again and again"
    assert bench.engine.lines[2][1].fileno() == -1


def test_another_program_in_its_place(bench: Bench, tmp_path: Path) -> None:
    program = tmp_path / "runsc"
    program.write_bytes(b"one")
    bench.engine.runtimes = {"runsc": {"path": str(program)}}
    assert bench.runtime() == bench.runtime() == "runsc"
    assert bench.proofs == 1
    (tmp_path / "new").write_bytes(b"two")
    os.replace(tmp_path / "new", program)
    assert bench.runtime() == "runsc"
    assert bench.proofs == 2
    program.unlink()
    bench.problem = "there is none"
    assert bench.runtime() == "runc"


def test_an_engine_that_is_away_proves_nothing(bench: Bench) -> None:
    assert bench.runtime() == "runsc"
    bench.goes_away()
    bench.problem = PlatformFailure(Reason.ENGINE_UNAVAILABLE, "the engine does not answer")
    with pytest.raises(PlatformFailure, match="does not answer"):
        bench.runtime()
    assert "not proven anew yet" in str(bench.runtimes.problem)
    assert bench.engine.lines[1][1].fileno() == -1
    bench.problem = None
    assert bench.runtime() == "runsc", "it is asked again at once, not in a minute"


class CountedLock:
    """Tells how many came for it."""

    def __init__(self) -> None:
        self.came = 0
        self._lock = threading.Lock()
        self._own = threading.Lock()

    def __enter__(self) -> None:
        with self._own:
            self.came += 1
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_who_waits_while_a_silent_engine_is_asked_does_not_ask_it_in_turn(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call takes half a minute: the fifth in a row would cost a worker its session, and so all its sandboxes."""
    asked, silent = threading.Event(), threading.Event()
    lock, proofs, failures = CountedLock(), [], []

    def prove(*_: object) -> None:
        proofs.append(1)
        asked.set()
        silent.wait(120)
        raise EngineAway(Reason.ENGINE_UNAVAILABLE, "the engine does not answer")

    def job() -> None:
        with pytest.raises(EngineAway) as failure:
            bench.runtime(runtime="runsc")
        failures.append(failure.value)

    monkeypatch.setattr(bench.runtimes, "_prove", prove)
    monkeypatch.setattr(bench.runtimes, "_lock", lock)
    jobs = [threading.Thread(target=job, daemon=True) for _ in range(5)]
    for each in jobs:
        each.start()
    try:
        assert asked.wait(60)
        support.wait_until(lambda: lock.came == len(jobs), "all of them wait", 60)
    finally:
        silent.set()
        for each in jobs:
            each.join(60)
    assert (len(failures), len(proofs)) == (len(jobs), 1)
    monkeypatch.setattr(bench.runtimes, "_prove", lambda *_: None)
    assert bench.runtime(runtime="runsc") == "runsc", "who comes later asks anew"


@pytest.mark.parametrize("asked", [True, False])
def test_a_proof_that_the_engine_falls_silent_in_asks_it_nothing_more(asked: bool) -> None:
    """Neither where it may have made the guest's container, which the keeper removes, nor where it was never asked for one."""
    calls: list[str] = []

    def away(*_: object) -> Any:
        raise EngineAway(Reason.ENGINE_UNAVAILABLE, "the engine does not answer")

    engine: Any = StillEngine()
    engine.create, engine.remove, engine.inspect = away, calls.append, lambda name: None
    if not asked:
        engine.info = away
    given_back: list[int] = []
    uids: Any = SimpleNamespace(take=lambda: 70_000, give_back=given_back.append)
    groups: Any = SimpleNamespace(remove=lambda name: None)
    leftovers = Leftovers(engine, groups, lambda name: None, uids)
    runtimes: Any = SimpleNamespace(engine=engine, registered="runsc")
    proof = Proof(home="h", uids=uids, seccomp='{"syscalls": []}', leftovers=leftovers)
    with pytest.raises(EngineAway), proof._guest(runtimes, IMAGE, "memory", 1):
        pytest.fail("there is no guest")
    assert (calls, len(leftovers), given_back) == ([], int(asked), [] if asked else [70_000])
    leftovers.retry()
    assert (len(calls), len(leftovers), given_back) == (int(asked), 0, [70_000])


def test_the_end_does_not_wait_for_an_engine_that_is_silent(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.05, raising=False)
    asked, answers = threading.Event(), threading.Event()

    def silent(*_: object) -> None:
        asked.set()
        answers.wait(120)

    monkeypatch.setattr(bench.runtimes, "_prove", silent)
    job = threading.Thread(target=bench.runtime, daemon=True)
    end = threading.Thread(target=bench.runtimes.close, daemon=True)
    job.start()
    try:
        assert asked.wait(60)
        end.start()
        end.join(30)
        assert not end.is_alive()
        assert job.is_alive(), "the job still waits for its answer"
    finally:
        answers.set()
        job.join(60)
    assert bench.runtimes.problem is None
    bench.runtimes.close()
    assert bench.runtimes.problem is not None, "it is free again, and forgets"
    assert [ours.fileno() for _, ours in bench.engine.lines] == [-1]


def test_an_engine_that_tells_of_no_change_is_not_believed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> socket.socket:
        raise EngineRefused("no such filter")

    monkeypatch.setattr(bench.engine, "changes", refused)
    assert bench.runtime() == "runc"
    assert bench.runtimes.problem == "the engine does not tell of its configuration: no such filter"
    assert bench.proofs == 0


def test_where_every_job_gets_it_the_host_hears_that_none_can_run() -> None:
    bench = Bench("runsc")
    bench.runtime()
    assert bench.runtimes.obstacle is None
    bench.goes_away()
    bench.problem = "it is not gVisor"
    with pytest.raises(PlatformFailure, match="it is not gVisor"):
        bench.runtime()
    assert bench.forgotten == 1
    assert "it is not gVisor" in str(bench.runtimes.obstacle)


def test_what_changed_while_a_sandbox_was_started_ends_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reload that fails midway has changed the runtimes and is told to nobody."""
    monkeypatch.setattr(module, "enclose", lambda *_: pytest.fail("it is not even moved"))
    assert bench.runtime() == "runsc"
    proven = bench.engine.runtimes
    bench.engine.runtimes = {"runsc": {"path": "/usr/bin/runc"}}
    with pytest.raises(PlatformFailure, match="changed while the sandbox was being made"):
        bench.enclose()
    bench.problem = "it is not gVisor"
    assert bench.runtime() == "runc"
    # Right again, and proven: what had been started before that is still not known to be gVisor.
    began, bench.engine.runtimes, bench.problem = time.monotonic(), proven, None
    bench.runtimes.close()
    assert bench.runtime() == "runsc"
    with pytest.raises(PlatformFailure, match="changed while the sandbox was being made"):
        bench.enclose(began)
    assert bench.runtime() == "runsc"
    assert bench.proofs == 3, "which says nothing against the proof"


def test_a_plain_job_never_asks(bench: Bench) -> None:
    assert bench.runtimes.resolve(replace(spec(), sensitive=False), IMAGE)[0].runtime == "runc"
    assert bench.engine.lines == []
