"""What can be read, written, opened and executed of the file system, ``/proc``, ``/sys`` and ``/dev``."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
from pathlib import Path
from typing import Any

from cloche_guest import Job

from .base import tried, wall


@wall
def docker_socket(_: Job) -> Any:
    def connect(path: str) -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)

    names = [
        "docker.sock",
        "containerd/containerd.sock",
        "podman/podman.sock",
        "crio/crio.sock",
        "dbus/system_bus_socket",
        "systemd/private",
    ]
    return {
        path: tried(connect, path)
        for folder in ("/run", "/var/run", "/proc/1/root/run")
        for path in [f"{folder}/{n}" for n in names]
    }


@wall
def host_files(job: Job) -> Any:
    paths = [
        "/etc/shadow",
        "/etc/machine-id",
        "/root/.ssh",
        "/home",
        "/boot",
        "/var/lib/docker",
        "/var/lib/cloche",
        "/run/cloche/uids",
        "/mnt",
    ]
    home = job.payload["host"]["home"]
    ways = {path: path for path in paths} | {way: way + home for way in ("", "/proc/1/root", "/job/in/../../..")}
    return {way: tried(lambda p=path: os.close(os.open(p, os.O_RDONLY))) for way, path in ways.items()}


@wall
def descriptors(_: Job) -> Any:
    """Everything that is open, here and in process 1: kind → how many different ones, or the error of who wants to list them."""
    return {pid: _open_in(pid) for pid in ("self", "1")}


def _open_in(pid: str) -> dict[str, int] | str:
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    targets = set()
    for name in names:
        try:
            targets.add(os.readlink(f"/proc/{pid}/fd/{name}"))
        except FileNotFoundError:  # this listing's own folder
            continue
        except OSError as error:  # open, and what it is stays untold
            targets.add(f"{errno.errorcode.get(error.errno or 0)}:{name}")
    kinds = [target.split(":")[0] for target in targets]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def _write(folder: str) -> None:
    path = os.path.join(folder, "cloche-probe")
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    os.unlink(path)


@wall
def write_root(_: Job) -> Any:
    """A file in every folder there is, outside those that are meant to be written."""
    allowed = ("/tmp", "/job/out", "/dev/shm", "/dev/mqueue", "/proc")
    found: dict[str, str] = {}
    for folder, names, _files in os.walk("/"):
        names[:] = [name for name in names if os.path.join(folder, name) not in allowed]
        answer = tried(_write, folder)
        if answer not in ("EROFS", "EACCES", "EPERM", "ENOENT"):
            found[folder] = answer
    return found


@wall
def change_inputs(job: Job) -> Any:
    path = job.inputs[0]
    return {
        "write": tried(path.write_text, "x"),
        "remove": tried(os.unlink, path),
        "chmod": tried(os.chmod, path, 0o777),
        "rename": tried(os.rename, path, "/job/in/b"),
        "link": tried(os.link, path, job.out / "linked"),
        "add": tried(_write, "/job/in"),
        "writable mapping": tried(lambda: os.close(os.open(path, os.O_RDWR))),
        "via /proc": tried(lambda: os.close(os.open("/proc/self/cwd/job/in/a.txt", os.O_RDWR))),
    }


@wall
def change_code(_: Job) -> Any:
    """The plugin's own frozen files and the guest's, which the next job runs too."""
    return {
        path: tried(lambda p=path: os.close(os.open(p, os.O_WRONLY)))
        for path in (
            "/cloche/plugin/probes/files.py",
            "/cloche/plugin/plugin.toml",
            "/opt/cloche/__main__.py",
            "/opt/cloche/cloche_guest/main.py",
        )
    }


@wall
def execute(job: Job) -> Any:
    """A script and a program of our own, from every folder that can be written."""
    found = {}
    for folder in ("/tmp", "/dev/shm", str(job.out)):
        script, program = Path(folder, "x.sh"), Path(folder, "program")
        script.write_text("#!/bin/sh\necho hi\n")
        program.write_bytes(Path("/bin/sh").read_bytes())
        for path in (script, program):
            path.chmod(0o755)
            found[str(path)] = tried(lambda p=path: subprocess.run([p, "-c", "exit"], capture_output=True, check=False))
            path.unlink()
    return found


@wall
def devices(_: Job) -> Any:
    def kind(path: Path) -> bool:
        return stat.S_ISCHR(path.lstat().st_mode) or stat.S_ISBLK(path.lstat().st_mode)

    names = [
        "mem",
        "kmem",
        "port",
        "kmsg",
        "sda",
        "vda",
        "loop-control",
        "fuse",
        "kvm",
        "mapper/control",
        "userfaultfd",
        "vhost-net",
        "vsock",
        "uinput",
    ]
    return {
        "there": sorted(path.name for path in Path("/dev").rglob("*") if kind(path)),
        "opened": {name: tried(lambda n=name: os.close(os.open(f"/dev/{n}", os.O_RDONLY))) for name in names},
    }


@wall
def symlink_out(job: Job) -> Any:
    """Links in out/: to a file that is here too, and to a folder that only the host has. ``same``: the first was followed, and led to ours."""
    link = job.out / "l"
    found: dict[str, Any] = {}
    for name, target in (("file", "/etc/passwd"), ("host", job.payload["host"]["home"])):
        os.symlink(target, link)
        try:
            found[name] = tried(lambda: os.close(os.open(link, os.O_RDONLY)))
            if name == "file" and found[name] == "DONE":
                found["same"] = link.read_bytes() == Path(target).read_bytes()
        finally:
            os.unlink(link)
    return found


@wall
def replace_out(job: Job) -> Any:
    return {
        "rename": tried(os.rename, job.out, "/job/x"),
        "remove": tried(os.rmdir, job.out),
        "link over it": tried(os.symlink, "/", "/job/out2"),
        "exchange": tried(os.rename, "/tmp", job.out),
        "own": tried(os.chown, job.out, 0, 0),
    }


def _opens(paths: list[str], flags: int) -> dict[str, str]:
    return {path: tried(lambda p=path: os.close(os.open(p, flags))) for path in paths}


@wall
def core_pattern(_: Job) -> Any:
    paths = ["kernel/core_pattern", "kernel/modprobe", "kernel/hotplug", "kernel/poweroff_cmd", "kernel/randomize_va_space", "vm/overcommit_memory",
             "fs/binfmt_misc/register", "kernel/unprivileged_bpf_disabled", "net/ipv4/ip_forward", "kernel/ns_last_pid"]  # fmt: skip
    return _opens([f"/proc/sys/{path}" for path in paths], os.O_WRONLY)


@wall
def sysrq(_: Job) -> Any:
    return _opens(
        ["/proc/sysrq-trigger", "/proc/sys/kernel/sysrq", "/sys/power/state", "/proc/acpi/wakeup", "/proc/mtrr"],
        os.O_WRONLY,
    )


@wall
def proc_writes(_: Job) -> Any:
    """Every file in /proc outside the processes' own folders, opened for writing."""
    found = []
    for folder, names, files in os.walk("/proc"):
        names[:] = [name for name in names if not name.isdigit() and name not in ("self", "thread-self")]
        for name in files:
            path = os.path.join(folder, name)
            # A file that the engine hides has /dev/null in its place, into which anybody may write.
            if (
                os.lstat(path).st_rdev != os.stat("/dev/null").st_rdev
                and _opens([path], os.O_WRONLY | os.O_NONBLOCK)[path] == "DONE"
            ):
                found.append(path)
    return found


