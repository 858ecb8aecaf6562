"""Level ``namespace``: what is expected otherwise than in a container of one's own, and probes of what only that level has."""

from __future__ import annotations

from typing import Any

from cloche.sandboxd.probes import cell_scenes
from cloche.sandboxd.probes.probe import Differs, Judge, Probe, denied, only, refused
from cloche.sandboxd.probes.rows_kernel import environment
from cloche.sandboxd.probes.rows_lies import no_queue
from cloche.sandboxd.probes.rows_limits import no_more_inodes
from cloche.sandboxd.probes.rows_reach import descriptors

_WRITABLE = {"/dev/shm", "/job/out", "/proc", "/tmp"}
_DEVICES = {"full", "null", "random", "tty", "urandom", "zero"}


def _own_user(facts: Any) -> bool:
    (uid, *uids), gids = facts["uids"], facts["gids"]
    return 1 <= uid < 64 and {uid, *uids, *gids} == {uid} and facts["groups"] == []


def _fresh_uids(facts: Any) -> bool:
    """Beside the cells' own users there is that of their runners, which is no cell's."""
    one, two = facts["together"]
    others = set(facts["processes"]) - {one, two}
    return one != two and facts["later"] not in (one, two) and len(others) == 1 and not others & {facts["later"]}


def _mounts(facts: Any) -> bool:
    if not _WRITABLE | {"/", "/job/in", "/cloche/plugin"} <= set(facts):
        return False
    for place, mount in facts.items():
        flags = set(mount["flags"].split(","))
        if any(peer.startswith(("shared:", "master:")) for peer in mount["peers"]):
            return False
        if "rw" in flags and place not in _WRITABLE and not place.startswith("/dev/"):
            return False
        if place in _WRITABLE and not {"nosuid", "nodev", "noexec"} <= flags:
            return False
    return "/sys" not in facts and not any(place.startswith("/cloche/slot") for place in facts)


def _no_cgroups(facts: Any) -> bool:
    return facts == {"raised": "FileNotFoundError: [Errno 2] No such file or directory: '/sys/fs/cgroup'"}


def _setns(facts: Any) -> bool:
    """Process 1's are not there; one's own are, and are refused."""
    own = {name: answer for name, answer in facts.items() if name.startswith("self ")}
    others = {name: answer for name, answer in facts.items() if name not in own}
    return denied(own) and "ENOENT" not in own.values() and only("ENOENT")(others)


# fmt: off
DIFFERENT: dict[str, Differs] = {
    "user": Differs("one id between 1 and 63 throughout, no other group: inside the user namespace", _own_user,
                    "a cell sees ids of its container's user namespace; outside they are those of a range that only this container has"),
    "own_uids": Differs("three user ids, and beside them only our own runners'", _fresh_uids,
                        "a cell is forked in its slot's cgroup by the runner, which stays there under an id that no cell has"),
    "environment": Differs("the image's own names; process 1 is not there to be seen", environment("ENOENT"),
                           "a cell's `/proc` hides other users' processes (`hidepid=2`), and its process 1 is the runner's, not the job's"),
    "setns": Differs("process 1's are not there; one's own are refused", _setns, "as above"),
    "descriptors": Differs("/dev/null, pipes, and one socket, the channel; process 1 is not there to be seen",
                           descriptors({"/dev/null": 1, "pipe": 4, "socket": 1}, "ENOENT"), "as above; a cell's channel is a socket"),
    "devices": Differs("six harmless ones are all there is", lambda f: set(f["there"]) == _DEVICES and set(f["opened"].values()) <= {"ENOENT"},
                       "a slot's `/dev` is six devices that we chose; there is no console and no `ptmx`"),
    "mountinfo": Differs("what can be written is noexec, nosuid, nodev; no mount has peers; no slot, no /sys", _mounts,
                         "a cell's `/proc` is its own and has nothing but processes, so that nothing in it is covered; what is the container's is not mounted in a slot"),
    "release_agent": Differs("there is no cgroup file system", _no_cgroups, "none is mounted in a slot, as nothing of `/sys` is"),
    "processes_seen": Differs("the job's own alone", lambda f: f["number"] == 2 and f["first"] == 2 and f["uids"] == [],
                              "process 1 is another user's and hidden; the guest is the job's own process"),
    "first_process": Differs("EPERM, each: it is another user's", lambda f: refused(f["signals"]) and f["state"] == "ENOENT",
                             "in a container process 1 has the job's user id and takes no signal; here the kernel refuses to send one"),
    "daemons": Differs("alive with the job, dead with it", lambda f: f["last"] == "result" and f["before"] >= 5 and f["left"] == 0,
                       "one process fewer has the job's user id: process 1 is the runner's"),
    "kill_first": Differs("EPERM, each: it is another user's; the job has crashed by SIGKILL", lambda f: f["last"] is None and f["exit_code"] == -9 and f["answers"] == ["EPERM"],
                          "as with `first_process`"),
    "fill_shm_inodes": Differs("refused at its number of inodes", no_more_inodes(4_096), "a cell's is mounted by us, with that number"),
    "leftover_processes": Differs("the job's own process is all there is", lambda f: f["second"]["processes"] == 1, "as with `processes_seen`"),
}
# fmt: on


