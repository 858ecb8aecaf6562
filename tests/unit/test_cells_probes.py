"""What judges of level ``namespace`` take for held and what not, and how a network namespace is read."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest

from cloche.sandboxd.probes import network
from cloche.sandboxd.probes.rows_cells import CELLS, DIFFERENT
from cloche.sandboxd.probes.table import PROBES, for_level
from tests.support.probe_facts import spoilt

BY_ID = {probe.id: probe for probe in CELLS}
SOCKETS = {"tcp": 0, "tcp6": 0, "udp": 0, "udp6": 0, "unix": 0}
NETWORK = {
    "done": {"tcp4": "DONE", "udp4": "DONE", "unix": "DONE", "address": "EPERM", "ipv4/ip_forward": "ENOENT"},
    "addresses": [["127.0.0.1", "::1"], ["127.0.0.1", "::1"]],
    "sockets": [dict(SOCKETS), {**SOCKETS, "tcp": 3, "udp": 1, "unix": 4}, dict(SOCKETS)],
    "settings": 570,
    "kept when closed": "0",
    "changed": {},
}
CPU = {"same container": True, "same limits": True, "hostile": 1_000, "victim": 260, "value": "computed"}
PLACES = {"/tmp": [], "/dev/shm": [], "/job/in": ["a.txt"], "/job/out": []}
FOUND = {
    "places": PLACES,
    "shm": "ENOENT",
    "queue": "ENOENT",
    "socket": "ECONNREFUSED",
    "environment": False,
    "processes": 1,
}
THOUSAND = {
    "failed": 0,
    "left": {
        "left": {"/tmp": "DONE", "/dev/shm": "DONE", "/job/out": "DONE", "/job/in": "EROFS"},
        "queue": "DONE",
        "segment": "DONE",
    },
    "traces": 100,
    "found": [FOUND, FOUND],
    "unseen": 0,
    "before": {"counts": {"mounts": 3}},
    "after": {"counts": {"mounts": 3}},
    "grown": 0,
}


@pytest.mark.parametrize(("name", "facts"), [("cell_network", NETWORK), ("cell_cpu", CPU), ("cell_thousand", THOUSAND)])
def test_held(name: str, facts: Any) -> None:
    assert BY_ID[name].held(facts)


@pytest.mark.parametrize(
    ("name", "facts", "path", "value"),
    [
        ("cell_network", NETWORK, ("done", "tcp4"), "EPERM"),
        ("cell_network", NETWORK, ("done", "address"), "DONE"),
        ("cell_network", NETWORK, ("done", "ipv4/ip_forward"), "DONE"),
        ("cell_network", NETWORK, ("addresses", 1), ["127.0.0.1", "192.0.2.9", "::1"]),
        ("cell_network", NETWORK, ("addresses",), [["127.0.0.1", "192.0.2.9"], ["127.0.0.1", "192.0.2.9"]]),
        ("cell_network", NETWORK, ("sockets", 1), SOCKETS),
        *(("cell_network", NETWORK, ("sockets", 2, kind), 1) for kind in SOCKETS),
        ("cell_network", NETWORK, ("settings",), 0),
        ("cell_network", NETWORK, ("kept when closed",), "8192"),
        ("cell_network", NETWORK, ("changed",), {"ipv4/ip_forward": ["0", "1"]}),
        ("cell_cpu", CPU, ("same container",), False),
        ("cell_cpu", CPU, ("same limits",), False),
        ("cell_cpu", CPU, ("hostile",), 0),
        ("cell_cpu", CPU, ("victim",), 83),
        ("cell_cpu", CPU, ("value",), None),
        ("cell_thousand", THOUSAND, ("failed",), 1),
        ("cell_thousand", THOUSAND, ("traces",), 0),
        ("cell_thousand", THOUSAND, ("left", "left", "/dev/shm"), "ENOSPC"),
        ("cell_thousand", THOUSAND, ("found",), []),
        ("cell_thousand", THOUSAND, ("unseen",), 1),
        ("cell_thousand", THOUSAND, ("after", "counts", "mounts"), 4),
        ("cell_thousand", THOUSAND, ("grown",), 3 << 20),
        ("cell_thousand", THOUSAND, ("found", 1, "places", "/tmp"), ["left"]),
        ("cell_thousand", THOUSAND, ("found", 1, "places"), {}),
        ("cell_thousand", THOUSAND, ("found", 0, "shm"), "DONE"),
        ("cell_thousand", THOUSAND, ("found", 1, "queue"), "DONE"),
        ("cell_thousand", THOUSAND, ("left", "queue"), "EMFILE"),
        ("cell_thousand", THOUSAND, ("left", "segment"), "ENOSPC"),
        ("cell_thousand", THOUSAND, ("found", 0, "socket"), "DONE"),
        ("cell_thousand", THOUSAND, ("found", 0, "environment"), True),
        ("cell_thousand", THOUSAND, ("found", 0, "processes"), 2),
    ],
)
def test_not_held(name: str, facts: Any, path: tuple[Any, ...], value: Any) -> None:
    assert not BY_ID[name].held(spoilt(facts, path, value))


def test_every_difference_is_of_a_probe_that_exists_and_says_why() -> None:
    assert DIFFERENT.keys() <= {probe.id for probe in PROBES}
    assert all(row.expects and row.why for row in DIFFERENT.values())
    now = {probe.id: probe for probe in for_level("namespace")}
    for probe in PROBES:
        if probe.id.removeprefix("warm_") not in DIFFERENT and probe.id != "warm_walls":
            assert (now[probe.id].expects, now[probe.id].held) == (probe.expects, probe.held)


TRIE = """Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 127.0.0.0/8 2 0 2
        +-- 127.0.0.0/31 1 0 0
           |-- 127.0.0.0
              /8 host LOCAL
           |-- 127.0.0.1
              /32 host LOCAL
        |-- 127.255.255.255
           /32 link BROADCAST
     |-- 192.0.2.9
        /32 host LOCAL
"""


def test_addresses_are_read_from_the_kernels_tables() -> None:
    assert network.version_4(TRIE) == {"127.0.0.1", "192.0.2.9"}
    assert network.version_4("") == frozenset()
    lines = (
        "00000000000000000000000000000001 01 80 10 80       lo\n20010db8000000000000000000000005 02 40 00 80     eth0\n"
    )
    assert network.version_6(lines) == {"::1", "2001:db8::5"}


def test_a_network_is_seen_with_what_is_open_in_it() -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0cloche-seen")
        server.listen()
        found = network.look(os.getpid())
    assert found.sockets["unix"] > 0
    assert "127.0.0.1" in found.addresses
    assert found.settings["ipv4/ip_forward"] in ("0", "1")
