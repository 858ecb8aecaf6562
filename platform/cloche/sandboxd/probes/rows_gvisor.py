"""Where gVisor's own kernel answers otherwise than the host's: what is expected there, and why it is no worse."""

from __future__ import annotations

from typing import Any

from cloche.sandboxd.probes import rows_egress, scenes, scenes_egress
from cloche.sandboxd.probes.bench import MIB, SMALL
from cloche.sandboxd.probes.probe import Differs, Probe, denied, only, refused
from cloche.sandboxd.probes.rows_reach import descriptors
from cloche.sandboxd.probes.scenes import job

_NO_CAPABILITY = dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapBnd"), "0" * 16)
_SILENCE = only("EHOSTUNREACH", "ENETUNREACH", "EADDRNOTAVAIL", "EACCES")
_DEVICES = {"null", "zero", "full", "random", "urandom", "tty", "console", "ptmx", "fuse", "tun"}
_PLENTY = 512 * MIB


def adapted(probe: Probe) -> Probe:
    """The probe as it is judged under gVisor."""
    row = DIFFERENT.get(probe.id)
    return probe if row is None else row.adapted(probe)


def _own_uids(facts: Any) -> bool:
    return (
        len({*facts["together"], facts["later"]}) == 3
        and set(facts["processes"]) == {0, 65534}
        and facts["root"] == [1, 1]
    )


def _ranks(facts: Any) -> bool:
    inside = facts["inside"]
    return only("EPERM", "EACCES", "EINVAL")([inside["fifo"], inside["ioprio"]]) and facts["before"] == facts["after"]


def _nodes(facts: Any) -> bool:
    """Nothing that was made could be opened, and nothing was made on the host."""
    return all(
        value == "EPERM" if place.startswith("/job/out") else value in ("EPERM", "ENXIO", "ENODEV", "EACCES")
        for place, value in facts.items()
    )


def _execute(facts: Any) -> bool:
    return all(value == "EACCES" for place, value in facts.items() if not place.startswith("/job/out"))


def _devices(facts: Any) -> bool:
    others = {name: value for name, value in facts["opened"].items() if name not in ("fuse", "net/tun")}
    return set(facts["there"]) <= _DEVICES | {"net"} and denied(others)


def _mounts(facts: Any) -> bool:
    writable = {place for place, mount in facts.items() if "rw" in mount["flags"].split(",")}
    noexec = all("noexec" in facts[place]["flags"].split(",") for place in ("/tmp", "/dev/shm"))
    return (
        noexec
        and writable <= {"/dev", "/dev/pts", "/dev/shm", "/job/out", "/proc", "/tmp"}
        and not any(mount["peers"] for mount in facts.values())
    )


def _first(facts: Any) -> bool:
    """Its memory and its OOM score are its own; what can be read and written tells of nothing but this job."""
    return denied(
        [facts[name] for name in ("mem", "oom_score_adj", "timerslack_ns", "syscall", "map_files", "clear_refs")]
    )


def _odd_files(facts: Any) -> bool:
    taken = {"good", "suid", "hidden", "locked/inner"}
    return (
        set(facts["files"]) == taken
        and set(facts["refused"]) == {"link", "root", "magic", "first", "second"}
        and facts["modes"] == ["0o100600"]
        and facts["value"]["device"] == "EPERM"
    )


def _killed(facts: Any) -> bool:
    return facts["oom"] and facts["last"] is None