def adapted(probe: Probe) -> Probe:
    """The probe with what is expected of it at level ``namespace``."""
    row = DIFFERENT.get(probe.id)
    return probe if row is None else row.adapted(probe)


def _surroundings(facts: Any) -> bool:
    return (
        facts["seen"] == []
        and facts["users"] == [facts["uid"]]
        and set(facts["signals"]) <= {"ESRCH", "EPERM"}
        and facts["proc"] == ["self", "thread-self"]
        and facts["slot"] == facts["control"] == []
        and set(facts["cloche"]) == {"/cloche/plugin", "/cloche/slot", "/cloche/wheels"}
        and facts["sockets"] == 1
        and facts["shared memory"] == []
    )


def _channel(facts: Any) -> bool:
    """The kernel shows a process of another pid namespace as 0 and an unmapped user as 65534."""
    nobody = facts["peer"] == [0, 65534, 65534] and facts["name"] == ["''", "''"]
    return nobody and facts["listen"] == "EINVAL" and facts["descriptor"] == "EPERM"


def _no_marks(facts: Any) -> bool:
    beside = facts["beside"]
    return (
        facts["same container"]
        and beside["found"] == beside["slots"] == []
        and beside["tmpfs"] == ["/", "/job/out", "/tmp"]
        and beside["port"] == "ECONNREFUSED"
        and beside["processes"] == 1
        and beside["inputs"] == ["a.txt"]
    )


def _nothing_grows(facts: Any) -> bool:
    before, after = facts["before"]["counts"], facts["after"]["counts"]
    more = [name for name in before.keys() | after.keys() if after.get(name, 0) > before.get(name, 0)]
    traces = facts["traces"] > 0 and all(
        facts["left"]["left"][place] == "DONE" for place in ("/tmp", "/dev/shm", "/job/out")
    )
    clean = facts["unseen"] == 0 and len(facts["found"]) > 0 and all(map(_nothing_found, facts["found"]))
    clean = (
        clean and facts["left"]["segment"] == "DONE" and all(no_queue(facts["left"], found) for found in facts["found"])
    )
    return facts["failed"] == 0 and not more and facts["grown"] <= 2 << 20 and traces and clean


def _nothing_found(facts: Any) -> bool:
    empty = all(names == (["a.txt"] if place == "/job/in" else []) for place, names in facts["places"].items())
    reached = {"/tmp", "/dev/shm", "/job/in", "/job/out"} <= facts["places"].keys()
    return (
        empty
        and reached
        and facts["shm"] == "ENOENT"
        and facts["socket"] == "ECONNREFUSED"
        and not facts["environment"]
        and facts["processes"] == 1
    )


def _network(facts: Any) -> bool:
    """That no closed connection is kept shows that the settings are the slot's: a host keeps thousands."""
    before, after = facts["addresses"]
    done = facts["done"]
    used = all(done[kind] == "DONE" for kind in ("tcp4", "udp4", "unix"))
    refused_all = denied([done[name] for name in done if name == "address" or "/" in name])
    seen = facts["settings"] > 0 and facts["kept when closed"] == "0"
    sockets, during, left = facts["sockets"]
    used = used and all(during[kind] > sockets[kind] for kind in ("tcp", "udp", "unix"))
    same = sockets == left and facts["changed"] == {} and before == after
    return used and refused_all and seen and same and {"127.0.0.1"} <= set(after) <= {"127.0.0.1", "::1"}


def _shared_out(facts: Any) -> bool:
    """At least a quarter of what twelve times as many processes had; sharing by process would give it a twelfth."""
    together = facts["same container"] and facts["same limits"] and facts["value"] == "computed"
    return together and facts["hostile"] > 0 and 4 * facts["victim"] >= facts["hostile"]


def _no_power(facts: Any) -> bool:
    """Setgid, setuid, chroot and admin of the container's user namespace, and nothing that they would open elsewhere."""
    first, second = facts
    return (
        first == second
        and first["permitted"] == [6, 7, 18, 21]
        and set(first["tries"].values()) == {"Operation not permitted"}
        and set(first["runner"].values())
        <= {"Operation not permitted", "No such file or directory", "Permission denied"}
        and first["places"] == []
        and first["proc"] == ["self", "thread-self"]
    )


def _unfit(why: str) -> Judge:
    told = f"no cell: preload failed: {why}"
    return lambda f: (
        f["level"] == "container" and f["why"].startswith(told) and f["last_error"] == ["its preload failed"]
    )


