"""Parts of level ``namespace`` without an engine: cgroups of both versions on a tree of files, short messages, a channel without framing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloche.domain.limits import Limits
from cloche.errors import PlatformFailure
from cloche.isolation.cell_spec import slot_memory
from cloche.isolation.channel import GuestChannel
from cloche.sandboxd.cells import preloaded, slot_cgroup
from cloche.sandboxd.cells.slot_cgroup import CgroupProblem, SlotCgroup, open_for_slots
from cloche.sandboxd.cells.talk import ANSWER_SECONDS, Talk
from cloche.sandboxd.cgroups import Cgroup
from cloche_guest import cell_preload, compiling, control
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

    group = SlotCgroup(Cgroup(folder, {}), memory=100, above=Cgroup(None, {}), cpu=1)
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


@pytest.mark.parametrize("version", [1, 2])
def test_what_dies_has_all_the_cpu_until_the_next_cell(tmp_path: Path, version: int) -> None:
    boxes = [tmp_path / name for name in ("box", "slot")]
    for folder in boxes:
        folder.mkdir()
    above, group = (
        Cgroup(folder, {}) if version == 2 else Cgroup(None, {"cpu": folder, "memory": folder}) for folder in boxes
    )
    name, lifted = ("cpu.max", "max") if version == 2 else ("cpu.cfs_quota_us", "-1")
    (boxes[1] / "memory.limit_in_bytes").write_text("100")
    slot = SlotCgroup(group, memory=100, above=above, cpu=0.5)
    slot.hasten()
    assert [(folder / name).read_text() for folder in boxes] == [lifted] * 2, "the container's too: neighbours share it"
    slot.begin()
    assert (boxes[1] / name).read_text() in ("50000", "50000 100000")


def test_memory_of_a_dead_cell_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot_cgroup, "_FREED_SECONDS", 0.01)

    def use(size: int, files: int = 0) -> None:
        (tmp_path / "memory.current").write_text(str(size << 20))
        (tmp_path / "memory.stat").write_text(
            f"anon 1\nactive_file {files << 20}\ninactive_file 0\nslab_reclaimable 0\n"
        )

    slot = SlotCgroup(Cgroup(tmp_path, {}), memory=100, above=Cgroup(None, {}), cpu=1)
    use(500)
    assert slot.freed(), "nothing was in there before its first cell"
    use(10)
    slot.begin()
    use(20)
    assert slot.freed()
    use(60)
    assert not slot.freed()
    slot.begin()
    assert not slot.freed(), "at rest is what was there before the first cell, not before the last"
    use(60, files=45)
    assert slot.freed(), "copies of files give way"


def test_what_the_compiler_takes_is_no_memory_at_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first cell is ordered while it is at work."""
    monkeypatch.setattr(slot_cgroup, "_FREED_SECONDS", 0.01)
    (tmp_path / "memory.stat").write_text("anon 1\n")
    slot = SlotCgroup(Cgroup(tmp_path, {}), memory=100, above=Cgroup(None, {}), cpu=1)
    for size in (80, 10):
        (tmp_path / "memory.current").write_text(str(size << 20))
        slot.begin()
    (tmp_path / "memory.current").write_text(str(60 << 20))
    assert not slot.freed()


def test_a_slots_first_answer_waits_for_the_compiler_and_not_for_the_compiler_alone() -> None:
    assert compiling._SECONDS <= ANSWER_SECONDS / 2
    assert cell_preload.SECONDS + compiling._SECONDS < preloaded._WAIT_SECONDS


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


SLEEPER = """
import mmap, os, signal
from pathlib import Path
from cloche_guest import kernel

def shared():
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if "s" in line.split()[1] and "w" in line.split()[1]]

sleeper = kernel.Sleeper()
child = kernel.fork()
if child == 0:
    sleeper._stack[:6] = b"secret"
    os._exit(0)
os.waitpid(child, 0)
kept = sleeper._stack[:6]
os.kill(sleeper.pid, signal.SIGKILL)
_, status = os.waitpid(sleeper.pid, 0)
print([shared(), kept == bytes(6), os.waitstatus_to_exitcode(status)])
"""


def test_a_cell_cannot_write_to_the_stack_of_its_first_process() -> None:
    """Nor to that of the cell before it, which the runner may still hold: the next one would read it."""
    done = subprocess.run([sys.executable, "-c", SLEEPER], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[[], True, -9]"


MAKER = """
import os, socket, struct, sys
from cloche_guest import cell, kernel
for name in ("unshare", "drop_capabilities", "set_dumpable"):
    setattr(kernel, name, lambda *_: None)
cell._mounts = lambda order: None
near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
child = os.fork()
if child == 0:
    far.close()
    cell.live_for(cell.Order(0, 1, "", ""), near.detach())
near.close()
far.recv(100)
far.send(struct.pack("i", int(sys.argv[1])))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize("code", [0, 3, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGPIPE, -signal.SIGXFSZ, -34])
def test_a_maker_ends_as_the_process_it_stands_for(code: int) -> None:
    """Also by signals that the interpreter ignores."""
    command = [sys.executable, "-c", MAKER, str(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == str(code)
