"""The small parts under sandboxd that need no engine: cgroup files, user ids, reproducible tars, the request wire."""

from __future__ import annotations

import io
import os
import socket
from pathlib import Path

import pytest

from cloche.isolation import wire
from cloche.sandboxd import cgroups, image
from cloche.sandboxd.places import home_digest
from cloche.sandboxd.tree import Tree
from cloche.sandboxd.uids import NoUidLeft, UidPool
from cloche_guest.protocol import ProtocolError


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_usage_of_cgroup_version_1(tmp_path: Path) -> None:
    root, proc = tmp_path / "cgroup", tmp_path / "proc"
    write(
        proc / "7" / "cgroup",
        "4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n2:pids:/docker/x\n1:name=systemd:/docker/x\n0::/init\n",
    )
    write(root / "memory/docker/x/memory.max_usage_in_bytes", "1048576\n")
    write(root / "memory/docker/x/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    write(root / "cpu,cpuacct/docker/x/cpuacct.usage", "1500000000\n")
    write(root / "pids/docker/x/pids.events", "max 3\n")
    group = cgroups.of_process(7, root, proc)
    used = {"cpu_ms": 1500, "memory_peak": 1048576, "oom_kills": 2, "pids_denied": 3}
    assert group.usage() == used
    write(root / "pids/docker/x/pids.peak", "20\n")
    assert group.usage() == {**used, "pids_peak": 20}
    assert (group.memory_used(), group.processes()) == (0, [])
    write(root / "memory/docker/x/memory.usage_in_bytes", "4096\n")
    write(root / "pids/docker/x/cgroup.procs", "7\n9\n")
    assert (group.memory_used(), group.processes()) == (4096, [7, 9])
    group.forget_peak()
    assert (root / "memory/docker/x/memory.max_usage_in_bytes").read_text() == "0"


def test_usage_of_cgroup_version_2(tmp_path: Path) -> None:
    root, proc = tmp_path / "cgroup", tmp_path / "proc"
    write(proc / "7" / "cgroup", "0::/system.slice/docker-x.scope\n")
    folder = root / "system.slice/docker-x.scope"
    write(folder / "cpu.stat", "usage_usec 2500000\nuser_usec 1\nsystem_usec 1\n")
    write(folder / "memory.peak", "4096\n")
    write(folder / "memory.events", "low 0\nhigh 0\nmax 5\noom 1\noom_kill 1\noom_group_kill 0\n")
    write(folder / "pids.events", "max 0\n")
    group = cgroups.of_process(7, root, proc)
    assert group.usage() == {"cpu_ms": 2500, "memory_peak": 4096, "oom_kills": 1, "pids_denied": 0}
    write(folder / "memory.current", "2048\n")
    write(folder / "cgroup.procs", "7\n")
    assert (group.memory_used(), group.processes()) == (2048, [7])
    group.forget_peak()
    assert group.usage()["memory_peak"] == 4096


@pytest.mark.parametrize(
    ("limit", "areas", "says"),
    [(True, 2, None), (False, 0, None), (False, 1, "a swap area"), (False, 2, "2 swap areas")],
)
def test_swap_that_cannot_be_counted_stops_jobs_only_where_there_is_some(
    tmp_path: Path, limit: bool, areas: int, says: str | None
) -> None:
    write(tmp_path / "swaps", "Filename Type Size Used Priority\n" + "/swap file 1024 0 -2\n" * areas)
    found = cgroups.uncounted_swap({"SwapLimit": limit}, tmp_path)
    assert found is None if says is None else says in str(found)
    assert cgroups.uncounted_swap({"SwapLimit": False}, tmp_path / "kernel without swap") is None


def test_processes_of_a_cgroup_and_its_sockets(tmp_path: Path) -> None:
    root, proc = tmp_path / "cgroup", tmp_path / "proc"
    write(proc / "7" / "cgroup", "4:memory:/docker/x\n2:pids:/docker/x\n")
    write(root / "pids/docker/x/cgroup.procs", "7\n9\n")
    write(root / "memory/docker/x/memory.kmem.tcp.limit_in_bytes", "9223372036854771712\n")
    group = cgroups.of_process(7, root, proc)
    assert group.processes() == [7, 9]
    group.bound_sockets(4096)
    assert (root / "memory/docker/x/memory.kmem.tcp.limit_in_bytes").read_text() == "4096"
    write(proc / "8" / "cgroup", "0::/x.scope\n")
    gone = cgroups.of_process(8, root, proc)
    assert gone.processes() == []
    gone.bound_sockets(4096)  # version 2 counts them as memory: nothing to set
    assert not (root / "x.scope").exists()


def test_usage_that_cannot_be_read_is_absent(tmp_path: Path) -> None:
    proc = tmp_path / "proc"
    write(proc / "7" / "cgroup", "0::/gone\n")
    assert cgroups.of_process(7, tmp_path, proc).usage() == {}


def test_every_sandbox_has_a_user_id_of_its_own(tmp_path: Path) -> None:
    locks = tmp_path / "run" / "uids"
    first = UidPool(1_000, 3, locks, start=1)
    second = UidPool(1_000, 3, locks)
    assert [first.take(), first.take(), second.take()] == [1001, 1002, 1000]
    with pytest.raises(NoUidLeft):
        second.take()
    first.give_back(1001)
    first.give_back(1001)
    assert second.take() == 1001
    for uid in (1000, 1001):
        second.give_back(uid)
    first.give_back(1002)
    assert not (tmp_path / "run").exists()
    assert first.take() == 1000


def test_a_freed_user_id_rests_longest(tmp_path: Path) -> None:
    pool = UidPool(1_000, 3, tmp_path / "a" / "b")
    uid = pool.take()
    pool.give_back(uid)
    assert [pool.take(), pool.take(), pool.take()] == [1001, 1002, 1000]


def test_an_image_is_the_same_bytes_every_time(tmp_path: Path) -> None:
    def build(order: list[str]) -> tuple[str, bytes]:
        tree = Tree()
        for name in order:
            tree.file(f"opt/{name}", name.encode(), 0o755 if name == "a" else 0o644)
        tree.link("bin/sh", "dash")
        tree.folder("tmp", 0o1777)
        out = io.BytesIO()
        return image.write_image(out, tree, "t:1", tree.digest()), out.getvalue()

    assert build(["a", "b"]) == build(["b", "a"])


def test_a_change_of_content_or_mode_changes_the_digest() -> None:
    def digest(data: bytes, mode: int) -> str:
        tree = Tree()
        tree.file("a", data, mode)
        return tree.digest()

    assert len({digest(b"1", 0o644), digest(b"2", 0o644), digest(b"1", 0o755)}) == 3


@pytest.mark.parametrize(
    "config", [{"Volumes": {"/data": {}}}, {"Healthcheck": {"Test": ["NONE"]}}, {"OnBuild": ["RUN x"]}]
)
def test_images_that_would_undo_a_sandbox_are_refused(config: dict[str, object]) -> None:
    with pytest.raises(Exception, match="refused"):
        image.check_rules({"Config": config})
    image.check_rules({"Config": {"Volumes": None, "OnBuild": [], "Labels": {}}})
    image.check_rules({"Config": None})


def test_homes_have_digests_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert home_digest(tmp_path / "a") == home_digest(tmp_path / "link") != home_digest(tmp_path)


def test_a_descriptor_travels_beside_its_message() -> None:
    here, there = socket.socketpair()
    with here, there:
        read, write_end = os.pipe()
        wire.send(here, {"ok": True}, 100, read)
        wire.send(here, {"ok": False}, 100)
        message, fds = wire.receive(there, 100)
        assert message == {"ok": True}
        assert len(fds) == 1
        assert not os.get_inheritable(fds[0])
        os.write(write_end, b"x")
        assert os.read(fds[0], 1) == b"x"
        assert wire.receive(there, 100) == ({"ok": False}, [])
        here.shutdown(socket.SHUT_WR)
        assert wire.receive(there, 100) == (None, [])
        wire.close_all([*fds, read, write_end])


@pytest.mark.parametrize(
    "data", [b"\0\0\0\x05{}", b"\0\0", b"\xff\xff\xff\xff", b"\0\0\0\x02[]", b"GET / HTTP/1.1\r\n\r\n"]
)
def test_a_message_that_is_malformed_or_cut_off(data: bytes) -> None:
    here, there = socket.socketpair()
    with here, there:
        here.sendall(data)
        here.shutdown(socket.SHUT_WR)
        with pytest.raises(ProtocolError):
            wire.receive(there, 100)
