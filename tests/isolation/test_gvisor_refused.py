"""gVisor is used where it was proven, and refused with a reason everywhere else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cloche import config
from cloche.domain.runtimes import RUNC, RUNSC
from cloche.domain.states import Reason
from cloche.errors import PlatformFailure
from cloche.isolation.gvisor import ARGUMENTS
from cloche.sandboxd import doctor_gvisor, groups, proof
from cloche.sandboxd.engine import Engine as Client
from cloche.sandboxd.main import Sandboxd
from tests.support import gvisor
from tests.support import sandbox as support
from tests.support.engine import Engine

pytestmark = pytest.mark.docker


def refusal(bench: gvisor.Bench) -> str:
    with pytest.raises(PlatformFailure) as caught:
        bench.run("return 1")
    assert caught.value.reason == Reason.ENGINE_UNAVAILABLE
    assert gvisor.traces(bench.home) == []
    return caught.value.message


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("absent", "the engine has no runtime absent (it has nofilter, notgvisor, runc, runsc); install gVisor"),
        ("notgvisor", "what is registered as notgvisor has this host's kernel: it is not gVisor"),
        ("nofilter", "the system call filter is not kept inside"),
    ],
)
def test_what_is_not_proven(gvisor_engine: Engine, name: str, why: str) -> None:
    with gvisor.bench(gvisor_engine.socket, runsc_name=name) as bench:
        message = refusal(bench)
        assert message.startswith("runtime runsc (gVisor) cannot be used here: ")
        assert why in message
        assert " ".join(ARGUMENTS) in message  # what the operator has to do
        assert bench.daemon.host.health()["runsc"] is not None
        assert bench.run("return 1", runtime=RUNC).value == 1


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ("set_memory", "MB does not hold: {'kept': 1024}"),
        ("pids", "the limit of processes does not hold"),
    ],
)
def test_limits_that_do_not_hold(gvisor_engine: Engine, monkeypatch: pytest.MonkeyPatch, broken: str, why: str) -> None:
    """A kernel that takes the limits and does not keep them."""
    if broken == "set_memory":
        monkeypatch.setattr(groups.Group, "set_memory", lambda self, size: None)
    else:
        monkeypatch.setattr(proof, "_tighten", lambda guest: guest.tasks())
    with gvisor.bench(gvisor_engine.socket) as bench:
        assert why in refusal(bench)


def test_a_sandbox_that_cannot_be_enclosed_is_taken_down(
    gvisor_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with gvisor.bench(gvisor_engine.socket) as bench:
        assert bench.run("return 1").value == 1
        monkeypatch.setattr(groups.Group, "holds", lambda self, pid: False)
        assert "the sandbox's processes could not be limited: its processes do not hold still" in refusal(bench)
        monkeypatch.undo()
        assert bench.run("return 1").value == 1


def test_the_platforms_policy(gvisor_engine: Engine) -> None:
    with gvisor.bench(gvisor_engine.socket, runtime="runc") as bench:
        assert "CLOCHE_SANDBOX_RUNTIME is runc; set it to plugin or runsc" in refusal(bench)
        assert bench.run("return os.uname().version", runtime=RUNC).value == os.uname().version
    with gvisor.bench(gvisor_engine.socket, runtime="runsc") as bench:
        assert bench.run("return os.uname().version", runtime=RUNC).value != os.uname().version
        assert bench.run("return os.uname().version", runtime=RUNSC).value != os.uname().version


def test_a_host_that_has_none_is_not_ready_where_every_job_is_to_get_it(gvisor_engine: Engine) -> None:
    with support.temporary_home() as home:
        sandbox = {"docker_socket": str(gvisor_engine.socket), "runtime": "runsc", "runsc_name": "absent"}
        daemon = Sandboxd(config.load(home=home, sandbox=sandbox))
        daemon.start()
        try:
            told = "cannot be used: the engine has no runtime absent"
            support.wait_until(lambda: told in str(daemon.host.health()["problem"]), "it says why", 90)
        finally:
            daemon.close()


def test_what_the_doctor_says(gvisor_engine: Engine, tmp_path: Path) -> None:
    client = Client(str(gvisor_engine.socket))
    try:

        def check(**sandbox: str) -> tuple[str, str]:
            settings = config.load(home=tmp_path, sandbox={"docker_socket": str(gvisor_engine.socket), **sandbox})
            found = doctor_gvisor.check(settings, client, client.info())
            assert bool(found.advice) == (found.status != "ok")
            return found.status, found.detail

        with gvisor.bench(gvisor_engine.socket):  # makes the image
            status, detail = check()
        assert status == "ok"
        assert detail.startswith("runsc version ")
        assert detail.endswith(": own kernel, filter, memory and process limits proven")
        assert check(runsc_name="notgvisor")[0] == "warn"
        assert "not gVisor" in check(runsc_name="notgvisor")[1]
        assert check(runsc_name="notgvisor", runtime="runsc")[0] == "fail"
        assert check(runsc_name="absent") == ("warn", "no runtime absent is registered with the engine")
        assert check(runsc_name="absent", runtime="runsc")[0] == "fail"
        assert check(runsc_name="absent", runtime="runc")[0] == "ok"
    finally:
        client.close()
