"""The parts of gVisor's support that need no engine: configuration, policy, cgroup files of both versions, process trees."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cloche.domain.runtimes import AS_ASKED, RUNC, RUNSC, RuntimeRefused, decided
from cloche.isolation.gvisor import (
    ARGUMENTS,
    GATE_WORD,
    MAX_TASKS,
    MEMORY_OVERHEAD,
    TASKS_BASE,
    TASKS_PER_PROCESS,
    GroupLimits,
    group_limits,
)
from cloche.isolation.spec import BadSpec, container_config, memory_limit
from cloche.isolation.spec_json import parse_spec, spec_to_json
from cloche.sandboxd import trees
from cloche.sandboxd.groups import Group, GroupProblem, Groups
from cloche_guest import main
from tests.unit.test_isolation_spec import PLACE, SPEC

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
LIMITS = GroupLimits(memory=64 * MIB, tasks=100, cpus=0.5)
GVISOR = replace(SPEC, runtime=RUNSC)
PROFILE = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "syscalls": [
        {"names": ["read", "pselect6"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
    ],
}


def test_the_policy_only_ever_makes_it_stronger() -> None:
    asked = {policy: decided(RUNC, policy) for policy in (RUNC, AS_ASKED, RUNSC)}
    assert asked == {RUNC: RUNC, AS_ASKED: RUNC, RUNSC: RUNSC}
    assert decided(RUNSC, AS_ASKED) == decided(RUNSC, RUNSC) == RUNSC
    with pytest.raises(RuntimeRefused, match="set it to plugin or runsc"):
        decided(RUNSC, RUNC)


@pytest.mark.parametrize("runtime", ["", "crun", "RUNSC", "runsc ", None, 1, ["runsc"], {"a": 1}])
def test_no_other_runtime_passes_the_socket(runtime: object) -> None:
    with pytest.raises(BadSpec, match="runtime is runc or runsc"):
        parse_spec({**spec_to_json(SPEC), "runtime": runtime})
    assert parse_spec(spec_to_json(GVISOR)) == GVISOR


def test_how_the_configuration_differs() -> None:
    place = replace(PLACE, seccomp=json.dumps(PROFILE), runsc="gvisor-2")
    plain, ours = container_config(SPEC, place), container_config(GVISOR, place)
    host = ours["HostConfig"]
    assert host["Runtime"] == "gvisor-2"
    assert host["Memory"] == host["MemorySwap"] == plain["HostConfig"]["Memory"] + MEMORY_OVERHEAD
    assert {"Name": "nproc", "Soft": SPEC.limits.pids, "Hard": SPEC.limits.pids} in host["Ulimits"]
    assert ours["Cmd"] == [GATE_WORD]
    changed = {"Runtime", "Memory", "MemorySwap", "PidsLimit", "Ulimits", "SecurityOpt"}
    assert {name for name, value in host.items() if value != plain["HostConfig"][name]} == changed
    assert {**ours, "HostConfig": 0, "Cmd": 0} == {**plain, "HostConfig": 0, "Cmd": 0}
    assert "Cmd" not in plain


def test_the_filter_inside_differs_by_two_calls() -> None:
    place = replace(PLACE, seccomp=json.dumps(PROFILE))
    options = container_config(GVISOR, place)["HostConfig"]["SecurityOpt"]
    assert options[0] == "no-new-privileges:true"
    profile = json.loads(options[1].removeprefix("seccomp="))
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    assert profile["syscalls"] == [
        {"names": ["read", "pselect6"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["clone3"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["pselect"], "action": "SCMP_ACT_ALLOW"},
    ]


def test_the_groups_limits() -> None:
    limits = replace(SPEC.limits, pids=10, cpu=3.0)
    found = group_limits(memory_limit(limits), limits, host_cpus=2)
    assert found == GroupLimits(memory_limit(limits) + MEMORY_OVERHEAD, TASKS_BASE + 10 * TASKS_PER_PROCESS, 2.0)
    assert group_limits(1, replace(limits, pids=4_096), 2).tasks == MAX_TASKS


def test_what_is_written_elsewhere_too() -> None:
    """The guest stands alone and cannot import the word; operators and `./run` register gVisor with these arguments."""
    assert main.GATE_WORD == GATE_WORD
    for place in ("run", "docs/operations.md"):
        assert json.dumps(list(ARGUMENTS)) in (ROOT / place).read_text()


def version1(root: Path) -> Groups:
    for name in ("memory", "pids", "cpu,cpuacct"):
        (root / name).mkdir(parents=True)
        (root / name / "cgroup.procs").touch()
    return Groups("home", root)


def test_a_group_of_version_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _files_of_the_kernel(monkeypatch)
    groups = version1(tmp_path)
    group = groups.make("box", LIMITS)
    folder = tmp_path / "memory/cloche/home/box"
    assert (folder / "memory.limit_in_bytes").read_text() == str(64 * MIB)
    assert (folder / "memory.memsw.limit_in_bytes").read_text() == str(64 * MIB)
    assert (tmp_path / "pids/cloche/home/box/pids.max").read_text() == "100"
    cpu = tmp_path / "cpu,cpuacct/cloche/home/box"
    assert [(cpu / name).read_text() for name in ("cpu.cfs_period_us", "cpu.cfs_quota_us")] == ["100000", "50000"]
    assert group.cgroup.controllers.keys() == {"memory", "pids", "cpu", "cpuacct"}
    assert len(group.folders) == 3
    assert groups.leftovers() == {"box"}


def test_a_group_of_version_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _files_of_the_kernel(monkeypatch)
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids")
    group = Groups("home", tmp_path).make("box", LIMITS)
    folder = tmp_path / "cloche/home/box"
    assert group.folders == (folder,)
    kept = {
        name: (folder / name).read_text()
        for name in ("memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.max")
    }
    assert kept == {
        "memory.max": str(64 * MIB),
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "pids.max": "100",
        "cpu.max": "50000 100000",
    }
    for parent in (tmp_path, tmp_path / "cloche", tmp_path / "cloche/home"):
        assert (parent / "cgroup.subtree_control").read_text() == "+memory +pids +cpu"


def test_a_limit_that_the_kernel_does_not_keep_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _files_of_the_kernel(monkeypatch)
    read = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda self, *a: "max" if self.name == "pids.max" else read(self, *a))
    with pytest.raises(GroupProblem, match=r"pids.max keeps max instead of 100"):
        version1(tmp_path).make("box", LIMITS)


@pytest.mark.parametrize("missing", ["memory", "pids", "cpu,cpuacct"])
def test_a_controller_that_is_not_there(tmp_path: Path, missing: str) -> None:
    groups = version1(tmp_path)
    (tmp_path / missing / "cgroup.procs").unlink()
    with pytest.raises(GroupProblem, match="no cgroup controller"):
        groups.make("box", LIMITS)
    assert not any(tmp_path.glob("**/cloche"))


def test_a_cgroup_that_cannot_be_made(tmp_path: Path) -> None:
    groups = version1(tmp_path)
    (tmp_path / "pids" / "cloche").write_text("in the way")
    with pytest.raises(GroupProblem, match="no cgroup can be made"):
        groups.make("box", LIMITS)


def process(proc: Path, pid: int, parent: int, command: str = "exe", state: str = "S") -> None:
    folder = proc / str(pid)
    folder.mkdir(parents=True)
    (folder / "stat").write_text(f"{pid} (a) b) {state} {parent} 1 1")
    (folder / "cmdline").write_bytes(command.replace(" ", "\0").encode() + b"\0")


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    process(tmp_path, 1, 0, "init")
    process(tmp_path, 10, 1, "/usr/bin/containerd-shim-runc-v2 -id abc")
    process(tmp_path, 11, 10, "runsc-gofer abc")
    process(tmp_path, 12, 10, "runsc-sandbox abc")
    process(tmp_path, 13, 12)
    process(tmp_path, 14, 13)
    process(tmp_path, 15, 13, state="Z")
    process(tmp_path, 20, 1, "/usr/bin/containerd-shim-runc-v2 -id other")
    process(tmp_path, 21, 20, "runsc-sandbox other")
    (tmp_path / "self").mkdir()
    return tmp_path


def test_the_tree_is_all_below_the_shim(proc: Path) -> None:
    assert trees.members(12, "abc", proc) == {11, 12, 13, 14}


@pytest.mark.parametrize(
    ("pid", "container"), [(12, "other"), (21, "abc"), (13, "abc"), (10, "abc"), (99, "abc"), (1, "abc")]
)
def test_a_tree_of_another_shape_is_refused(proc: Path, pid: int, container: str) -> None:
    with pytest.raises(trees.TreeProblem):
        trees.members(pid, container, proc)


class Held(Group):
    """A group that takes processes; one bears a child just before it is moved."""

    def add(self, pid: int) -> None:
        if pid == 13 and not (PROC[0] / "16").exists():
            process(PROC[0], 16, 13)
        INSIDE.add(pid)

    def holds(self, pid: int) -> bool:
        return pid in INSIDE

    def members(self) -> set[int]:
        return set(INSIDE)


INSIDE: set[int] = set()
PROC: list[Path] = []


def test_what_is_born_during_the_move_is_moved_too(proc: Path) -> None:
    INSIDE.clear()
    PROC[:] = [proc]
    assert trees.move(12, "abc", Held(None, ()), proc) == 5  # type: ignore[arg-type]
    assert sorted(INSIDE) == [11, 12, 13, 14, 16]


def _files_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """New cgroups have their files, as a kernel makes them."""
    make = Path.mkdir
    names = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")

    def mkdir(self: Path, *args: object, **options: object) -> None:
        make(self, *args, **options)  # type: ignore[arg-type]
        if "memory" in self.parts:
            for name in names:
                (self / name).write_text(str(1 << 62))

    monkeypatch.setattr(Path, "mkdir", mkdir)
