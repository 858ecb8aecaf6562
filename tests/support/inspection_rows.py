"""DESIGN §5, "Every container", line by line: the rows that tests/integration/test_sandboxd_inspect.py reads from a running job."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from cloche.isolation.spec import MASKED_PATHS
from cloche.sandboxd.disk import OWN_BLOCKS
from tests.support.inspection import MIB, OWNER, Row, Seen, fields, holds, mount, namespaces

ROOT = Path(__file__).parents[2]
PROFILE = ROOT / "sandbox" / "image" / "seccomp.json"
UIDS = range(210_000, 210_000 + 4_096)
MEMORY = (64 + 2 + 3 + 1) * MIB
BIG = 72 * MIB  # the output of the sandbox whose out/ lies on disk
_SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
_SPACES = ("cgroup", "ipc", "mnt", "net", "pid", "uts")


def _profile(seen: Seen) -> Any:
    found = seen.field("HostConfig.SecurityOpt")
    return found == ["no-new-privileges:true", f"seccomp={PROFILE.read_text()}"] or [text[:40] for text in found]


def _clone3_and_rseq(seen: Seen) -> Any:
    text = next(item for item in seen.field("HostConfig.SecurityOpt") if item.startswith("seccomp="))
    rules = json.loads(text.removeprefix("seccomp="))["syscalls"]
    answers = {name: (rule["action"], rule.get("errnoRet")) for rule in rules for name in rule["names"]}
    found = (answers["clone3"], answers["rseq"])
    return found == (("SCMP_ACT_ERRNO", 38), ("SCMP_ACT_ALLOW", None)) or found


def _user(seen: Seen) -> Any:
    uid, gid = map(int, seen.field("Config.User").split(":"))
    return (uid == gid and uid in UIDS) or (uid, gid)


def _ids(seen: Seen) -> Any:
    found = {*seen.status("Uid").split(), *seen.status("Gid").split(), *seen.status("Groups").split()}
    return found == {str(seen.uid)} or found


def _image(seen: Seen) -> Any:
    found = {seen.field("Image"), seen.field("Config.Image")}
    return (found == {seen.image} and seen.image.startswith("sha256:")) or found


def _labels(seen: Seen) -> Any:
    spec, labels = seen.spec, seen.field("Config.Labels")
    found = [labels.get(f"org.cloche.{name}") for name in ("job", "attempt", "worker", "lease", "sandbox")]
    return found == [spec.job_id, "1", OWNER, str(spec.lease_until), seen.id] or found


def _binds(seen: Seen) -> str:
    """Kind, place, whether it can be written, propagation; the source has to be this sandbox's own folder."""
    own = f"{seen.home}/sandboxes/{seen.id}/"
    found = []
    for item in sorted(seen.field("Mounts"), key=lambda item: item["Destination"]):
        name = item["Source"].removeprefix(own) if item["Source"].startswith(own) else item["Source"]
        found.append(f"{name} → {item['Destination']} {'rw' if item['RW'] else 'ro'} {item['Propagation']}")
    return "; ".join(found)


def _unlinked(seen: Seen) -> Any:
    found = seen.peers()
    # runc makes every mount a slave first and private then; an engine's own mounts may say so, none may be shared.
    return "shared" not in found or found


def _masked(seen: Seen) -> Any:
    found = set(MASKED_PATHS) - set(seen.field("HostConfig.MaskedPaths"))
    there = [path for path in MASKED_PATHS if Path(f"/proc/{seen.pid}/root{path}").exists()]
    covered = seen.mounts()
    return (not found and all(path in covered for path in there)) or (found, there)


def _no_command_of_the_image(seen: Seen) -> Any:
    config = seen.field("Config")
    found = {name: config.get(name) for name in ("Volumes", "Healthcheck", "OnBuild") if config.get(name)}
    return found == {} or found


def _group(seen: Seen) -> Any:
    """A folder of the cgroup tree that names this container alone."""
    path = Path(f"/proc/{seen.pid}/cgroup").read_text()
    lines = [line for line in path.splitlines() if "memory" in line or line.startswith("0::")]
    return any(seen.field("Id") in line for line in lines) or lines


def _security_module(seen: Seen) -> Any:
    found = (seen.field("AppArmorProfile"), seen.field("ProcessLabel"))
    return found[0] in ("", "docker-default") or found


