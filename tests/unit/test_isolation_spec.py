"""The pure step from a spec to the engine's configuration: every option of DESIGN §5, and every refusal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloche.clock import uuid7
from cloche.domain.limits import CEILINGS, FLOORS, Limits
from cloche.isolation.backend import SandboxSpec
from cloche.isolation.spec import (
    MASKED_PATHS,
    BadSpec,
    Folders,
    Placement,
    check_owner,
    container_config,
    memory_limit,
    out_on_disk,
    out_options,
    template,
)
from cloche.isolation.spec_json import parse_spec, spec_to_json

MIB = 1 << 20
JOB = uuid7()
SPEC = SandboxSpec(
    job_id=JOB, attempt=2, bundle="a" * 64, wheels="b" * 64, limits=Limits(), lease_until=1_700_000_000_000
)
FOLDERS = Folders(Path("/s/in"), Path("/s/out"), Path("/s/run"), Path("/s/plugin"), Path("/s/wheels"))
PLACE = Placement(
    sandbox_id="box",
    owner="worker-1",
    home="0123456789abcdef",
    image="sha256:" + "c" * 64,
    uid=210_007,
    host_cpus=2,
    seccomp='{"defaultAction": "SCMP_ACT_ERRNO"}',
    folders=FOLDERS,
)


def host(spec: SandboxSpec = SPEC, place: Placement = PLACE) -> dict[str, Any]:
    return container_config(spec, place)["HostConfig"]


def test_one_without_a_job_has_labels_that_name_none() -> None:
    labels = container_config(template(SPEC), replace(PLACE, owner=None))["Labels"]
    assert labels == {
        "org.cloche.home": "0123456789abcdef",
        "org.cloche.sandbox": "box",
        "org.cloche.bundle": "a" * 64,
        "org.cloche.warm": "true",
    }


def test_it_is_made_as_one_with_a_job() -> None:
    assert host(template(SPEC), replace(PLACE, owner=None)) == host()


def test_a_template_has_nothing_of_the_job() -> None:
    one = template(SPEC)
    assert template(replace(SPEC, job_id=uuid7(), attempt=7, lease_until=9, warm=True, priority=9)) == one
    assert parse_spec(spec_to_json(one)) == one
    for changed in (replace(SPEC, bundle="9" * 64), replace(SPEC, wheels=None)):
        assert template(changed) != one


@pytest.mark.parametrize(
    ("field", "value"), [("warm", 1), ("warm", None), ("priority", 10), ("priority", -1), ("priority", True)]
)
def test_what_a_client_may_say_of_the_pool(field: str, value: Any) -> None:
    with pytest.raises(BadSpec, match=field):
        parse_spec({**spec_to_json(SPEC), field: value})


def test_the_whole_configuration() -> None:
    config = container_config(SPEC, PLACE)
    assert config["HostConfig"].pop("Mounts")
    assert config == {
        "Image": "sha256:" + "c" * 64,
        "User": "210007:210007",
        "Hostname": "sandbox",
        "Tty": False,
        "OpenStdin": True,
        "StdinOnce": True,
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "NetworkDisabled": True,
        "Labels": {
            "org.cloche.home": "0123456789abcdef",
            "org.cloche.sandbox": "box",
            "org.cloche.job": JOB,
            "org.cloche.attempt": "2",
            "org.cloche.worker": "worker-1",
            "org.cloche.lease": "1700000000000",
            "org.cloche.bundle": "a" * 64,
        },
        "HostConfig": {
            "NetworkMode": "none",
            "ReadonlyRootfs": True,
            "Privileged": False,
            "CapAdd": [],
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges:true", 'seccomp={"defaultAction": "SCMP_ACT_ERRNO"}'],
            "Runtime": "runc",
            "Init": False,
            "Memory": (256 + 64 + 64 + 16) * MIB,
            "MemorySwap": (256 + 64 + 64 + 16) * MIB,
            "OomKillDisable": False,
            "PidsLimit": 64,
            "NanoCpus": 1_000_000_000,
            "Ulimits": [
                {"Name": "nofile", "Soft": 1024, "Hard": 1024},
                {"Name": "core", "Soft": 1, "Hard": 1},
                {"Name": "fsize", "Soft": 64 * MIB, "Hard": 64 * MIB},
            ],
            "MaskedPaths": list(MASKED_PATHS),
            "IpcMode": "private",
            "ShmSize": 16 * MIB,
            "CgroupnsMode": "private",
            "Tmpfs": {"/tmp": f"rw,noexec,nosuid,nodev,size={64 * MIB},nr_inodes=4096,mode=1777"},
            "LogConfig": {"Type": "none", "Config": {}},
            "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
            "AutoRemove": False,
        },
    }


def test_an_engine_that_cannot_count_swap_is_not_asked_to() -> None:
    found = host(place=replace(PLACE, counts_swap=False))
    assert (found["Memory"], found["MemorySwap"]) == ((256 + 64 + 64 + 16) * MIB, -1)


def test_the_mounts() -> None:
    found = {mount["Target"]: (mount["Source"], mount["ReadOnly"]) for mount in host()["Mounts"]}
    assert found == {
        "/job/in": ("/s/in", True),
        "/job/out": ("/s/out", False),
        "/run/cloche": ("/s/run", True),
        "/cloche/plugin": ("/s/plugin", True),
        "/cloche/wheels": ("/s/wheels", True),
    }
    for mount in host()["Mounts"]:
        assert mount["Type"] == "bind"
        assert mount["BindOptions"] == {"Propagation": "rprivate", "NonRecursive": True}


def test_without_wheels_nothing_is_mounted_for_them() -> None:
    place = replace(PLACE, folders=replace(FOLDERS, wheels=None))
    assert "/cloche/wheels" not in {mount["Target"] for mount in host(replace(SPEC, wheels=None), place)["Mounts"]}


def test_memory_covers_every_tmpfs() -> None:
    limits = replace(Limits(), memory=100 * MIB, output=10 * MIB, tmp=20 * MIB, shm=5 * MIB)
    assert memory_limit(limits) == 135 * MIB


def test_outputs_on_disk_are_not_memory() -> None:
    limits = replace(Limits(), memory=100 * MIB, output=64 * MIB + 1, tmp=20 * MIB, shm=5 * MIB)
    assert memory_limit(limits) == 125 * MIB
    assert not out_on_disk(replace(limits, output=64 * MIB))


def test_no_shared_memory_is_not_the_engines_default_of_64_mb() -> None:
    assert 0 < host(replace(SPEC, limits=replace(Limits(), shm=0)))["ShmSize"] <= 64 << 10


def test_out_has_a_quota_of_bytes_and_inodes_and_its_owner() -> None:
    assert out_options(Limits(), 210_007) == f"size={64 * MIB},nr_inodes=1250,uid=210007,gid=210007,mode=0700"


def test_cpus_are_at_most_the_hosts() -> None:
    assert host(replace(SPEC, limits=replace(Limits(), cpu=8.0)))["NanoCpus"] == 2_000_000_000
    assert host(replace(SPEC, limits=replace(Limits(), cpu=0.05)))["NanoCpus"] == 50_000_000


@pytest.mark.parametrize("limits", [CEILINGS, FLOORS])
def test_the_extremes_are_allowed(limits: Limits) -> None:
    assert container_config(replace(SPEC, limits=limits), PLACE)


@pytest.mark.parametrize("name", list(Limits().to_dict()))
def test_one_beyond_an_extreme_is_refused(name: str) -> None:
    for limits, step in ((CEILINGS, 1), (FLOORS, -1)):
        value = getattr(limits, name) + step
        with pytest.raises(BadSpec, match=name):
            container_config(replace(SPEC, limits=replace(Limits(), **{name: value})), PLACE)


@pytest.mark.parametrize(
    "change",
    [
        {"job_id": "../../etc"},
        {"job_id": JOB.upper()},
        {"attempt": 0},
        {"attempt": True},
        {"attempt": 1_000_001},
        {"bundle": "A" * 64},
        {"bundle": "a" * 63},
        {"bundle": "a" * 64 + "\n"},
        {"wheels": "../" + "a" * 61},
        {"wheels": ""},
        {"lease_until": -1},
        {"lease_until": 1 << 60},
    ],
)
def test_a_malformed_spec_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BadSpec):
        container_config(replace(SPEC, **change), PLACE)


@pytest.mark.parametrize(
    "change", [{"image": "cloche-sandbox:1"}, {"uid": 0}, {"uid": 999}, {"owner": "a b"}, {"owner": ""}]
)
def test_a_malformed_placement_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BadSpec):
        container_config(SPEC, replace(PLACE, **change))


def test_over_the_wire_and_back() -> None:
    assert parse_spec(spec_to_json(SPEC)) == SPEC
    assert parse_spec(spec_to_json(replace(SPEC, wheels=None))) == replace(SPEC, wheels=None)


@pytest.mark.parametrize(
    "change",
    [
        {"extra": 1},
        {"limits": {}},
        {"limits": {**Limits().to_dict(), "privileged": 1}},
        {"limits": {**Limits().to_dict(), "pids": "64"}},
        {"limits": {**Limits().to_dict(), "pids": 64.5}},
        {"limits": {**Limits().to_dict(), "pids": True}},
        {"limits": {**Limits().to_dict(), "cpu": None}},
        {"limits": None},
        {"job_id": 7},
        {"bundle": None},
        {"wheels": []},
        {"attempt": "1"},
        {"lease_until": 1.5},
    ],
)
def test_a_malformed_request_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BadSpec):
        parse_spec({**spec_to_json(SPEC), **change})


@pytest.mark.parametrize(
    "value", [None, [], "spec", {}, {k: v for k, v in spec_to_json(SPEC).items() if k != "attempt"}]
)
def test_what_is_no_spec_at_all(value: Any) -> None:
    with pytest.raises(BadSpec):
        parse_spec(value)


@pytest.mark.parametrize("owner", [None, 1, "", "-x", "a/b", "a\n", "x" * 129])
def test_bad_owners(owner: Any) -> None:
    with pytest.raises(BadSpec):
        check_owner(owner)