@wall
def release_agent(_: Job) -> Any:
    paths, root = [], Path("/sys/fs/cgroup")
    names = ["release_agent", "notify_on_release", "cgroup.procs", "tasks", "cgroup.subtree_control", "memory.max", "memory.limit_in_bytes",
             "pids.max", "cpu.max", "cpu.cfs_quota_us", "devices.allow"]  # fmt: skip
    for folder in [root, *(p for p in root.iterdir() if p.is_dir())]:
        paths += [str(folder / name) for name in names]
    return {
        "opened": _opens(paths, os.O_WRONLY),
        "made": [tried(os.mkdir, folder / "x") for folder in [root, *root.iterdir()] if folder.is_dir()],
    }


@wall
def sys_writes(_: Job) -> Any:
    paths = ["/sys/kernel/uevent_helper", "/sys/kernel/mm/transparent_hugepage/enabled", "/sys/module/kernel/parameters/panic", "/sys/bus/pci/rescan",
             "/sys/kernel/profiling", "/sys/class/mem/null/uevent", "/sys/devices/system/cpu/cpu1/online", "/sys/block/loop0/uevent"]  # fmt: skip
    return _opens(paths, os.O_WRONLY)


@wall
def kernel_secrets(_: Job) -> Any:
    """Files that tell about keys, memory, addresses and messages of the kernel: bytes that can be read, and addresses."""
    names = ["/proc/keys", "/proc/key-users", "/proc/kcore", "/proc/kmsg", "/proc/kpagecount", "/proc/timer_list", "/proc/sched_debug",
             "/proc/latency_stats", "/proc/scsi/scsi", "/proc/acpi/event", "/proc/vmallocinfo", "/proc/slabinfo", "/proc/pressure/cpu",
             "/sys/firmware/dmi/tables/DMI", "/sys/kernel/debug/sched", "/sys/kernel/tracing/trace", "/sys/kernel/security/lsm"]  # fmt: skip
    found: dict[str, Any] = {path: _size(path) for path in names}
    try:
        lines = Path("/proc/kallsyms").read_text().splitlines()
    except OSError:
        lines = []
    return {"bytes": found, "addresses": sum(1 for line in lines if line.split()[0].strip("0"))}


@wall
def machine_facts(_: Job) -> Any:
    """What tells which machine this is and who else works on it: bytes that can be read, and names of disks."""
    names = ["cmdline", "config.gz", "diskstats", "locks", "partitions", "swaps"]
    disks = os.listdir("/sys/block") if os.path.isdir("/sys/block") else []
    return {**{name: _size(f"/proc/{name}") for name in names}, "disks": len(disks)}


def _size(path: str) -> int:
    """Bytes that can be read, at most 4 KiB; 0 when it cannot be opened."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return 0
    try:
        return len(os.read(fd, 4096))
    except OSError:
        return 0
    finally:
        os.close(fd)


@wall
def mountinfo(_: Job) -> Any:
    """Every mount: where, with which flags, and from which folder of the host (which a container cannot hide)."""
    found = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split(" ")
        found[fields[4]] = {
            "root": fields[3],
            "flags": fields[5],
            "kind": line.split(" - ")[1].split(" ")[0],
            "peers": [word for word in fields[6:] if ":" in word][:2],
        }
    return found


@wall
def crossing(job: Job) -> Any:
    """Out of a mount by its dots, by magic links, and by descriptors of other processes: to a folder that the host has and the sandbox has not."""
    home = job.payload["host"]["home"]
    ways = ["/job/out/../../../../../..", "/proc/self/root/../..", "/proc/1/cwd/../../..", "/proc/self/fd/../../1/root"]
    return {way: tried(lambda p=way + home: os.close(os.open(p, os.O_RDONLY))) for way in ways}
