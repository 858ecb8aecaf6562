"""The runtime of a sensitive job: gVisor wherever it is proven, and the reason where it is not; never a cell."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cloche.clock import uuid7
from cloche.domain.limits import Limits
from cloche.errors import PlatformFailure
from cloche.isolation.backend import SandboxSpec
from cloche.isolation.spec import BadSpec, check_spec, template
from cloche.isolation.spec_json import parse_spec, spec_to_json
from cloche.sandboxd.runtimes import NotProven, Runtimes
from tests.support.gvisor import StillEngine

IMAGE = f"sha256:{'a' * 64}"


def spec(**changes) -> SandboxSpec:
    plain = SandboxSpec(uuid7(), 1, "b" * 64, None, Limits(), 1_000, warm=True, sensitive=True)
    return replace(plain, **changes)


def runtimes(policy: str = "plugin", problem: str | None = None) -> tuple[Runtimes, list[str]]:
    asked: list[str] = []

    def prove(_: Runtimes, image: str) -> None:
        asked.append(image)
        if problem is not None:
            raise NotProven(problem)

    return Runtimes(StillEngine(), None, policy, "runsc", prove), asked  # type: ignore[arg-type] # the groups are not used to decide


@pytest.mark.parametrize(
    ("policy", "problem", "changes", "runtime", "why"),
    [
        ("plugin", None, {}, "runsc", "it is sensitive, and gVisor is proven here"),
        ("plugin", None, {"runtime": "runsc"}, "runsc", "its plugin asks for gVisor"),
        ("runsc", None, {}, "runsc", "every job here gets gVisor"),
        ("plugin", "no runtime", {}, "runc", "gVisor is not proven here: no runtime"),
        ("runc", None, {}, "runc", "CLOCHE_SANDBOX_RUNTIME is runc: no job here gets gVisor"),
        (
            *("plugin", None, {"image": IMAGE, "command": ("/bin/x",)}, "runc"),
            "its plugin brings an image of its own, which does not run under gVisor",
        ),
    ],
)
def test_the_strongest_that_there_is(policy, problem, changes, runtime, why) -> None:
    made, _ = runtimes(policy, problem)
    found, said = made.resolve(spec(**changes), IMAGE)
    assert (found.runtime, said) == (runtime, why)
    # From here on it is a sandbox like any other of that runtime, so that one that waits can serve it.
    assert found == replace(spec(**changes), job_id=found.job_id, runtime=runtime, sensitive=False)
    assert made.resolve(found, IMAGE) == (found, None)


@pytest.mark.parametrize(
    ("policy", "problem", "changes"),
    [
        ("runsc", "broken", {}),
        ("plugin", "broken", {"runtime": "runsc"}),
        ("runc", None, {"runtime": "runsc"}),
        ("runsc", None, {"image": IMAGE, "command": ("/bin/x",)}),
    ],
)
def test_what_is_refused_to_others_is_refused_to_it_too(policy, problem, changes) -> None:
    made, _ = runtimes(policy, problem)
    for sensitive in (True, False):
        with pytest.raises(PlatformFailure):
            made.resolve(spec(sensitive=sensitive, **changes), IMAGE)


def test_jobs_that_are_not_sensitive_never_ask_for_the_proof() -> None:
    made, asked = runtimes()
    assert made.resolve(spec(sensitive=False), IMAGE)[0].runtime == "runc"
    assert asked == []


def test_it_never_shares_a_container() -> None:
    check_spec(spec())
    with pytest.raises(BadSpec, match="container of its own"):
        check_spec(spec(level="namespace", tenant=uuid7()))
    assert parse_spec(spec_to_json(spec())).sensitive
    for wrong in (None, 1, "true"):
        with pytest.raises(BadSpec, match="sensitive"):
            parse_spec(spec_to_json(spec()) | {"sensitive": wrong})
    assert template(spec(sensitive=False)).sensitive is False
