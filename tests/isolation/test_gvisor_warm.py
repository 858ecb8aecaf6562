"""Warm sandboxes under gVisor: enclosed before they wait, kept apart from runc's, measured by their own cgroup."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace

import pytest

from cloche.domain.runtimes import RUNC, RUNSC
from cloche.domain.states import Reason
from cloche.errors import PlatformFailure
from cloche.isolation.backend import Sandbox, SandboxSpec
from cloche.isolation.gvisor import MEMORY_BEFORE, group_limits
from cloche.isolation.spec import memory_limit
from cloche.sandboxd.running import Running
from tests.isolation.test_warm_pool import COUNTER, SMALL, with_setup
from tests.support import gvisor, sandbox
from tests.support.engine import Engine

pytestmark = pytest.mark.docker
MIB = gvisor.MIB
IMAGE = "sha256:" + "a" * 64


def warm_spec(bench: gvisor.Bench, source: str, runtime: str = RUNSC, **limits: int) -> SandboxSpec:
    small = {**SMALL, **limits}
    return replace(sandbox.spec(sandbox.write_bundle(bench.home, source), **small), warm=True, runtime=runtime)


def waiting(bench: gvisor.Bench, spec: SandboxSpec) -> list[Running]:
    return [
        one
        for one in bench.daemon.host.listing()
        if one.owner is None and one.template is not None and one.template.bundle == spec.bundle
    ]


def test_each_serves_one_job_and_nothing_of_it_reaches_the_next(bench: gvisor.Bench) -> None:
    spec = warm_spec(bench, COUNTER)
    seen: list[tuple[str, str]] = []
    for _ in range(3):
        sandbox.warm_up(bench.backend, spec)
        outcome = sandbox.run_job(bench.backend, spec, look=lambda one: seen.append((one.start, one.runtime)))
        uses, _uid, found = outcome.value
        assert (uses, found) == (2, [[], [], []])
        assert outcome.log == "set up\n"
        assert outcome.contents == {"mine": b"mine"}
    assert seen == [("warm", RUNSC)] * 3


def test_who_waits_is_in_a_cgroup_with_its_limits(bench: gvisor.Bench) -> None:
    spec = warm_spec(bench, with_setup("pass"))
    sandbox.warm_up(bench.backend, spec)
    one = waiting(bench, spec)[0]
    assert one.group is not None
    assert one.cgroup is one.group.cgroup
    members = one.group.members()
    assert len(members) > 1
    assert all(one.group.holds(pid) for pid in members)
    limits = group_limits(memory_limit(spec.limits), spec.limits, 1)
    if one.cgroup.unified is None:
        assert (one.cgroup.controllers["memory"] / "memory.limit_in_bytes").read_text() == f"{limits.memory}\n"
        assert (one.cgroup.controllers["pids"] / "pids.max").read_text() == f"{limits.tasks}\n"
    assert sandbox.pool_of(bench.backend, spec.bundle)["memory"] > MEMORY_BEFORE, (
        "what gVisor itself takes counts in the budget"
    )


def test_what_setup_used_is_not_the_jobs(bench: gvisor.Bench) -> None:
    body = "end = time.process_time() + 1\nwhile time.process_time() < end:\n    pass\nlen(b'x' * (24 << 20))"
    spec = warm_spec(bench, with_setup(body), cpu=1)
    sandbox.warm_up(bench.backend, spec)
    outcome = sandbox.run_job(bench.backend, spec, look=lambda one: _is_warm(one))
    assert outcome.value == "ran"
    assert outcome.remains is not None
    assert outcome.remains.usage["cpu_ms"] < 900


def _is_warm(one: Sandbox) -> None:
    assert one.start == "warm"


def test_the_runtimes_have_pools_of_their_own(bench: gvisor.Bench) -> None:
    ours = warm_spec(bench, with_setup("pass", "return os.uname().version"))
    sandbox.warm_up(bench.backend, ours)
    seen: list[tuple[str, str]] = []
    outcome = sandbox.run_job(
        bench.backend, replace(ours, runtime=RUNC), look=lambda one: seen.append((one.start, one.runtime))
    )
    assert seen == [("cold", RUNC)]
    assert outcome.value == os.uname().version


def test_one_that_dies_while_it_waits_is_found_and_leaves_nothing(bench: gvisor.Bench) -> None:
    spec = warm_spec(bench, with_setup("pass"))
    sandbox.warm_up(bench.backend, spec)
    one = waiting(bench, spec)[0]
    assert one.group is not None
    signal.pidfd_send_signal(one.pidfd, signal.SIGKILL)
    sandbox.wait_until(lambda: bench.daemon.host.find(one.id) is None, "it is gone")
    sandbox.wait_until(lambda: not any(folder.exists() for folder in one.group.folders), "its cgroup is gone")
    sandbox.wait_until(lambda: not one.site.root.exists(), "its folder is gone")


def test_a_plugins_own_image_is_refused(bench: gvisor.Bench) -> None:
    spec = replace(warm_spec(bench, COUNTER), image=IMAGE, command=("/bin/sh",), warm=False)
    with pytest.raises(PlatformFailure, match=r"own image cannot run under runsc"):
        bench.backend.create(spec)


@pytest.fixture(scope="module")
def always(gvisor_engine: Engine) -> Iterator[gvisor.Bench]:
    with gvisor.bench(gvisor_engine.socket, runtime=RUNSC) as opened:
        yield opened


def test_where_every_job_gets_gvisor_a_warm_one_is_gvisors_too(always: gvisor.Bench) -> None:
    spec = warm_spec(always, with_setup("pass", "return os.uname().version"), RUNC)
    sandbox.warm_up(always.backend, spec)
    seen: list[tuple[str, str]] = []
    outcome = sandbox.run_job(always.backend, spec, look=lambda one: seen.append((one.start, one.runtime)))
    assert seen == [("warm", RUNSC)]
    assert outcome.value != os.uname().version


def test_where_every_job_gets_gvisor_an_own_image_runs_on_nothing_weaker(always: gvisor.Bench) -> None:
    spec = replace(warm_spec(always, COUNTER, RUNC), image=IMAGE, command=("/bin/sh",), warm=False)
    with pytest.raises(PlatformFailure, match=r"own image cannot run under runsc") as caught:
        always.backend.create(spec)
    assert caught.value.reason == Reason.ENGINE_UNAVAILABLE
    assert not always.daemon.host.listing() or all(one.own_image is False for one in always.daemon.host.listing())
