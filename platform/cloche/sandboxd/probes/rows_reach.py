"""Probes of what a job can reach: networks, files, devices, the kernel's own files, other processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cloche.sandboxd.probes.probe import Judge, Probe, denied, equals, only, refused

_UNREACHABLE = only("ENETUNREACH", "EADDRNOTAVAIL", "EACCES")
_DEVICES = {"null", "zero", "full", "random", "urandom", "tty", "console", "ptmx"}
_WRITABLE = {"/dev", "/dev/mqueue", "/dev/pts", "/dev/shm", "/job/out", "/proc", "/tmp"}


def _mounts(facts: Any) -> bool:
    """No mount gets news from the host, and all that can be written is the kernel's or has the quota's flags."""
    if not {"/", "/tmp", "/dev/shm", "/job/in", "/job/out", "/cloche/plugin"} <= set(facts):
        return False
    for place, mount in facts.items():
        flags = set(mount["flags"].split(","))
        if any(peer.startswith("shared:") for peer in mount["peers"]) or (mount["peers"] and place != "/"):
            return False
        if "rw" in flags and place not in _WRITABLE and not place.startswith(("/proc/", "/dev/", "/sys/")):
            return False
        if place in ("/tmp", "/dev/shm", "/job/out") and not {"nosuid", "nodev", "noexec"} <= flags:
            return False
    return True


def descriptors(own: Mapping[str, int], first: Any) -> Judge:
    """The agent has open what is ours and no more of it, and this is what listing process 1's is answered."""
    return lambda facts: facts == {"self": own, "1": first}


def _absent(facts: Any) -> bool:
    """What only root may enter is EACCES for whoever sees the host's: it has to be absent. The way by process 1 may be barred before it."""
    barred = {name for name in facts if name.startswith("/proc/1/") or name.endswith("/1/root")}
    return len(facts) > len(barred) and all(
        value == "ENOENT" or (name in barred and value == "EACCES") for name, value in facts.items()
    )


def _no_secrets(facts: Any) -> bool:
    return facts["addresses"] == 0 and not any(facts["bytes"].values())


# fmt: off
NETWORK = (
    Probe("interfaces", "network", "list interfaces and routes", "lo, and no route", equals({"names": ["lo"], "routes": []})),
    Probe("outside", "network", "TCP, UDP and multicast to documentation addresses", "each is unreachable", _UNREACHABLE),
    Probe("metadata", "network", "a cloud's metadata address", "unreachable", _UNREACHABLE),
    Probe("dns", "network", "look names up", "no answer", only("gaierror")),
    Probe("host_loopback", "network", "a port that the host listens on, on both loopbacks", "refused: the loopback is the sandbox's own",
          only("ECONNREFUSED", "ENETUNREACH", "EADDRNOTAVAIL")),
    Probe("host_abstract", "network", "an abstract Unix socket of the host", "ECONNREFUSED", only("ECONNREFUSED")),
    Probe("make_interface", "network", "set addresses, take lo down, make a bridge, open tun", "each is refused", denied),
    Probe("unix_sockets", "network", "find a socket or FIFO file anywhere", "there is none", equals([])),
    Probe("af_netlink", "network", "netlink sockets", "each is EPERM", refused),
    Probe("af_packet", "network", "packet sockets", "each is EPERM", refused),
    Probe("af_alg", "network", "kernel crypto sockets", "each is EPERM", refused),
    Probe("af_vsock", "network", "sockets to the hypervisor", "each is EPERM", refused),
    Probe("other_families", "network", "every other family, also beyond the known ones", "each is EPERM", equals(["EPERM"])),
    Probe("raw_icmp", "network", "raw sockets, and a ping", "raw is EPERM; the ping is unreachable",
          lambda f: refused([f["raw4"], f["raw6"], f["raw"]]) and f["ping"] in ("ENETUNREACH", "EACCES", "EPERM")),
)

FILES = (
    Probe("docker_socket", "files", "connect to sockets of engines, bus and init under their usual names", "none is there", denied),
    Probe("host_files", "files", "open files and folders of the host, this home among them", "none is there",
          _absent),
    Probe("descriptors", "files", "list what is open in the agent and in process 1", "/dev/null and pipes",
          descriptors({"/dev/null": 1, "pipe": 6}, "EACCES")),
    Probe("write_root", "files", "write in every folder that is not meant for it", "none can be written", equals({})),
    Probe("change_inputs", "files", "write, remove, rename, link, map the inputs", "each is refused",
          only("EROFS", "EACCES", "EPERM", "EXDEV", "ENOENT")),
    Probe("change_code", "files", "open the plugin's and the guest's code for writing", "each is refused", only("EROFS", "EACCES", "EPERM")),
    Probe("execute", "files", "run a script and a program from /tmp, /dev/shm and out/", "each is EACCES", only("EACCES")),
    Probe("devices", "files", "list and open devices", "the eight harmless ones are all there is",
          lambda f: {"null"} <= set(f["there"]) <= _DEVICES and denied(f["opened"])),
    Probe("symlink_out", "files", "follow a link in out/", "ELOOP: links are not followed there", equals({"file": "ELOOP", "host": "ELOOP"})),
    Probe("replace_out", "files", "rename, remove, replace or give away /job/out", "each is refused",
          only("EROFS", "EBUSY", "EACCES", "EPERM", "EXDEV", "ENOTEMPTY")),
    Probe("mountinfo", "files", "read the mounts, their flags and peers", "what can be written is noexec, nosuid, nodev; no mount is shared with the host",
          _mounts),
    Probe("crossing", "files", "leave mounts by dots, magic links, other processes' roots", "nothing of the host is there", _absent),
)

KERNEL = (
    Probe("core_pattern", "kernel files", "write core_pattern, modprobe and other sysctls", "each is refused", denied),
    Probe("sysrq", "kernel files", "sysrq, power state", "each is refused", denied),
    Probe("proc_writes", "kernel files", "open everything in /proc for writing, outside one's own process", "nothing opens", equals([])),
    Probe("release_agent", "kernel files", "write cgroup files, make cgroups", "each is refused",
          lambda f: denied(f["opened"]) and denied(f["made"])),
    Probe("sys_writes", "kernel files", "write to /sys", "each is refused", denied),
    Probe("kernel_secrets", "kernel files", "read keys, timers, memory maps, firmware tables, kernel addresses", "not a byte, not an address", _no_secrets),
    Probe("machine_facts", "kernel files", "read the boot line, the kernel's configuration, disks, file locks and swap", "not a byte, no disk",
          equals(dict.fromkeys(("cmdline", "config.gz", "diskstats", "locks", "partitions", "swaps", "disks"), 0))),
)

PROCESSES = (
    Probe("processes_seen", "processes", "list processes", "three, all of this sandbox's user", equals({"number": 3, "first": 1, "uids": []})),
    Probe("host_process", "processes", "signal, read and group-kill the host's own process by its number", "there is no such process",
          only("ESRCH", "ENOENT")),
    Probe("first_process", "processes", "SIGKILL, SIGTERM, SIGSTOP to process 1", "it lives on",
          lambda f: f["state"] in ("S", "R", "D") and only("DONE", "EPERM")(f["signals"])),
    Probe("files_of_first", "processes", "open process 1's memory, descriptors, environment, OOM score", "each is refused",
          only("EACCES", "EPERM", "ENOENT")),
    Probe("limits_of_first", "processes", "take process 1's memory, CPU time and descriptors by prlimit", "each is EPERM", refused),
    Probe("memory_of_others", "processes", "open /proc/*/mem of every number up to 5,000", "none outside this sandbox", equals({"outside": [], "own": True})),
)
# fmt: on
