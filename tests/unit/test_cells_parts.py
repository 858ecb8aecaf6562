"""Parts of level ``namespace`` without an engine: cgroups of both versions on a tree of files, short messages, a channel without framing."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloche.domain.limits import Limits
from cloche.errors import PlatformFailure
from cloche.isolation.cell_spec import slot_memory
from cloche.isolation.channel import GuestChannel
from cloche.sandboxd.cells.slot_cgroup import CgroupProblem, SlotCgroup, open_for_slots
from cloche.sandboxd.cells.talk import Talk
from cloche.sandboxd.cgroups import Cgroup
from cloche_guest import control
from cloche_guest.protocol import encode

LIMITS = Limits()


def unified(root: Path) -> Cgroup:
    root.mkdir()
    (root / "cgroup.controllers").write_text("cpu io memory pids\n")
    (root / "cgroup.procs").write_text("41\n42\n")
    return Cgroup(root, {})


def test_version_2_moves_the_agent_first_and_opens_controllers(tmp_path: Path) -> None:
    group = unified(tmp_path / "box")
    open_for_slots(group)
    assert (tmp_path / "box/agent/cgroup.procs").read_text() == "42", (
        "one number each write; the last stays in a plain file"
    )
    assert (tmp_path / "box/cgroup.subtree_control").read_text() == "+memory +pids +cpu"


def test_version_2_without_a_controller_is_refused(tmp_path: Path) -> None:
    group = unified(tmp_path / "box")
    (tmp_path / "box/cgroup.controllers").write_text("cpu memory\n")
    with pytest.raises(CgroupProblem, match="pids"):
        open_for_slots(group)


def test_version_1_without_a_controller_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CgroupProblem, match="cpuacct"):
        open_for_slots(Cgroup(None, dict.fromkeys(("memory", "pids", "cpu"), tmp_path)))


def test_a_slots_limits_version_2(tmp_path: Path) -> None:
    box = unified(tmp_path / "box")
    (tmp_path / "box/slot-0").mkdir()
    SlotCgroup.make(box, "slot-0", LIMITS)
    folder = tmp_path / "box/slot-0"
    found = {name: (folder / name).read_text() for name in ("memory.max", "memory.swap.max", "pids.max", "cpu.max")}
    assert found == {
        "memory.max": str(slot_memory(LIMITS)),
        "memory.swap.max": "0",
        "pids.max": str(LIMITS.pids + 1),
        "cpu.max": "100000 100000",
    }


def test_usage_is_that_of_one_cell_version_2(tmp_path: Path) -> None:
    folder = tmp_path / "slot"
    folder.mkdir()

    def write(cpu: int, peak: int, kills: int) -> None:
        (folder / "cpu.stat").write_text(f"usage_usec {cpu}\n")
        (folder / "memory.peak").write_text(str(peak))
        (folder / "memory.events").write_text(f"oom_kill {kills}\n")

    group = SlotCgroup(Cgroup(folder, {}), memory=100)
    write(5_000, 700, 2)
    group.begin()
    assert (folder / "memory.max").read_text() == "100"
    write(9_000, 700, 2)
    assert group.usage() == {"cpu_ms": 4, "oom_kills": 0}, "a peak that did not rise is not this cell's"
    write(9_000, 900, 3)
    assert group.usage() == {"cpu_ms": 4, "oom_kills": 1, "memory_peak": 900}
    group.set_memory(50)
    group.begin()
    assert (folder / "memory.max").read_text() == "100", "what one cell was resized to is not the next one's"


@pytest.fixture
def pair() -> Iterator[tuple[Talk, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    talk = Talk(ours)
    yield talk, theirs
    talk.close()
    theirs.close()


def test_messages_bring_what_is_due(pair: tuple[Talk, socket.socket]) -> None:
    talk, theirs = pair
    reader, writer = os.pipe()
    control.send(theirs, {"type": "slot_ready"}, [reader])
    message, fds = talk.hear("slot_ready", fds=1)
    assert message == {"type": "slot_ready"}
    for fd in (*fds, reader, writer):
        os.close(fd)
    talk.say({"type": "go"})
    assert control.receive(theirs) == ({"type": "go"}, [])


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"type":"other"}', b"\xff", b'{"type":"cell"}' + b" " * 5_000])
def test_what_is_not_due_is_an_anomaly(pair: tuple[Talk, socket.socket], data: bytes) -> None:
    talk, theirs = pair
    theirs.send(data) if data else theirs.close()
    with pytest.raises(PlatformFailure):
        talk.hear("cell", seconds=5)


def test_descriptors_that_come_unasked_are_closed(pair: tuple[Talk, socket.socket]) -> None:
    talk, theirs = pair
    reader, writer = os.pipe()
    before = len(os.listdir("/proc/self/fd"))
    control.send(theirs, {"type": "cell", "id": 1}, [reader, writer])
    with pytest.raises(PlatformFailure):
        talk.hear("cell", fds=1)
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(reader)
    os.close(writer)


def test_silence_is_an_anomaly(pair: tuple[Talk, socket.socket]) -> None:
    with pytest.raises(PlatformFailure, match="no answer"):
        pair[0].hear("cell", seconds=0)


def test_a_channel_without_the_engines_framing() -> None:
    ours, theirs = socket.socketpair()
    channel = GuestChannel(ours, LIMITS, framed=False)
    with theirs:
        data = encode({"type": "result", "value": {"a": 1}})
        theirs.sendall(data[:7])
        assert channel.receive(0.01) is None
        theirs.sendall(data[7:])
        assert channel.receive(5) == {"type": "result", "value": {"a": 1}}
        channel.send({"type": "cancel"})
        assert theirs.recv(100) == encode({"type": "cancel"})
    with pytest.raises(EOFError):
        channel.receive(5)
    assert not channel.cut_off, "how a cell ended its runner tells"
    assert channel.exit_code is None
    channel.close()
