"""The egress proxy itself, attacked from its job's side: the real server, servers on loopback, names that a test chooses."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from dataclasses import replace

import pytest

from cloche.egress.bounds import Bounds
from cloche.isolation.egress import MAX_RECORDED, Verdict, cgroup_of
from tests.support import egress as support
from tests.support.egress import Names, open_door, platform, running_egress, serving
from tests.support.stores import until

SHORT = replace(Bounds(), head_s=0.3, connect_s=5, resolve_s=0.3)


@pytest.fixture
def patient(monkeypatch):
    """For connections that end by themselves: their end may take what a busy machine takes for it (closing a grant may take 10 s)."""
    monkeypatch.setattr("cloche.egress.grant._ENDING_S", 8)


def verdicts(report):
    return [one.verdict for one in report.connections]


def test_bytes_go_both_ways_and_are_counted(home, patient):
    with serving() as target, running_egress(home, platform(target.address)) as server:
        door = open_door(server, home, target.address)
        with door.tunnel(target.address) as stream:
            stream.sendall(b"x" * 200_000)
            stream.shutdown(socket.SHUT_WR)
            assert support.read_all(stream) == b"x" * 200_000
        report = door.close()
    [one] = report.connections
    assert (one.host, one.port, one.address, one.verdict) == ("127.0.0.1", target.port, "127.0.0.1", "closed")
    assert (one.bytes_up, one.bytes_down) == (200_000, 200_000)
    assert (report.total, report.bytes_up, report.verdicts) == (1, 200_000, {"closed": 1})


def test_a_host_that_is_not_on_the_list(home):
    with serving() as target, serving() as other, running_egress(home, platform()) as server:
        door = open_door(server, home, target.address)
        code, said = door.ask(f"CONNECT {other.address} HTTP/1.1\r\n\r\n")
        assert code == 403
        assert other.address in said
        assert verdicts(door.close()) == [Verdict.NOT_ALLOWED]
        assert not other.came.acquire(blocking=False)


def test_what_the_operator_does_not_allow_is_not_allowed_whoever_asks(home):
    with serving() as target, running_egress(home, platform("other.example:*")) as server:
        door = open_door(server, home, target.address)
        assert door.ask(f"CONNECT {target.address} HTTP/1.1\r\n\r\n")[0] == 403
        assert verdicts(door.close()) == [Verdict.NOT_ALLOWED]


@pytest.mark.parametrize(
    "answers",
    [
        ["127.0.0.1"],
        ["::1"],
        ["::ffff:127.0.0.1"],
        ["64:ff9b::7f00:1"],
        ["2002:7f00:1::"],
        ["169.254.169.254"],
        ["fd00:ec2::254"],
        ["100.100.100.200"],
        ["10.0.0.1"],
        ["fe80::1%lo"],
        ["0.0.0.0"],
        ["93.184.216.34", "127.0.0.1"],
        ["127.0.0.1", "93.184.216.34"],
    ],
)
def test_an_allowed_name_that_leads_inside(home, answers):
    """All its addresses are looked at: one that is not public refuses them all, and nothing is connected to."""
    names = Names({"evil.example": [answers]})
    with serving() as target, running_egress(home, platform("*:*", private=""), names) as server:
        door = open_door(server, home, f"evil.example:{target.port}")
        code, said = door.ask(f"CONNECT evil.example:{target.port} HTTP/1.1\r\n\r\n")
        assert code == 403
        assert said == "evil.example leads to an address that is not public"
        assert verdicts(door.close()) == [Verdict.ADDRESS_REFUSED]
        assert not target.came.acquire(blocking=False)


def test_addresses_that_the_operator_allowed_count_only_for_hosts_named_exactly(home):
    """Through a wildcard anybody's own name could lead there."""
    with serving() as target:
        names = Names({name: [["127.0.0.1"]] for name in ("own.example", "evil.example")})
        rules = platform(f"own.example:{target.port} *:{target.port}")
        with running_egress(home, rules, names) as server:
            door = open_door(server, home, f"own.example:{target.port}", f"evil.example:{target.port}")
            door.tunnel(f"own.example:{target.port}").close()
            assert door.ask(f"CONNECT evil.example:{target.port} HTTP/1.1\r\n\r\n")[0] == 403