def _disk(seen: Seen) -> str:
    facts = os.statvfs(f"/proc/{seen.pid}/root/job/out")
    flags, system, _ = seen.mounts()["/job/out"]
    words = [word for word in ("nosuid", "nodev", "noexec", "nosymfollow") if word in flags]
    own = OWN_BLOCKS * facts.f_frsize
    used = (facts.f_blocks - facts.f_bfree) * facts.f_frsize
    return f"{system}, {', '.join(words)}, {facts.f_bavail * facts.f_frsize + used - own} bytes"


def _swap(seen: Seen) -> str:
    both = seen.group("memory/memory.memsw.limit_in_bytes", "memory.swap.max")
    swap = int(both) - MEMORY if int(both) else 0
    return f"{swap} bytes of swap"


def _cpu(seen: Seen) -> str:
    if " " in (text := seen.group("cpu/cpu.cfs_quota_us", "cpu.max")):
        quota, period = text.split()
    else:
        quota, period = text, seen.group("cpu/cpu.cfs_period_us", "cpu.max")
    return f"{quota} of {period} µs"


def _ulimit(promise: str, name: str, line: str, value: int) -> Row:
    def read(seen: Seen) -> str:
        asked = [item for item in seen.field("HostConfig.Ulimits") if item["Name"] == name]
        found = {*(str(item[key]) for item in asked for key in ("Soft", "Hard")), *seen.limit(line)}
        return ", ".join(sorted(found))

    return Row(promise, f"`HostConfig.Ulimits`: {name}; `limits`: `{line}`", str(value), read, ("5.18",))