# fmt: off
CELLS = (
    Probe("cell_unshare", "cells", "unshare as the runner does, which the filter lets pass", "EPERM: no capability; a user namespace least of all", refused),
    Probe("cell_mounts", "cells", "mount, unmount, setns as the runner does; cgroup file systems of both versions", "each is EPERM: no capability", refused),
    Probe("cell_filters", "cells", "one more filter, on the process and on a socket", "each is EPERM", refused),
    Probe("cell_surroundings", "cells", "agent, runner, control sockets, the slot's folder, other processes, shared memory", "not one can be seen or signalled; one socket, the channel; none",
          _surroundings),
    Probe("cell_channel", "cells", "ask the channel's socket for its other end", "nobody of this pid namespace, a user without a name here, no descriptor of it", _channel),
    Probe("cell_maps", "cells", "write the maps of the container's user namespace", "each is refused, or written already", only("EPERM", "EACCES")),
    Probe("cell_neighbours", "cells", "files, mounts, ports and processes of another slot of the same container, while it runs", "none",
          _no_marks, cell_scenes.neighbours),
    Probe("cell_outlive", "cells", "three deaf processes outlive the job's own", "its exit code is told, they die with the cell, the slot holds its runner alone",
          lambda f: f["exit_code"] == 7 and f["processes"] == 1, cell_scenes.outlive),
    Probe("cell_port", "cells", "one TCP port, listened on and connected to by ten jobs of a slot, one after the other", "each can",
          lambda f: f["values"] == ["taken"] * 10, cell_scenes.one_port),
    Probe("cell_network", "cells", "a slot's network namespace before and after a job that used TCP, UDP and names of both families, and tried to leave an address and settings",
          "addresses (those of lo), sockets of every kind and all of `/proc/sys/net` are as before", _network, cell_scenes.network_left),
    Probe("cell_cpu", "cells", "twelve processes that compute for ever in one slot, one that computes in another of the same container and limits",
          "the one has at least a quarter of the CPU time of the twelve", _shared_out, cell_scenes.cpu_beside),
    Probe("cell_memory", "cells", "out of memory in one slot, a job at work in another of the same container", "the one is killed and called so; the other ends well",
          lambda f: f["same container"] and f["oom"] and f["neighbour"] == 90, cell_scenes.memory_beside),
    Probe("cell_forks", "cells", "a fork bomb in one slot, a job at work in another of the same container", "never more than its own limit; the other ends well",
          lambda f: f["same container"] and f["limit"] // 2 <= f["most"] <= f["limit"] and f["neighbour"] == 90, cell_scenes.forks_beside),
    Probe("cell_runner_lost", "cells", "the runner of a slot dies under its job", "the job has failed by the platform; the next one gets another container",
          lambda f: f["failed"] == "engine_unavailable" and f["next"] == "result" and f["another"], cell_scenes.runner_lost),
    Probe("cell_thousand", "cells", "1,000 jobs in the same slots, a hundred of which leave a trace in every place there is",
          "not one fails; no more mounts, descriptors, processes, folders than before; memory flat; the last in each slot finds no file, no memory, no socket",
          _nothing_grows, cell_scenes.thousand),
    Probe("cell_oom_flood", "cells", "the job's memory goes to files that no process maps, five times",
          "called out of memory each time, and the level goes on", lambda f: f["ooms"] == 5 and f["after"] == 90, cell_scenes.oom_again),
    Probe("cell_memory_left", "cells", "memory that the kernel frees only after the job's death, then the slot's next job with all of its own, five times",
          "each has what it may have", lambda f: f["values"] == [60] * 5, cell_scenes.memory_left),
    Probe("cell_runner_memory", "cells", "a job smaller than its runner uses up the memory, a job at work in another slot of the same container",
          "called out of memory, not a failure of the platform; the other ends well",
          lambda f: f["same container"] and f["oom"] and f["neighbour"] == 90, cell_scenes.runner_taken),
    Probe("preload_power", "preload", "a preloaded package with all it may have: unshare, mount, a filter, capabilities, the runner's files, signals to it",
          "each is refused; neither slot nor control socket is there to be seen; the slot works", _no_power, cell_scenes.preload_power),
    Probe("preload_threads", "preload", "a preload that leaves a thread", "no cell is forked from it; the job has a container and says why; the pool backs off",
          _unfit("it leaves 1 thread running"), cell_scenes.unfit("thread")),
    Probe("preload_processes", "preload", "a preload that leaves a process", "the same", _unfit("it leaves 1 process running"), cell_scenes.unfit("process")),
    Probe("preload_memory", "preload", "a preload that takes more memory than the slot has", "the same", _unfit("it ran out of memory"), cell_scenes.unfit("memory")),
    Probe("preload_ends", "preload", "a preload that ends its process", "the same", _unfit("its process ended by itself (exit code 3)"), cell_scenes.unfit("end")),
    Probe("preload_lets_go", "preload", "a preload that closes its runner's socket and stays", "the same", _unfit("it lost its connection to the runner"),
          cell_scenes.unfit("let_go")),
)
# fmt: on