def test_the_hosts_own_public_address_is_inside_too(home, monkeypatch):
    from cloche.egress import connect

    monkeypatch.setattr(connect, "is_public", lambda address: True)  # as if 127.0.0.1 were this host's public address
    with serving() as target, running_egress(home, platform(private=""), Names({"me.example": [["127.0.0.1"]]})) as s:
        door = open_door(s, home, f"me.example:{target.port}")
        assert door.ask(f"CONNECT me.example:{target.port} HTTP/1.1\r\n\r\n")[0] == 403
        assert not target.came.acquire(blocking=False)


def test_a_name_that_changes_its_answer_is_pinned(home):
    """The first answer holds for the attempt; a second one, whatever it says, is not asked for."""
    with serving() as target:
        names = Names({"moving.example": [["127.0.0.1"], ["127.0.0.2"], ["169.254.169.254"]]})
        with running_egress(home, platform(f"moving.example:{target.port}"), names) as server:
            door = open_door(server, home, f"moving.example:{target.port}")
            for _ in range(3):
                door.tunnel(f"moving.example:{target.port}").close()
            report = door.close()
    assert names.asked == ["moving.example"]
    assert [one.address for one in report.connections] == ["127.0.0.1"] * 3


def test_a_server_that_moved_is_found_again_and_checked_again(home):
    with serving() as target:
        names = Names({"moved.example": [["127.0.0.2"], ["127.0.0.1"], ["10.9.9.9"]]})
        rules = platform(f"moved.example:{target.port}", private="127.0.0.0/8")
        with running_egress(home, rules, names) as server:
            door = open_door(server, home, f"moved.example:{target.port}")
            # the test's server listens on 127.0.0.1 alone
            assert door.ask(f"CONNECT moved.example:{target.port} HTTP/1.1\r\n\r\n")[0] == 502
            door.tunnel(f"moved.example:{target.port}").close()
            assert verdicts(door.close())[0] == Verdict.UNREACHABLE


def test_a_name_without_an_address_and_one_whose_server_never_answers(home):
    class Silent(Names):
        async def __call__(self, host):
            if host == "silent.example":
                await asyncio.sleep(60)
            return await super().__call__(host)

    with running_egress(home, platform(), Silent(), SHORT) as server:
        door = open_door(server, home, "none.example:1", "silent.example:1")
        for host in ("none.example", "silent.example"):
            code, said = door.ask(f"CONNECT {host}:1 HTTP/1.1\r\n\r\n")
            assert (code, said) == (502, f"{host} has no address")
        assert verdicts(door.close()) == [Verdict.NO_SUCH_HOST] * 2


def test_look_ups_that_hang_hold_their_own_jobs_places_alone(home):
    """Two at once of one job, however many ask and give up; another job's are not held up."""

    class Hanging(Names):
        def __init__(self, answers):
            super().__init__(answers)
            self.release = asyncio.Event()

        async def __call__(self, host):
            if host.startswith("slow"):
                self.asked.append(host)
                await self.release.wait()
            return await super().__call__(host)

    names = Hanging({"good.example": [["127.0.0.1"]]})
    with serving() as target, running_egress(home, platform(f"good.example:{target.port} *:*"), names, SHORT) as server:
        slow = [f"slow{n}.example:1" for n in range(6)]
        door, other = open_door(server, home, *slow), open_door(server, home, f"good.example:{target.port}")
        for text in (*slow, *slow):
            assert door.ask(f"CONNECT {text} HTTP/1.1\r\n\r\n")[0] == 502
        assert names.asked == ["slow0.example", "slow1.example"]
        other.tunnel(f"good.example:{target.port}").close()
        door.close()