# fmt: off
ROWS: tuple[Row, ...] = (
    holds("image by its config digest", "`Image`, `Config.Image`", "`sha256:…`, what sandboxd told its caller", _image, "5.27"),
    fields("no network", {"HostConfig.NetworkMode": "none", "Config.NetworkDisabled": True}, "5.9", "5.29"),
    Row("", "`/proc/PID/net/dev`", "lo", lambda seen: ", ".join(seen.interfaces()), ("5.9",)),
    fields("", {"HostConfig.PortBindings": {}, "HostConfig.PublishAllPorts": False, "NetworkSettings.Ports": {}}, "5.7", "5.8", "5.13"),
    fields("read-only root", {"HostConfig.ReadonlyRootfs": True}, "5.12"),
    mount("", "/", "ro", "5.12"),
    fields("all capabilities dropped", {"HostConfig.CapDrop": ["ALL"], "HostConfig.CapAdd": None, "HostConfig.Privileged": False}, "5.3", "5.4"),
    Row("", "`status`: " + ", ".join(f"`{name}`" for name in _SETS), ", ".join(["0000000000000000"] * 5),
        lambda seen: ", ".join(seen.status(name) for name in _SETS), ("5.3",)),
    holds("no-new-privileges and our own seccomp profile", "`HostConfig.SecurityOpt`",
          "`no-new-privileges:true` and the text of `sandbox/image/seccomp.json`, nothing else", _profile, "5.21", "5.25"),
    Row("", "`status`: `NoNewPrivs`, `Seccomp`", "1, 2 (filter)",
        lambda seen: f"{seen.status('NoNewPrivs')}, {seen.status('Seccomp')} (filter)", ("5.21", "5.25")),
    holds("`clone3` answers ENOSYS, `rseq` is allowed", "the profile in `SecurityOpt`", "`ERRNO` 38, `ALLOW`", _clone3_and_rseq),
    holds("AppArmor or SELinux where the host has it", "`AppArmorProfile`", "`docker-default`, or empty where there is none", _security_module,
          "5.1", "5.2"),
    holds("a uid of its own from a range", "`Config.User`", f"uid:gid, equal, {UIDS.start} to {UIDS.stop - 1}", _user),
    holds("", "`status`: `Uid`, `Gid`, `Groups`", "that number alone", _ids),
    fields("", {"HostConfig.GroupAdd": None, "HostConfig.UsernsMode": ""}, "5.30"),
    fields("memory = memory+swap limit, asked memory plus the tmpfs sizes (64 + 2 + 3 + 1 MB)",
           {"HostConfig.Memory": MEMORY, "HostConfig.MemorySwap": MEMORY, "HostConfig.OomKillDisable": False}, "5.10"),
    Row("", "`memory.limit_in_bytes` or `memory.max`", str(MEMORY), lambda seen: seen.group("memory/memory.limit_in_bytes", "memory.max"), ("5.10",)),
    Row("", "`memory.memsw.limit_in_bytes` or `memory.swap.max`", "0 bytes of swap", _swap, ("5.10",)),
    fields("pids", {"HostConfig.PidsLimit": 20}, "5.28"),
    Row("", "`pids.max`", "20", lambda seen: seen.group("pids/pids.max", "pids.max"), ("5.28",)),
    fields("cpus", {"HostConfig.NanoCpus": 500_000_000}, "5.11"),
    Row("", "`cpu.cfs_quota_us`, `cpu.cfs_period_us` or `cpu.max`", "50000 of 100000 µs", _cpu, ("5.11",)),
    _ulimit("ulimits: nofile, core 1 byte, fsize", "nofile", "Max open files", 99),
    _ulimit("", "core", "Max core file size", 1),
    _ulimit("", "fsize", "Max file size", 3 * MIB),
    fields("ipc `private`, `/dev/shm` of at most 16 MB", {"HostConfig.IpcMode": "private", "HostConfig.ShmSize": MIB}, "5.16"),
    mount("", "/dev/shm", "tmpfs, rw, nosuid, nodev, noexec, size=1024k"),
    Row("no namespace of the host", "`/proc/PID/ns`", ", ".join(_SPACES), lambda seen: namespaces(seen, _SPACES), ("5.9", "5.15", "5.16", "5.20")),
    fields("", {"HostConfig.PidMode": "", "HostConfig.UTSMode": "", "HostConfig.CgroupnsMode": "private"}, "5.15", "5.20"),
    fields("tmpfs `/tmp` with size and inodes, noexec", {"HostConfig.Tmpfs": {
        "/tmp": f"rw,noexec,nosuid,nodev,size={3 * MIB},nr_inodes=4096,mode=1777"}}),
    mount("", "/tmp", "tmpfs, rw, nosuid, nodev, noexec, size=3072k, nr_inodes=4096"),
    fields("log driver `none`", {"HostConfig.LogConfig": {"Type": "none", "Config": {}}, "LogPath": ""}),
    holds("labels: job, attempt, worker, lease (and the sandbox)", "`Config.Labels`", "those of this job", _labels),
    Row("its own folders: `in`, `run` and the plugin's read-only, `out`", "`Mounts`, below `<home>/sandboxes/<id>/`",
        "plugin → /cloche/plugin ro rprivate; in → /job/in ro rprivate; out → /job/out rw rprivate; run → /run/cloche ro rprivate", _binds,
        ("5.5", "5.19", "5.31")),
    fields("", {"HostConfig.Binds": None, "HostConfig.VolumesFrom": None}, "5.5"),
    mount("", "/job/in", "ro"),
    mount("", "/run/cloche", "ro"),
    mount("", "/cloche/plugin", "ro"),
    mount("`out`: a hard quota of bytes and inodes, every flag", "/job/out",
          "tmpfs, rw, nosuid, nodev, noexec, nosymfollow, size=2048k, nr_inodes=1250, mode=700"),
    Row("`out` above 64 MB (a second job, 72 MB): on a loop device", "`mountinfo` and `statfs`: `/job/out`",
        f"ext4, nosuid, nodev, noexec, nosymfollow, {BIG} bytes", _disk),
    holds("no mount is shared with the host", "`mountinfo`: optional fields", "no `shared`", _unlinked, "5.19"),
    holds("what tells of the whole host is covered", "`HostConfig.MaskedPaths`, `mountinfo`", f"the {len(MASKED_PATHS)} paths of `isolation/spec.py`",
          _masked),
    fields("no device, no sysctl", {"HostConfig.Devices": [], "HostConfig.DeviceCgroupRules": None, "HostConfig.DeviceRequests": None,
           "HostConfig.Sysctls": None}, "5.17"),
    holds("a cgroup of its own", "`/proc/PID/cgroup`", "the container's id", _group, "5.24"),
    fields("", {"HostConfig.CgroupParent": ""}, "5.24"),
    holds("no VOLUME, HEALTHCHECK, ONBUILD", "`Config`", "none of them", _no_command_of_the_image, "5.26"),
    fields("used once, ended by sandboxd alone", {"HostConfig.RestartPolicy": {"Name": "no", "MaximumRetryCount": 0}, "HostConfig.AutoRemove": False,
           "RestartCount": 0}, "5.14"),
    fields("nobody enters it", {"ExecIDs": None}, "5.22", "5.23"),
    fields("the channel is its standard input, whose end it sees; no terminal",
           {"Config.OpenStdin": True, "Config.StdinOnce": True, "Config.Tty": False}),
    fields("runtime, and process 1 of our own", {"HostConfig.Runtime": "runc", "HostConfig.Init": False, "Path": "/usr/local/bin/python3"}),
)
# fmt: on
