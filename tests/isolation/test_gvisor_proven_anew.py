"""An engine that comes back with another gVisor, or none under its name: what was proven before counts for nothing."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from cloche.domain.runtimes import RUNC, RUNSC
from cloche.domain.states import Reason
from cloche.errors import PlatformFailure
from cloche.sandboxd import runtimes
from cloche.sandboxd.engine import Engine as Client
from tests.support import gvisor, sandbox
from tests.support.engine import Engine

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]


def ran_under(bench: gvisor.Bench, **changes: bool) -> tuple[str, str]:
    """The runtime that a sandbox says it has, and the kernel that its plugin sees."""
    seen: list[str] = []
    spec = replace(bench.spec("return os.uname().version", RUNC if changes else RUNSC), **changes)
    outcome = sandbox.run_job(bench.backend, spec, look=lambda one: seen.append(one.runtime))
    return seen[0], str(outcome.value)


def refusal(bench: gvisor.Bench) -> str:
    with pytest.raises(PlatformFailure) as caught:
        bench.run("return 1")
    assert caught.value.reason == Reason.ENGINE_UNAVAILABLE
    return caught.value.message


def test_what_is_registered_is_proven_anew_after_a_restart_and_after_a_reload(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "AGAIN_SECONDS", 0)  # else a failed proof is believed for a minute
    rightly = gvisor.registrations()
    nofilter, notgvisor = ({**rightly, "runsc": rightly[name]} for name in ("nofilter", "notgvisor"))
    here = os.uname().version
    with gvisor.running_engine() as engine, gvisor.bench(engine.socket) as bench:
        runtime, kernel = ran_under(bench, sensitive=True)
        assert runtime == RUNSC
        assert kernel != here
        assert ran_under(bench) == (RUNSC, kernel)

        engine.kill()
        engine.register(notgvisor)
        engine.start()
        assert ran_under(bench, sensitive=True) == (RUNC, here), "and it says so"
        assert "what is registered as runsc has this host's kernel: it is not gVisor" in refusal(bench)

        engine.kill()
        engine.register(rightly)
        engine.start()
        assert ran_under(bench) == (RUNSC, kernel)

        engine.register(nofilter)
        engine.reload()
        sandbox.wait_until(lambda: _arguments(engine) == list(rightly["nofilter"][1]), "the engine has them", 60)
        assert "the system call filter is not kept inside" in refusal(bench)
        assert ran_under(bench, sensitive=True) == (RUNC, here)
        assert gvisor.traces(bench.home) == []


def _arguments(engine: Engine) -> list[str]:
    client = Client(str(engine.socket))
    try:
        return list(client.info()["Runtimes"]["runsc"].get("runtimeArgs") or [])
    finally:
        client.close()
