"""What a running container really has, asked of the engine and of the kernel; the whole list is in test_sandboxd_inspect.py."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloche import clock
from cloche.isolation.spec import memory_limit
from cloche.sandboxd import cgroups
from tests.support import sandbox as support
from tests.support.inspection import MIB, Seen, running

pytestmark = pytest.mark.docker
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def seen() -> Iterator[Seen]:
    with support.temporary_home() as home, support.running_sandboxd(home), running(home) as job:
        yield job


def test_image_by_digest_and_a_user_of_its_own(seen: Seen) -> None:
    assert seen.inspect["Config"]["Image"].startswith("sha256:")
    uid, gid = map(int, seen.inspect["Config"]["User"].split(":"))
    assert 210_000 <= uid == gid < 210_000 + 4_096
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{seen.pid}/status").read_text().splitlines() if ":\t" in line
    )
    assert status["Uid"].split() == status["Gid"].split() == [str(uid)] * 4
    assert status["Groups"].split() in ([], [str(uid)])
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0, name
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"


def test_namespaces_and_network(seen: Seen) -> None:
    assert seen.host["NetworkMode"] == "none"
    assert seen.host["IpcMode"] == "private"
    assert seen.host["PidMode"] == seen.host["UTSMode"] == seen.host["UsernsMode"] == ""
    for name in ("net", "ipc", "pid", "mnt", "uts", "cgroup"):
        assert os.readlink(f"/proc/{seen.pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}"), name
    lines = Path(f"/proc/{seen.pid}/net/dev").read_text().splitlines()[2:]
    assert [line.split(":")[0].strip() for line in lines] == ["lo"]


def test_privileges_and_profile(seen: Seen) -> None:
    assert seen.host["CapDrop"] == ["ALL"]
    assert not seen.host["CapAdd"]
    assert seen.host["Privileged"] is False
    profile = (ROOT / "sandbox" / "image" / "seccomp.json").read_text()
    assert seen.host["SecurityOpt"] == ["no-new-privileges:true", f"seccomp={profile}"]
    assert not seen.host["Devices"]
    assert seen.host["ReadonlyRootfs"] is True
    assert seen.host["Runtime"] == "runc"
    assert seen.host["MaskedPaths"]
    assert seen.host["ReadonlyPaths"]


def test_limits(seen: Seen) -> None:
    memory = memory_limit(seen.spec.limits)
    assert memory == (64 + 2 + 3 + 1) * MIB
    assert seen.host["Memory"] == seen.host["MemorySwap"] == memory
    assert not seen.host["OomKillDisable"]
    assert seen.host["PidsLimit"] == 20
    assert seen.host["NanoCpus"] == 500_000_000
    ulimits = {item["Name"]: (item["Soft"], item["Hard"]) for item in seen.host["Ulimits"]}
    assert ulimits == {"nofile": (99, 99), "core": (1, 1), "fsize": (3 * MIB, 3 * MIB)}
    text = Path(f"/proc/{seen.pid}/limits").read_text()
    for name, value in (("Max core file size", "1"), ("Max open files", "99"), ("Max file size", str(3 * MIB))):
        (line,) = [line for line in text.splitlines() if line.startswith(name)]
        assert line[len(name) :].split()[:2] == [value, value]


def test_limits_hold_in_the_kernel(seen: Seen) -> None:
    group = cgroups.of_process(seen.pid)
    memory = memory_limit(seen.spec.limits)
    if group.unified is not None:
        assert int((group.unified / "memory.max").read_text()) == memory
        assert (group.unified / "memory.swap.max").read_text().strip() == "0"
        assert int((group.unified / "pids.max").read_text()) == 20
        assert (group.unified / "cpu.max").read_text().split() == ["50000", "100000"]
    else:
        folders = group.controllers
        assert int((folders["memory"] / "memory.limit_in_bytes").read_text()) == memory
        assert int((folders["memory"] / "memory.memsw.limit_in_bytes").read_text()) == memory
        assert int((folders["pids"] / "pids.max").read_text()) == 20
        assert int((folders["cpu"] / "cpu.cfs_quota_us").read_text()) == 50_000


def test_mounts(seen: Seen) -> None:
    mounts = seen.mounts()
    assert "ro" in mounts["/"][0]
    for place in ("/job/in", "/run/cloche", "/cloche/plugin"):
        assert "ro" in mounts[place][0], place
    flags, system, options = mounts["/job/out"]
    assert flags >= {"rw", "nosuid", "nodev", "noexec", "nosymfollow"}
    assert system == "tmpfs"
    assert {"size=2048k", "nr_inodes=1250", "mode=700"} <= options
    flags, system, options = mounts["/tmp"]
    assert flags >= {"nosuid", "nodev", "noexec"}
    assert system == "tmpfs"
    assert {"size=3072k", "nr_inodes=4096"} <= options
    flags, system, options = mounts["/dev/shm"]
    assert flags >= {"nosuid", "nodev", "noexec"}
    assert "size=1024k" in options
    assert not [place for place in mounts if place.endswith(".sock")]


def test_the_rest(seen: Seen) -> None:
    assert seen.host["LogConfig"] == {"Type": "none", "Config": {}}
    assert seen.host["RestartPolicy"]["Name"] == "no"
    assert seen.host["AutoRemove"] is False
    assert seen.inspect["Config"]["Tty"] is False
    assert seen.inspect["Config"]["OpenStdin"] is True
    labels = seen.inspect["Config"]["Labels"]
    assert labels["org.cloche.job"] == seen.spec.job_id
    assert labels["org.cloche.attempt"] == "1"
    assert labels["org.cloche.worker"] == "inspector"
    assert int(labels["org.cloche.lease"]) == seen.spec.lease_until <= clock.now_ms() + 15_000
    assert labels["org.cloche.sandbox"] == seen.id
    assert not seen.inspect["Config"].get("Volumes")
    sources = [mount["Source"] for mount in seen.inspect["Mounts"] if mount["Type"] == "bind"]
    assert len(sources) == 4
    assert all(source.startswith(f"{seen.home}/sandboxes/{seen.id}/") for source in sources)


def test_folders_of_the_host_are_roots_alone(seen: Seen) -> None:
    root = seen.home / "sandboxes"
    assert root.stat().st_mode & 0o7777 == 0o700
    assert (root / seen.id / "out").stat().st_mode & 0o7777 == 0o700
    assert (root / seen.id / "collected").stat().st_mode & 0o7777 == 0o700
    assert (seen.home / "run" / "sandboxd.sock").stat().st_mode & 0o7777 == 0o600


USE_UP = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
Path("/proc/self/oom_score_adj").write_text("0")
def number(*names):
    return int(next(Path("/sys/fs/cgroup", name) for name in names if Path("/sys/fs/cgroup", name).exists()).read_text())
most = number("memory/memory.limit_in_bytes", "memory.max")
def room():
    return most - number("memory/memory.usage_in_bytes", "memory.current")
place = libc.shmat(libc.shmget(0, most, 0o1600), 0, 0)
end = place
while room() > 4 << 20:
    ctypes.memset(end, 1, 1 << 20)
    end += 1 << 20
libc.shmdt(ctypes.c_void_p(place))
os.execv("/bin/sh", ["sh", "-c", "x=0123456789abcdef; while :; do x=$x$x; done"])
"""


def test_process_1_as_the_largest_is_the_plugins_fault() -> None:
    """Memory that no process has, and an agent made smaller than process 1: the kernel takes process 1, and nobody inside can tell of it."""
    with support.temporary_home() as home, support.running_sandboxd(home):
        client = support.client(home)
        try:
            for _ in range(3):
                spec = support.spec(support.write_bundle(home, support.plugin(USE_UP)), memory=64 * MIB)
                outcome = support.run_job(client, spec)
                assert outcome.last is None
                assert outcome.remains is not None
                assert outcome.remains.oom_killed
        finally:
            client.close()
