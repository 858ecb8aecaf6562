"""What probes found in sandboxes that hold, each with changes that would be a breach, or would show that nothing was tried."""

from __future__ import annotations

import copy
from typing import Any

from cloche.domain.runtimes import RUNSC
from cloche.isolation.spec import CONTAINER, NAMESPACE

EVERYWHERE = (CONTAINER, NAMESPACE, RUNSC)
MIB = 1 << 20
NAMES = ["HOME", "PATH"]
FULL = {"last": "result", "oom": False, "value": {"made": 4_095, "error": "ENOSPC"}}
BESIDE = dict.fromkeys(("on their way", "files", "pipes", "signals", "queues", "locked", "processes", "bind"), "DONE")
LEFT = {
    "first": {"left": {"/tmp": "DONE", "/dev/shm": "DONE", "/job/out": "DONE"}, "queue": "DONE", "segment": "DONE"},
    "second": {
        "places": {"/tmp": [], "/dev/shm": [], "/job/out": [], "/job/in": ["a.txt"]},
        "queue": "ENOENT",
        "shm": "ENOENT",
    },
}
FOLDERS = {"/etc/shadow": "ENOENT", "/home": "ENOENT", "": "ENOENT"}
CROSSED = {"/job/out/../..": "ENOENT", "/proc/self/root/../..": "ENOENT", "/proc/1/cwd/..": "EACCES"}
RANKS = {
    "inside": {"nice": "DONE", "fifo": "EINVAL", "ioprio": "EPERM", "score": "DONE", "terminal": "DONE"},
    "before": {"nice": 0, "score": 0},
    "after": {"nice": 0, "score": 0},
    "terminals": [],
}
REDIRECT = [
    {"value": 403, "verdicts": {"closed": 1, "not_allowed": 1}, "reached": 0},
    {"value": "BadStatusLine", "verdicts": {"closed": 1, "job_ended": 1}, "reached": 1},
]
MOVING = {
    "first": ["DONE", "DONE"],
    "led to": ["127.0.0.1", "127.0.0.1"],
    "later": ["PermissionError: no", "PermissionError: no"],
    "verdicts": {"address_refused": 2},
    "reached": 0,
}
OWN = {
    CONTAINER: {"self": {"/dev/null": 1, "pipe": 6}, "1": "EACCES"},
    NAMESPACE: {"self": {"/dev/null": 1, "pipe": 4, "socket": 1}, "1": "ENOENT"},
    RUNSC: {"self": {"/dev/null": 1, "host": 2, "pipe": 4}, "1": {"/dev/null": 1, "host": 2}},
}
# Where, which probe, facts that hold, and changes of them each of which is a breach or shows that nothing was tried.
CASES: list[tuple[str, str, Any, list[tuple[tuple[Any, ...], Any]]]] = [
    (
        CONTAINER,
        "environment",
        {"own": NAMES, "kept": NAMES, "first": "EACCES"},
        [
            (("own",), [*NAMES, "CLOCHE_DATABASE_URL"]),
            (("kept",), [*NAMES, "TOKEN"]),
            (("kept",), "EACCES"),
            (("first",), ["TOKEN"]),
            (("first",), "ENOENT"),
            (("own",), []),
        ],
    ),
    (
        NAMESPACE,
        "environment",
        {"own": NAMES, "kept": NAMES, "first": "ENOENT"},
        [(("own",), [*NAMES, "TOKEN"]), (("kept",), [*NAMES, "TOKEN"]), (("first",), ["TOKEN"])],
    ),
    *(
        (
            where,
            "descriptors",
            own,
            [
                (("self", "pipe"), 7),
                (("self", "mnt"), 1),
                (("self", "/cloche"), 1),
                (("self", "anon_inode"), 1),
                (("self",), {}),
                (("1",), {"socket": 1}),
            ],
        )
        for where, own in OWN.items()
    ),
    (
        NAMESPACE,
        "release_agent",
        {"raised": "FileNotFoundError: [Errno 2] No such file or directory: '/sys/fs/cgroup'"},
        [
            (("raised",), "PermissionError: [Errno 13] Permission denied: '/sys/fs/cgroup'"),
            (("raised",), "FileNotFoundError: [Errno 2] No such file or directory: '/sys/fs/cgroup/x'"),
        ],
    ),
    (
        CONTAINER,
        "release_agent",
        {"opened": {"a": "EROFS"}, "made": ["EROFS"]},
        [(("made",), []), (("made", 0), "EEXIST"), (("opened", "a"), "DONE")],
    ),
    (
        NAMESPACE,
        "setns",
        {"1 mnt": "ENOENT", "self mnt": "EPERM"},
        [(("self mnt",), "ENOENT"), (("1 mnt",), "EPERM"), (("1 mnt",), "DONE"), (("self mnt",), "DONE")],
    ),
    *(
        (where, "dns", {"example.org": "gaierror"}, [(("example.org",), "DONE"), (("example.org",), "TimeoutError")])
        for where in EVERYWHERE
    ),
    (CONTAINER, "fill_shm_inodes", FULL, [(("value",), {"made": 200_000, "error": None})]),
    (RUNSC, "fill_shm_inodes", FULL, [(("value",), {"made": 200_000, "error": None})]),
    (
        NAMESPACE,
        "fill_shm_inodes",
        FULL,
        [(("value",), {"made": 200_000, "error": None}), (("value", "made"), 5_000), (("oom",), True)],
    ),
    (CONTAINER, "fill_tmp_inodes", FULL, [(("value", "made"), 0), (("value", "made"), 5_000)]),
    *(
        (
            where,
            "leftover_files",
            LEFT,
            [
                (("second", "queue"), "DONE"),
                (("first", "queue"), "ENOSYS"),
                (("second", "places", "/tmp"), ["left"]),
                (("second", "places"), {}),
            ],
        )
        for where in EVERYWHERE
    ),
    (CONTAINER, "leftover_shm", LEFT, [(("second", "shm"), "DONE"), (("first", "segment"), "ENOSYS")]),
    (
        RUNSC,
        "own_uids",
        {"together": [1, 2], "later": 3, "processes": [0, 65534], "root": [1, 1]},
        [(("root",), [1, 2]), (("root",), [0, 0]), (("processes",), [0, 1, 65534]), (("later",), 1)],
    ),
    *(
        (
            where,
            "socket_memory",
            {"oom": False, "sent": 17 * MIB, "held": 18 * MIB},
            [(("held",), 78 * MIB), (("sent",), 0)],
        )
        for where in (CONTAINER, NAMESPACE)
    ),
    (CONTAINER, "fork_bomb_for_ever", {"most": 30, "neighbour": 90, "left": 0}, [(("most",), 0), (("most",), 33)]),
    (
        NAMESPACE,
        "cell_forks",
        {"same container": True, "most": 30, "limit": 32, "neighbour": 90},
        [(("most",), 0), (("most",), 33)],
    ),
    (
        NAMESPACE,
        "cell_runner_lost",
        {"failed": "engine_unavailable", "next": "result", "another": True},
        [(("another",), False)],
    ),
    (CONTAINER, "spin", {"neighbour": 90, "share": 0.5}, [(("share",), 0.0), (("share",), 2.0)]),
    (
        CONTAINER,
        "hoard",
        {
            "hoarded": {"on their way": 6, "signals": 9, "queues": 9},
            "uid": 1,
            "beside": {**BESIDE, "uid": 2, "inputs": ["a.txt"], "reach": "ECONNREFUSED", "loopback": "ECONNREFUSED"},
        },
        [
            (("hoarded", "signals"), 0),
            (("hoarded", "queues"), 0),
            (("hoarded", "on their way"), 0),
            (("beside", "reach"), "DONE"),
        ],
    ),
    (
        CONTAINER,
        "queues",
        {"oom": False, "value": {"made": 9, "error": "EMFILE"}},
        [(("value",), {"made": 0, "error": "EINVAL"}), (("value", "made"), 0)],
    ),
    (
        CONTAINER,
        "flood_progress",
        {"value": "done", "frames": {"progress": 4}, "progress": 200_000},
        [(("progress",), 7)],
    ),
    (
        CONTAINER,
        "first_process",
        {"signals": {"SIGKILL": "DONE"}, "state": "S"},
        [(("state",), "Z"), (("signals",), {})],
    ),
    (
        NAMESPACE,
        "first_process",
        {"signals": {"SIGKILL": "EPERM", "SIGTERM": "EPERM"}, "state": "ENOENT"},
        [(("signals", "SIGTERM"), "DONE"), (("state",), "S")],
    ),
    (
        NAMESPACE,
        "kill_first",
        {"last": None, "exit_code": -9, "answers": ["EPERM"]},
        [(("answers",), ["DONE", "EPERM"]), (("answers",), [])],
    ),
    (CONTAINER, "kill_first", {"last": None, "exit_code": -9, "oom": False, "answers": ["DONE"]}, [(("answers",), [])]),
    (
        CONTAINER,
        "signals_by_files",
        {"last": "result", "oom": False, "value": {"SIGKILL": "DONE"}},
        [(("value", "SIGKILL"), "EPERM")],
    ),
    (
        CONTAINER,
        "forged_exit",
        {"last": None, "frames": {"ready": 1}, "overdue": True, "log_end": "refused 13\n"},
        [(("log_end",), ""), (("frames",), {"result": 1})],
    ),
    *(
        (
            where,
            "host_files",
            FOLDERS | {"/proc/1/root": "EACCES"},
            [(("",), "EACCES"), (("/home",), "DONE"), (("/etc/shadow",), "EACCES")],
        )
        for where in EVERYWHERE
    ),
    *(
        (
            where,
            "crossing",
            CROSSED,
            [(("/job/out/../..",), "EACCES"), (("/proc/self/root/../..",), "EACCES"), (("/proc/1/cwd/..",), "DONE")],
        )
        for where in EVERYWHERE
    ),
    (CONTAINER, "symlink_out", {"file": "ELOOP", "host": "ELOOP"}, [(("file",), "DONE"), (("host",), "ENOENT")]),
    (
        RUNSC,
        "symlink_out",
        {"file": "DONE", "same": True, "host": "ENOENT"},
        [(("same",), False), (("host",), "DONE"), (("host",), "EACCES")],
    ),
    (RUNSC, "scheduling", RANKS, [(("after", "nice"), -20), (("inside", "fifo"), "DONE")]),
    (RUNSC, "spare_from_oom", RANKS, [(("after", "score"), -1000)]),
    (RUNSC, "pseudo_terminals", RANKS, [(("terminals",), ["/dev/pts/7"])]),
    (
        CONTAINER,
        "raise_limits",
        {"raised": dict.fromkeys(("NOFILE", "CORE", "FSIZE"), "not allowed to raise maximum limit"), "core": [1, 1]},
        [
            (("raised", "NOFILE"), "DONE"),
            (("raised", "CORE"), "Python int too large to convert to C long"),
            (("raised",), {}),
        ],
    ),
    (CONTAINER, "memory_of_others", {"outside": [], "own": True}, [(("own",), False), (("outside",), [7])]),
    (
        CONTAINER,
        "changing",
        {"still": True, "left": 0, "links": [], "files": {"grows": "x"}, "refused": {}},
        [(("files",), {}), (("files", "grows"), "root:x:0")],
    ),
    *(
        (
            where,
            "egress_redirect",
            REDIRECT,
            [
                ((0, "value"), "BadStatusLine"),
                ((0, "reached"), 1),
                ((1, "reached"), 0),
                ((0, "verdicts"), {"closed": 2}),
            ],
        )
        for where in EVERYWHERE
    ),
    *(
        (
            where,
            "egress_moving",
            MOVING,
            [
                (("led to", 1), "169.254.169.254"),
                (("reached",), 1),
                (("later", 0), "DONE"),
                (("first", 1), "PermissionError: no"),
                (("verdicts",), {"unreachable": 2}),
            ],
        )
        for where in EVERYWHERE
    ),
    (
        CONTAINER,
        "egress_second_request",
        {"value": [200], "first": 1, "reached": False},
        [(("first",), 0), (("reached",), True)],
    ),
]


def spoilt(facts: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy of the facts with another value at that place."""
    changed = copy.deepcopy(facts)
    place = changed
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return changed
