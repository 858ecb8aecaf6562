"""The pure step from a spec to a container of level ``namespace``; what makes its unmasked /proc safe is asserted here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloche.clock import uuid7
from cloche.domain.limits import Limits
from cloche.isolation import cell_spec
from cloche.isolation.backend import SandboxSpec
from cloche.isolation.cell_spec import CellFolders, CellPlacement, cell_container_config, id_map, key_of
from cloche.isolation.spec import BadSpec, check_spec, memory_limit, template
from cloche.isolation.spec_json import parse_spec, spec_to_json
from cloche.sandboxd.cells.level import may_have_cell

IMAGE = "sha256:" + "c" * 64
SPEC = SandboxSpec(
    job_id=uuid7(), attempt=1, bundle="a" * 64, wheels=None, limits=Limits(), lease_until=1_700_000_000_000,
    level="namespace", tenant="01890000-0000-7000-8000-00000000abcd",
)  # fmt: skip
PLACE = CellPlacement(
    container_id="box", home="0123456789abcdef", image=IMAGE, uid=210_007, cells_base=327_680, host_cpus=2, slots=4, seccomp="{}", counts_swap=True,
    folders=CellFolders(Path("/c/slots"), Path("/c/run"), Path("/c/plugin"), None),
)  # fmt: skip


def host(spec: SandboxSpec = SPEC, place: CellPlacement = PLACE) -> dict[str, Any]:
    found: dict[str, Any] = cell_container_config(spec, place)["HostConfig"]
    return found


def test_an_unmasked_proc_and_nobody_in_it_who_is_root() -> None:
    config = host()
    assert config["MaskedPaths"] == []
    assert config["ReadonlyPaths"] == []
    assert config["CapDrop"] == ["ALL"]
    assert config["CapAdd"] == []
    assert not config["Privileged"]
    assert "no-new-privileges:true" in config["SecurityOpt"]
    assert config["ReadonlyRootfs"]
    assert config["NetworkMode"] == "none"
    assert cell_container_config(SPEC, PLACE)["User"] == "210007:210007"
    for uid in (0, 1, 999, 327_680, 327_743):
        with pytest.raises(BadSpec):
            host(place=replace(PLACE, uid=uid))
    for base in (0, 1, 999):
        with pytest.raises(BadSpec):
            host(place=replace(PLACE, cells_base=base))


@pytest.mark.parametrize("base", [-1, 0, 1, 999])
def test_the_hosts_root_is_never_mapped(base: int) -> None:
    with pytest.raises(BadSpec):
        id_map(base)


def test_the_map_is_one_range_of_64() -> None:
    assert id_map(327_744) == "0 327744 64\n"


def test_the_container_has_what_its_slots_have_together() -> None:
    config, limits = host(), SPEC.limits
    each = memory_limit(limits) + cell_spec.RUNNER_MEMORY
    assert cell_spec.slot_memory(limits) == each
    assert config["Memory"] == config["MemorySwap"] == 4 * each + cell_spec.AGENT_MEMORY
    assert config["PidsLimit"] >= 4 * (limits.pids + cell_spec.RUNNER_PIDS)
    assert config["NanoCpus"] == 2_000_000_000, "never more than the host has"
    assert host(replace(SPEC, limits=replace(limits, cpu=0.25)))["NanoCpus"] == 1_000_000_000
    assert {limit["Name"]: limit["Hard"] for limit in config["Ulimits"]}["nofile"] == limits.nofile


def test_only_the_slots_folder_gets_news_of_mounts() -> None:
    mounts = {mount["Target"]: mount for mount in host()["Mounts"]}
    assert set(mounts) == {"/run/cloche", "/cloche/plugin", "/cloche/slots"}
    assert all(
        mount["ReadOnly"] and mount["Type"] == "bind" and mount["BindOptions"]["NonRecursive"]
        for mount in mounts.values()
    )
    assert {target: mount["BindOptions"]["Propagation"] for target, mount in mounts.items()} == {
        "/run/cloche": "rprivate",
        "/cloche/plugin": "rprivate",
        "/cloche/slots": "rslave",
    }
    wheels = replace(PLACE, folders=replace(PLACE.folders, wheels=Path("/c/wheels")))
    assert "/cloche/wheels" in {mount["Target"] for mount in host(place=wheels)["Mounts"]}


def test_labels_name_tenant_and_bundle_and_no_job() -> None:
    labels = cell_container_config(SPEC, PLACE)["Labels"]
    assert labels["org.cloche.tenant"] == SPEC.tenant
    assert SPEC.job_id not in labels.values()


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"tenant": "01890000-0000-7000-8000-00000000beef"}, False),
        ({"bundle": "b" * 64}, False),
        ({"wheels": "b" * 64}, False),
        ({"limits": replace(Limits(), memory=64 << 20)}, False),
        ({"limits": replace(Limits(), output_files=3)}, False),
        ({"limits": replace(Limits(), time_ms=1_000, log=0, result=5)}, True),
        ({"job_id": uuid7(), "attempt": 3, "lease_until": 5}, True),
    ],
)
def test_who_may_share_a_container(change: dict[str, Any], same: bool) -> None:
    assert (key_of(replace(SPEC, **change), IMAGE) == key_of(SPEC, IMAGE)) is same
    assert key_of(SPEC, "sha256:" + "d" * 64) != key_of(SPEC, IMAGE)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"level": "none"}, "level"),
        ({"level": None}, "level"),
        ({"tenant": None}, "tenant"),
        ({"tenant": "default"}, "tenant"),
        ({"tenant": "../../etc"}, "tenant"),
        ({"tenant": "01890000-0000-7000-8000-00000000ABCD"}, "tenant"),
        ({"tenant": 5}, "tenant"),
    ],
)
def test_level_and_tenant_are_held_to_their_form(change: dict[str, Any], word: str) -> None:
    with pytest.raises(BadSpec, match=word):
        check_spec(replace(SPEC, **change))
    with pytest.raises(BadSpec, match=word):
        parse_spec({**spec_to_json(SPEC), **change})


def test_a_spec_survives_the_wire() -> None:
    assert parse_spec(spec_to_json(SPEC)) == SPEC


def test_slots_are_few_enough_for_users_of_their_own() -> None:
    for slots in (0, 17):
        with pytest.raises(BadSpec):
            host(place=replace(PLACE, slots=slots))


def test_which_jobs_have_cells() -> None:
    fit = replace(SPEC, level="namespace", warm=True)
    assert may_have_cell(fit)
    unfit: list[dict[str, Any]] = [
        {"level": "container"},
        {"warm": False},
        {"egress": True},
        {"runtime": "runsc"},
        {"image": IMAGE, "command": ("/bin/true",)},
    ]
    assert not [change for change in unfit if may_have_cell(replace(fit, **change))]


def test_a_waiting_container_serves_whoever_has_no_cell() -> None:
    one, two = (replace(SPEC, level="namespace", tenant=f"01890000-0000-7000-8000-00000000000{n}") for n in (1, 2))
    assert template(one) == template(two) == template(replace(SPEC, level="container", tenant=None))


PRELOADS = replace(SPEC, wheels="b" * 64, preload=("numpy", "PIL"))


def test_what_is_preloaded_belongs_to_a_container_of_its_own() -> None:
    assert parse_spec(spec_to_json(PRELOADS)) == PRELOADS
    assert key_of(PRELOADS, IMAGE) != key_of(replace(PRELOADS, preload=("numpy",)), IMAGE)
    assert template(PRELOADS) == template(replace(PRELOADS, preload=())), "at level container nothing is"
    assert host(PRELOADS)["PidsLimit"] == host()["PidsLimit"] + 8, "two processes more in each slot"
    assert cell_spec.slot_pids(SPEC.limits, preloads=True) == SPEC.limits.pids + 3


@pytest.mark.parametrize(
    "preload",
    [
        "numpy",
        None,
        1,
        {"numpy": 1},
        ["numpy", 1],
        [["numpy"]],
        ["numpy.linalg"],
        ["a/b"],
        ["a\n"],
        [""],
        ["a", "a"],
        ["pluggy"],
        ["m"] * 9,
    ],
)
def test_what_cannot_be_preloaded(preload: Any) -> None:
    with pytest.raises(BadSpec, match="preload"):
        parse_spec(spec_to_json(PRELOADS) | {"preload": preload})


@pytest.mark.parametrize("change", [{"level": "container"}, {"wheels": None}])
def test_where_nothing_is_preloaded(change: dict[str, Any]) -> None:
    with pytest.raises(BadSpec, match="preload is for level namespace"):
        check_spec(replace(PRELOADS, **change))