@pytest.mark.parametrize(
    "request_",
    [
        "GET http://{0}/ HTTP/1.1\r\nHost: {0}\r\n\r\n",
        "POST http://{0}/ HTTP/1.1\r\nHost: {0}\r\nContent-Length: 3\r\n\r\nabc",
        "CONNECT {0} HTTP/1.1\r\nHost: other.example\r\n\r\n",
        "CONNECT {0} HTTP/1.1\r\nContent-Length: 40\r\n\r\nCONNECT other.example:1 HTTP/1.1\r\n\r\n",
        "CONNECT {0} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "CONNECT {0} HTTP/1.1\nHost: {0}\n\n\r\n\r\n",
        "CONNECT {0}\0.other.example:1 HTTP/1.1\r\n\r\n",
        "CONNECT other.example:1@{0} HTTP/1.1\r\n\r\n",
        "\r\nCONNECT {0} HTTP/1.1\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
)
def test_smuggled_and_malformed_requests_are_answered_and_lead_nowhere(home, request_):
    with serving() as target, running_egress(home, platform()) as server:
        door = open_door(server, home, target.address)
        code, _ = door.ask(request_.format(target.address).encode("latin-1"))
        assert code in (400, 405)
        assert verdicts(door.close()) == [Verdict.MALFORMED]
        assert not target.came.acquire(blocking=False)


def test_a_second_request_behind_the_first_is_bytes_for_the_first_ones_server(home):
    with serving() as target, serving() as other, running_egress(home, platform()) as server:
        door = open_door(server, home, target.address, other.address)
        second = f"CONNECT {other.address} HTTP/1.1\r\n\r\n".encode()
        with door.connect() as stream:
            stream.sendall(f"CONNECT {target.address} HTTP/1.1\r\n\r\n".encode() + second)
            stream.shutdown(socket.SHUT_WR)
            answer = support.read_all(stream)
        assert answer.endswith(b"\r\n\r\n" + second)  # echoed by the first server
        assert answer.count(b" 200 ") == 1
        door.close()
        assert not other.came.acquire(blocking=False)


def test_what_stands_behind_a_refused_request_goes_nowhere(home):
    with serving() as target, running_egress(home, platform()) as server:
        door = open_door(server, home, target.address)
        with door.connect() as stream:
            stream.sendall(
                b"CONNECT other.example:1 HTTP/1.1\r\n\r\n" + f"CONNECT {target.address} HTTP/1.1\r\n\r\n".encode()
            )
            answer = support.read_all(stream)
        assert answer.count(b"HTTP/1.1 ") == 1
        door.close()
        assert not target.came.acquire(blocking=False)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"CONNECT a.example:1 HTTP/1.1\r\nX: " + b"y" * 20_000, 431),
        (b"A" * 9_000, 431),
        (b"CONNECT a.exam", 408),
        (b"", 408),
    ],
)
def test_huge_and_slow_heads(home, data, code):
    with running_egress(home, platform(), bounds=SHORT) as server:
        door = open_door(server, home, "a.example:1")
        assert door.ask(data)[0] == code
        assert verdicts(door.close()) == [Verdict.MALFORMED]


def test_a_head_byte_by_byte_has_the_same_time(home):
    with running_egress(home, platform(), bounds=SHORT) as server:
        door = open_door(server, home, "a.example:1")
        with door.connect() as stream:
            done = threading.Event()

            def drip():
                while not done.wait(0.02):
                    try:
                        stream.send(b"A")
                    except OSError:
                        return

            thread = threading.Thread(target=drip)
            thread.start()
            answer = support.status(support.read_all(stream))
            done.set()
            thread.join()
        assert answer[0] == 408


def test_who_is_not_the_sandboxs_user_is_not_heard(home):
    with serving() as target, running_egress(home, platform()) as server:
        door = open_door(server, home, target.address, peers=frozenset({4_242}))
        with door.connect() as stream:
            assert support.read_all(stream) == b""
        assert verdicts(until(lambda: door.close(), 5, "the report")) == [Verdict.WRONG_USER]
        assert not target.came.acquire(blocking=False)


