"""Who holds too many record locks, by the kernel's own list."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cloche.sandboxd import locks
from cloche.sandboxd.locks import LockWatch


@dataclass
class Held:
    """A sandbox with these processes."""

    id: str
    pids: list[int]
    stopped: list[str] = field(default_factory=list)

    def processes(self) -> list[int]:
        return self.pids

    def stop_for(self, counter: str, used: int) -> None:
        assert used == locks.MAX_LOCKS + 1
        self.stopped.append(counter)


def listing(proc: Path, *rows: tuple[str, int, int]) -> Path:
    """A list as the kernel writes it: kind, process, how many. Processes below 100 live."""
    for pid in range(1, 100):
        (proc / str(pid)).mkdir(exist_ok=True)
    lines = []
    for kind, pid, count in rows:
        lines += [f"{len(lines) + n}: {kind}  ADVISORY  WRITE {pid} 00:1f:{n} {n} {n}" for n in range(count)]
    (proc / "locks").write_text("\n".join(lines) + "\n")
    return proc


def look(proc: Path, *sandboxes: Held) -> list[list[str]]:
    LockWatch(lambda: sandboxes, proc).look()
    return [sandbox.stopped for sandbox in sandboxes]


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "MAX_LOCKS", 10)


def test_a_list_that_takes_long_is_read_more_rarely() -> None:
    shortest = locks.INTERVAL_SECONDS
    assert [locks.pause(spent) for spent in (0.0, 0.01, 0.1, 1.0, 60.0)] == [shortest, shortest, 0.4, 1.0, 1.0]


def test_one_with_too_many_is_ended(tmp_path: Path) -> None:
    path = listing(tmp_path, ("POSIX", 7, 8), ("POSIX", 8, 11))
    assert look(path, Held("a", [7]), Held("b", [8])) == [[], ["locks_over"]]


def test_all_processes_of_a_sandbox_count_together(tmp_path: Path) -> None:
    path = listing(tmp_path, ("POSIX", 7, 4), ("POSIX", 1, 30), ("POSIX", 8, 4), ("POSIX", 9, 4))
    assert look(path, Held("a", [7, 8, 9])) == [["locks_over"]]


def test_a_few_each_and_many_in_all_end_nobody(tmp_path: Path) -> None:
    path = listing(tmp_path, ("POSIX", 7, 10), ("POSIX", 1, 100), ("POSIX", 8, 10))
    assert look(path, Held("a", [7]), Held("b", [8])) == [[], []]


def test_flock_and_waiting_count_and_those_without_a_process_do_not(tmp_path: Path) -> None:
    path = listing(tmp_path, ("FLOCK", 7, 5), ("OFDLCK", -1, 50), ("POSIX", 7, 5))
    assert look(path, Held("a", [7])) == [[]]
    with (path / "locks").open("a") as file:
        file.write("61: -> POSIX  ADVISORY  READ 7 00:1f:9 0 EOF\n")
    assert look(path, Held("a", [7])) == [["locks_over"]]


def test_locks_that_dead_processes_left_belong_to_who_has_the_files_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_OPEN", 3)
    file = tmp_path / "locked"
    file.touch()
    facts = file.stat()
    where = f"{os.major(facts.st_dev):02x}:{os.minor(facts.st_dev):02x}:{facts.st_ino}"
    proc = listing(tmp_path)
    for pid, count in ((7, 1), (8, 4)):
        (proc / str(pid) / "fd").mkdir()
        for number in range(count):
            (proc / str(pid) / "fd" / str(number)).symlink_to(file)
    (proc / "locks").write_text("".join(f"{n}: FLOCK  ADVISORY  READ 900 {where} 0 EOF\n" for n in range(11)))
    assert look(proc, Held("a", [7]), Held("b", [8])) == [[], ["locks_over"]]


@pytest.mark.parametrize(("count", "stopped"), [(9, []), (50, ["locks_over"])])
def test_locks_of_this_host(tmp_path: Path, count: int, stopped: list[str]) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "file"), str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        assert look(Path("/proc"), Held("a", [holder.pid])) == [stopped]
        holder.communicate()


HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "w")
for place in range(int(sys.argv[2])):
    fcntl.lockf(file, fcntl.LOCK_EX, 1, 2 * place)
print("locked", flush=True)
sys.stdin.read()
"""


def test_the_list_cannot_be_read(tmp_path: Path) -> None:
    watch = LockWatch(lambda: [Held("a", [7])], tmp_path / "absent")
    with pytest.raises(OSError, match="No such file"):
        watch.look()


def test_many_that_do_it_together_are_ended_one_after_the_other(tmp_path: Path) -> None:
    """The first one's locks still stand in the list while it dies."""
    held = [Held("a", [7]), Held("b", [8]), Held("c", [9])]
    watch = LockWatch(lambda: held, listing(tmp_path, ("POSIX", 7, 20), ("POSIX", 8, 20), ("POSIX", 9, 3)))
    assert [watch.look() for _ in range(3)] == [True, True, False]
    assert [sandbox.stopped for sandbox in held] == [["locks_over"], ["locks_over"], []]


def test_a_lock_on_no_file_counts(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "locks").write_text("".join(f"{n}: POSIX  ADVISORY  WRITE 7 <none>:0 0 EOF\n" for n in range(11)))
    assert look(tmp_path, Held("a", [7])) == [["locks_over"]]


def test_a_round_that_fails_is_not_the_last(tmp_path: Path) -> None:
    (tmp_path / "locks").write_text("1: POSIX  ADVISORY  WRITE what 00:1f:1 0 EOF\n")
    sandbox, rounds = Held("a", [7]), iter(range(1_000))
    passed = threading.Event()

    def running() -> list[Held]:
        if next(rounds) > 6:
            passed.set()
        return [sandbox]

    watch = LockWatch(running, tmp_path)
    watch.start()
    assert passed.wait(20)
    watch.close()
