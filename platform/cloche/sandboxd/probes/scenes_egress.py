"""Probes of jobs that may reach something: what else they try to reach, and what is left afterwards."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from cloche.sandboxd.probes.bench import Bench, Live
from cloche.sandboxd.probes.outside import LOOPBACK, MAX_BYTES, MOVING, TOTAL
from cloche.sandboxd.probes.probe import Observe

METADATA = "169.254.169.254"


def reach(bench: Bench) -> Any:
    """The one host on its list, by ``connect`` and by a forwarded port."""
    port = bench.outside.allowed.port
    facts = bench.run("egress_reach", {"targets": [["127.0.0.1", port]]}, allow=[bench.outside.listed])
    return {"value": facts["value"], "verdicts": facts["egress"]["verdicts"]}


def others(bench: Bench) -> Any:
    """Hosts that are not on the list, in every notation of the one that is; and two names of the list that lead inside."""
    port, inside = bench.outside.allowed.port, bench.outside.inside.port
    hosts = [
        "localhost",
        "127.0.0.2",
        "2130706433",
        "0x7f000001",
        "127.1",
        "0177.0.0.1",
        "::1",
        "::ffff:127.0.0.1",
        "example.org",
    ]
    targets = [[host, port] for host in hosts] + [["127.0.0.1", inside], ["127.0.0.1", 22]]
    before = (bench.outside.allowed.accepted, bench.outside.inside.accepted)
    facts = bench.run("egress_reach", {"targets": targets}, allow=[bench.outside.listed])
    after = (bench.outside.allowed.accepted, bench.outside.inside.accepted)
    return {"value": facts["value"], "verdicts": facts["egress"]["verdicts"], "reached": before != after}


def inside(bench: Bench) -> Any:
    """Allowed by the policy's wildcard, and on the job's list; but it leads to this host, or to a metadata service."""
    port = bench.outside.inside.port
    targets = [["localhost", port], ["127.0.0.1", port], ["169.254.169.254", 80], ["100.64.0.1", 80], ["::1", port]]
    allow = [f"{host}:{number}" if ":" not in str(host) else f"[{host}]:{number}" for host, number in targets]
    before = bench.outside.inside.accepted
    facts = bench.run("egress_reach", {"targets": targets}, allow=allow)
    reached = bench.outside.inside.accepted != before
    return {"value": facts["value"], "verdicts": facts["egress"]["verdicts"], "reached": reached}


def redirect(bench: Bench) -> Any:
    """A host on the list answers with a redirect to one that is not, though the policy allows it; then the same where both are, to see that it is followed."""
    web, elsewhere, server = bench.outside.leading_on, bench.outside.elsewhere, bench.outside.allowed
    found = []
    for allow in ([web], [web, elsewhere]):
        before = server.accepted
        facts = bench.run("egress_redirect", {"url": f"http://{web}/"}, allow=allow)
        found.append(
            {"value": facts["value"], "verdicts": facts["egress"]["verdicts"], "reached": server.accepted - before}
        )
    return found


def moving(bench: Bench) -> Any:
    """A name of the list that leads elsewhere from one connection of a job to the next, and still does for the next job."""
    outside = bench.outside
    payload = {"target": [MOVING, outside.allowed.port]}
    outside.names.change(moving=LOOPBACK)
    with bench.live("egress_moving", payload, allow=[outside.moving]) as live:
        live.until("first")
        outside.names.change(moving=METADATA)
        (live.sandbox.in_folder / "go").write_text("")
        live.drive(60)
        first = live.facts()
    before = outside.allowed.accepted
    later = bench.run("egress_reach", {"targets": [[MOVING, outside.allowed.port]] * 2}, allow=[outside.moving])
    return {
        "first": first["value"],
        "led to": [one["address"] for one in first["egress"]["connections"]],
        "later": later["value"],
        "verdicts": later["egress"]["verdicts"],
        "reached": outside.allowed.accepted - before,
    }


def smuggle(bench: Bench) -> Any:
    """Requests that two parsers could read differently, each with a second one for another host behind it."""
    listed, other = bench.outside.listed, f"127.0.0.1:{bench.outside.inside.port}"
    behind = f"CONNECT {other} HTTP/1.1\r\n\r\n"
    requests = [
        f"GET http://{listed}/ HTTP/1.1\r\nHost: {listed}\r\n\r\n",
        f"CONNECT {listed} HTTP/1.1\r\nHost: {other}\r\n\r\n",
        f"CONNECT {listed} HTTP/1.1\r\nHost: {listed}\r\nHost: {other}\r\n\r\n",
        f"CONNECT {listed} HTTP/1.1\r\nContent-Length: {len(behind)}\r\n\r\n{behind}",
        f"CONNECT {listed} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{behind}",
        f"CONNECT {listed} HTTP/1.1\nHost: {listed}\n\n{behind}",
        f"CONNECT {listed}\0{other} HTTP/1.1\r\n\r\n",
        f"CONNECT {other}@{listed} HTTP/1.1\r\n\r\n",
        f"CONNECT {listed} HTTP/1.1\r\n folded: yes\r\n\r\n",
        "A" * 20_000,
        f"CONNECT {listed} HTTP/1.1\r\nX: {'y' * 20_000}\r\n\r\n",
    ]
    before = (bench.outside.allowed.accepted, bench.outside.inside.accepted)
    facts = bench.run("egress_raw", {"requests": requests}, allow=[listed])
    after = (bench.outside.allowed.accepted, bench.outside.inside.accepted)
    return {"value": facts["value"], "reached": before != after}


def second_request(bench: Bench) -> Any:
    """Behind a request that is let through: a second one."""
    other = f"127.0.0.1:{bench.outside.inside.port}"
    text = f"CONNECT {bench.outside.listed} HTTP/1.1\r\n\r\nCONNECT {other} HTTP/1.1\r\n\r\n"
    before = (bench.outside.allowed.accepted, bench.outside.inside.accepted)
    facts = bench.run("egress_raw", {"requests": [text]}, allow=[bench.outside.listed, other])
    after = (bench.outside.allowed.accepted, bench.outside.inside.accepted)
    first, second = (now - was for was, now in zip(before, after, strict=True))
    return {"value": facts["value"], "first": first, "reached": second > 0}


def flooding(at_once: int) -> Observe:
    """Connections without end, so many of them at once; a neighbour reaches its host meanwhile."""

    def observe(bench: Bench) -> Any:
        with bench.live("egress_flood", {"at_once": at_once}, allow=[bench.outside.listed]) as live:
            live.until("flooding")
            target = {"targets": [["127.0.0.1", bench.outside.allowed.port]]}
            neighbour = bench.run("egress_reach", target, allow=[bench.outside.listed])
            live.drive(60)
            facts = live.facts()
        egress = facts["egress"]
        return {
            "value": facts["value"],
            "neighbour": neighbour["value"],
            "bounded": egress["total"] <= TOTAL + 1,
            "told": len(egress["connections"]) <= 50,
            "verdicts": egress["verdicts"],
        }

    return observe


def slow(bench: Bench) -> Any:
    """A byte at a time, for ever."""
    began = time.monotonic()
    payload = {"port": bench.outside.allowed.port}
    facts = bench.run("egress_slow", payload, seconds=60, allow=[bench.outside.listed])
    return {"verdicts": facts["egress"]["verdicts"], "ended": time.monotonic() - began < 40, "last": facts["last"]}


def pour(bench: Bench) -> Any:
    """Bytes without end, over several connections."""
    payload = {"port": bench.outside.allowed.port}
    facts = bench.run("egress_pour", payload, seconds=60, allow=[bench.outside.listed])
    egress = facts["egress"]
    moved = egress["bytes_up"] + egress["bytes_down"]
    return {"verdicts": egress["verdicts"], "within": moved <= MAX_BYTES, "last": facts["last"]}


def stay(bench: Bench) -> Any:
    """A connection that a background thread keeps busy when the job ends."""
    payload = {"port": bench.outside.allowed.port}
    with bench.live("egress_stay", payload, allow=[bench.outside.listed]) as live:
        live.until("staying")
        open_before = bench.outside.allowed.open
        live.drive(20)
        facts = live.facts()
    return {"open": open_before, "last": facts["last"], "quiet": bench.outside.allowed.quiet()}


def another_ones(bench: Bench) -> Any:
    """The socket of another sandbox: by its path on the host, by every socket file that can be seen; and its mode, as the host has it."""
    with bench.live("deaf", allow=[bench.outside.listed]) as one:
        one.until("deaf")
        path = _socket(one)
        facts = bench.run("egress_sockets", {"path": str(path)})
        seen = path.lstat()
        owner = [oct(seen.st_mode & 0o7777), seen.st_uid == one.running.uid, path.parent.lstat().st_uid]
        return {"value": facts["value"], "owner": owner}


def _socket(live: Live) -> Path:
    return live.running.site.folders.run / "egress.sock"


def before_the_job(bench: Bench) -> Any:
    """What setup() and the import saw in a sandbox that has egress afterwards."""
    return bench.run("egress_before", allow=[bench.outside.listed])["value"]


def replace_socket(bench: Bench) -> Any:
    """Remove, rename, cover or change the socket from inside."""
    return bench.run("egress_replace", allow=[bench.outside.listed])["value"]