def test_who_is_in_another_cgroup_is_not_heard_whoever_it_is(home):
    """Root included, which this test is."""
    ours = cgroup_of(os.getpid())
    assert ours is not None
    with serving() as target, running_egress(home, platform()) as server:
        door = open_door(server, home, target.address, peers=f"{ours.rstrip('/')}/a/sandboxs/own")
        with door.connect() as stream:
            assert support.read_all(stream) == b""
        assert verdicts(until(lambda: door.close(), 5, "the report")) == [Verdict.WRONG_USER]
        door = open_door(server, home, target.address, peers=ours)
        door.tunnel(target.address).close()


def test_a_flood_of_connections_waits_then_ends(home, patient):
    """Two at once, ten in all: the third waits for a place, the eleventh finds nobody."""
    with serving() as target:
        bounds = replace(Bounds(), connections=2, total=10)
        with running_egress(home, platform(), bounds=bounds) as server:
            door = open_door(server, home, target.address)
            held = [door.tunnel(target.address) for _ in range(2)]
            waiting = door.connect()
            waiting.sendall(f"CONNECT {target.address} HTTP/1.1\r\n\r\n".encode())
            waiting.settimeout(0.2)
            with pytest.raises(TimeoutError):
                waiting.recv(1)
            held[0].close()
            waiting.settimeout(10)
            assert waiting.recv(12) == b"HTTP/1.1 200"
            for stream in (*held, waiting):
                stream.close()
            for _ in range(7):
                door.ask("CONNECT other.example:1 HTTP/1.1\r\n\r\n")
            until(lambda: _refused(door), 10, "nobody listens any more")
            report = door.close()
    assert report.verdicts == {"closed": 3, "not_allowed": 7, "too_many_connections": 1}


def _refused(door):
    try:
        with door.connect() as stream:
            stream.settimeout(1)
            return stream.recv(1) == b""
    except (ConnectionRefusedError, ConnectionResetError):
        return True


def test_more_connections_than_are_told_one_by_one_are_counted(home):
    with running_egress(home, platform()) as server:
        door = open_door(server, home, "a.example:1")
        for _ in range(MAX_RECORDED + 5):
            door.ask("CONNECT b.example:1 HTTP/1.1\r\n\r\n")
        report = door.close()
    assert len(report.connections) == MAX_RECORDED
    assert (report.total, report.verdicts) == (MAX_RECORDED + 5, {"not_allowed": MAX_RECORDED + 5})


def test_all_jobs_together_have_a_bound_that_says_so(home, patient):
    with serving() as target, running_egress(home, platform(), places=1) as server:
        one, two = open_door(server, home, target.address), open_door(server, home, target.address)
        held = one.tunnel(target.address)
        assert two.ask(f"CONNECT {target.address} HTTP/1.1\r\n\r\n")[0] == 503
        held.close()
        assert verdicts(one.close()) == [Verdict.CLOSED]
        two.tunnel(target.address).close()
        assert verdicts(two.close()) == [Verdict.BUSY, Verdict.CLOSED]


def test_who_holds_many_leaves_some_to_those_who_hold_none(home):
    with serving() as target, running_egress(home, platform(), places=16) as server:
        doors = [open_door(server, home, target.address) for _ in range(4)]
        request = f"CONNECT {target.address} HTTP/1.1\r\n\r\n"
        held = [doors[0].tunnel(target.address) for _ in range(14)]  # all but an eighth
        assert doors[0].ask(request)[0] == 503
        held.append(doors[1].tunnel(target.address))
        assert doors[1].ask(request)[0] == 503, "one is free, and two hold some"
        held.append(doors[2].tunnel(target.address))
        assert doors[3].ask(request)[0] == 503, "none is free"
        for stream in held:  # what was open stays open
            stream.sendall(b"on")
            stream.shutdown(socket.SHUT_WR)
            assert support.read_all(stream) == b"on"
            stream.close()
        assert doors[0].close().verdicts[Verdict.BUSY] == 1