# fmt: off
DIFFERENT: dict[str, Differs] = {
    "capabilities": Differs("the four sets it shows are empty", lambda f: f == _NO_CAPABILITY, "the 2022 version does not show the ambient set"),
    "no_new_privileges": Differs("it cannot be unset", lambda f: f["status"] in (None, "1") and f["undo"] != "DONE",
                                 "the 2022 version does not show it; set-user-id programs have no effect under gVisor at all"),
    "own_uids": Differs("three user ids inside; on the host none of them, and of root's processes one", _own_uids,
                        "on the host it is gVisor that runs, as nobody in a user namespace without rights, beside its file server, which is root in an empty root folder "
                        "with six capabilities and a filter of its own"),
    "become_root": Differs("each is EPERM, or EINVAL for what is not there", only("EPERM", "EINVAL"), "there are no ambient capabilities"),
    "setuid_bits": Differs("chown is EPERM", lambda f: all(value[1] == "EPERM" for value in f.values()), "mounts do not say nosuid; set-user-id programs have no effect at all"),
    "file_capabilities": Differs("refused", only("EPERM", "EOPNOTSUPP", "ENOTSUP"), "ENOTSUP is another name of EOPNOTSUPP there"),
    "scheduling": Differs("nice succeeds inside; the others are refused; the host's processes of it have the rank that they had", _ranks,
                          "the number is kept by gVisor's kernel and reaches no scheduler of the host's", scenes.kept_within),
    "spare_from_oom": Differs("accepted inside; the host's processes of it have the score that they had", _ranks,
                              "the number is gVisor's own; the host's kernel kills the whole sandbox, whatever it says (`memory`)", scenes.kept_within),
    "mknod": Differs("nodes in its memory that cannot be opened; EPERM in out/", _nodes, "gVisor's /tmp takes any node, and no driver stands behind it"),
    "asynchronous_io": Differs("EPERM", only("EPERM", "ENOSYS"), "the filter's ENOSYS becomes EPERM in the 2022 version; nothing is made either way"),
    "watches": Differs("EPERM", only("EPERM", "ENOSYS"), "as above"),
    "priorities": Differs("each is ENOSYS", only("EPERM", "ENOSYS"), "gVisor's kernel has no such call"),
    "pseudo_terminals": Differs("there are gVisor's own; no process of it has one of the host's", lambda f: f["inside"]["terminal"] in ("DONE", "ENOENT", "EACCES") and f["terminals"] == [],
                                "they are its kernel's, in the job's memory; the host's are not touched", scenes.kept_within),
    "outside": Differs("each is unreachable", _SILENCE, "gVisor's network says EHOSTUNREACH"),
    "metadata": Differs("unreachable", _SILENCE, "as above"),
    "raw_icmp": Differs("raw is EPERM; the ping is unreachable",
                        lambda f: refused([f["raw4"], f["raw6"], f["raw"]]) and f["ping"] in ("EHOSTUNREACH", "ENETUNREACH", "EACCES", "EPERM"), "as above"),
    "make_interface": Differs("each is refused, but for opening tun", lambda f: denied({k: "EPERM" if v == "ENOTTY" else v for k, v in f.items() if k != "tun"}),
                              "unknown requests are ENOTTY; /dev/net/tun is a device of gVisor's own network, and needs a capability to be of use"),
    "descriptors": Differs("/dev/null, pipes, and two streams of the host's, which process 1 has too",
                           descriptors({"/dev/null": 1, "host": 2, "pipe": 4}, {"/dev/null": 1, "host": 2}),
                           "gVisor names the host's pipes `host`"),
    "execute": Differs("EACCES in /tmp and /dev/shm; out/ runs programs", _execute,
                       "flags of the host's mount are not seen inside; what runs there has the rights the plugin has"),
    "devices": Differs("harmless ones, and gVisor's own fuse and tun", _devices, "both are implemented by gVisor's kernel; mount and configuration are refused"),
    "symlink_out": Differs("followed, within the sandbox's own files", lambda f: f == {"file": "DONE", "same": True, "host": "ENOENT"},
                           "gVisor resolves paths by itself, never on the host; the host's mount still says nosymfollow to the collector"),
    "mountinfo": Differs("/tmp and /dev/shm are noexec; nothing else than on the host can be written; no mount is shared", _mounts,
                         "the 2022 version knows no nosuid and nodev: neither set-user-id nor devices have an effect"),
    "machine_facts": Differs("a boot line that is the same on every host; no byte and no disk else",
                             lambda f: f["cmdline"] < 64 and set({**f, "cmdline": 0}.values()) == {0}, "gVisor's kernel makes it up"),
    "host_process": Differs("there is no such process", only("ESRCH", "ENOENT", "ENOSYS"), "there is no pidfd_open"),
    "first_process": Differs("SIGKILL gets through: the sandbox ends, and the job has crashed by SIGKILL",
                             lambda f: f["last"] is None and f["exit_code"] == -9 and not f["oom"],
                             "gVisor's kernel does not spare process 1; the end of a gVisor sandbox is the job's doing, never the platform's",
                             scenes.alone("first_process")),
    "files_of_first": Differs("memory and OOM score are refused", _first,
                              "environment, maps and streams of a process of one's own user are open there: they hold nothing of the platform's, "
                              "and a forged last line ends the job without a result (`forged_exit`)"),
    "fill_tmp_inodes": Differs("ended by the memory limit, out of memory", _killed, "gVisor's /tmp has a limit of bytes and none of inodes; they are its memory, which is the job's"),
    "memory_of_a_child": Differs("the whole sandbox is killed, out of memory", _killed, "the memory of all its processes is one file of gVisor's"),
    "fork_bomb": Differs("EAGAIN below the limit; with too little memory for so many, out of memory first",
                         lambda f: f["last"] == "result" and 0 < f["value"]["made"] < SMALL.pids and f["value"]["error"] == "EAGAIN",
                         "refused by gVisor's kernel, so the host does not count it; a process costs 4 to 9 MB there (run with 512 MB)",
                         job("fork_bomb", memory=_PLENTY)),
    "fork_bomb_for_ever": Differs("never more than the limit and gVisor's own few; a neighbour works; all die",
                                  lambda f: SMALL.pids // 2 <= f["most"] <= SMALL.pids + 8 and f["neighbour"] == 90 and f["left"] == 0,
                                  "gVisor is some processes itself (run with 512 MB)", scenes.forking_for_ever(memory=_PLENTY)),
    "record_locks": Differs("granted; the host's kernel has none of them, and a neighbour has its few",
                            lambda f: f["alive"] > 0 and f["on_host"] == 0 and f["neighbour"] == {"made": 10, "error": None},
                            "gVisor keeps them in its own memory, which is the job's", scenes.record_locks_within),
    "kill_first": Differs("SIGKILL gets through: the sandbox ends, and the job has crashed by SIGKILL",
                          lambda f: f["last"] is None and f["exit_code"] == -9 and not f["oom"] and f["answers"] == [], "as with `first_process`"),
    "signals_by_files": Differs("SIGKILL gets through: the sandbox ends, and the job has crashed by SIGKILL",
                                lambda f: (f["last"] == "result" or f["exit_code"] == -9) and not f["oom"], "as with `first_process`; the result may be faster"),
    "egress_flood": Differs("as under runc, with 16 at once", rows_egress.flooded,
                            "further connects wait instead of failing: gVisor's file server waits in them, for this job alone", scenes_egress.flooding(16)),
    "odd_files": Differs("regular files are copied with mode 0600; links are refused by name; FIFO and socket never were on the host", _odd_files,
                         "gVisor keeps FIFOs and sockets to itself"),
}
# fmt: on