def test_a_silent_connection_is_cut_and_slow_bytes_have_an_end(home):
    with serving() as target:
        with running_egress(home, platform(), bounds=replace(Bounds(), idle_s=0.3)) as server:
            door = open_door(server, home, target.address)
            with door.tunnel(target.address) as stream:
                assert support.read_all(stream) == b""
            assert verdicts(door.close()) == [Verdict.IDLE]
        with running_egress(home, platform(), bounds=replace(Bounds(), max_time_s=0.5)) as server:
            door = open_door(server, home, target.address)
            with door.tunnel(target.address) as stream:
                deadline = time.monotonic() + 20
                with pytest.raises(OSError):  # noqa: PT012 - whichever call is the first to notice
                    while time.monotonic() < deadline:
                        stream.send(b"x")
                        if not stream.recv(1):
                            raise ConnectionResetError
            assert verdicts(door.close()) == [Verdict.TIME_LIMIT]


@pytest.mark.parametrize("connections", [1, 4])
def test_bytes_of_all_connections_have_one_bound(home, connections):
    with serving() as target, running_egress(home, platform(), bounds=replace(Bounds(), max_bytes=100_000)) as server:
        door = open_door(server, home, target.address)
        streams = [door.tunnel(target.address) for _ in range(connections)]
        for stream in streams:
            stream.settimeout(20)
            try:
                stream.sendall(b"x" * 200_000)
                stream.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # cut while it was sending, as is meant
        for stream in streams:
            support.read_all(stream)
            stream.close()
        report = door.close()
    assert report.bytes_up + report.bytes_down <= 100_000
    assert report.verdicts.get("byte_limit", 0) >= 1


def test_a_reader_that_does_not_read_holds_up_nobody_else(home):
    """Neither memory nor other connections: what is not read is not taken from the server."""

    def pour(stream, target):
        stream.settimeout(20)
        sent = 0
        try:
            while sent < 64 << 20:
                sent += stream.send(b"x" * 65_536)
        finally:
            target.seen.append(str(sent).encode())

    with serving(pour) as source, serving() as target, running_egress(home, platform()) as server:
        door = open_door(server, home, source.address, target.address)
        stuck = door.tunnel(source.address)
        with door.tunnel(target.address) as stream:
            stream.sendall(b"still here")
            assert stream.recv(20) == b"still here"
        report = door.close()
        until(lambda: source.seen, 10, "the server finds the connection closed")
        stuck.close()
    assert int(source.seen[0]) < 32 << 20
    assert Verdict.JOB_ENDED in verdicts(report)


def test_after_the_end_nothing_flows(home):
    """Taking the grant back cuts what is open, what is being looked up, and what waits to be accepted."""
    with serving() as target, running_egress(home, platform(), bounds=replace(Bounds(), connections=1)) as server:
        door = open_door(server, home, target.address)
        held, waiting = door.tunnel(target.address), door.connect()
        held.sendall(b"before")
        assert held.recv(6) == b"before"
        report = door.close()
        assert support.read_all(held) == b""
        assert support.read_all(waiting) == b""
        with pytest.raises(ConnectionRefusedError):
            door.connect()
        until(lambda: target.seen == [b"before"], 5, "the server finds the connection closed")
        assert verdicts(report) == [Verdict.JOB_ENDED]
        assert server.close_grant(door.name) is None


def test_a_server_that_ends_first_and_one_that_only_answers_at_the_end(home, patient):
    def answer_at_the_end(stream, target):
        data = support.read_all(stream)
        stream.sendall(b"got " + str(len(data)).encode())

    with serving(answer_at_the_end) as target, running_egress(home, platform()) as server:
        door = open_door(server, home, target.address)
        with door.tunnel(target.address) as stream:
            stream.sendall(b"abc")
            stream.shutdown(socket.SHUT_WR)
            assert support.read_all(stream) == b"got 3"
        assert verdicts(door.close()) == [Verdict.CLOSED]


def test_the_end_of_the_proxy_ends_every_connection(home):
    with serving() as target:
        with running_egress(home, platform()) as server:
            door = open_door(server, home, target.address)
            stream = door.tunnel(target.address)
        assert support.read_all(stream) == b""
        stream.close()
        with pytest.raises(ConnectionRefusedError):
            door.connect()
