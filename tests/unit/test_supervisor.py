"""The supervisor with real, tiny child processes."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cloche.cli.up.backoff import LONGEST_S, QUICK, STEADY_S, Backoff
from cloche.cli.up.child import Service, how_it_ended
from cloche.cli.up.supervisor import Supervisor

_DEADLINE_S = 20.0
# A child that says it is up, and on SIGTERM says that it ends.
POLITE = """
import os, signal, time
def end(*_):
    os.write(1, b"ends\\n")  # not print: the signal may come while that still says "up"
    os._exit(0)
signal.signal(signal.SIGTERM, end)
print("up", flush=True)
while True:
    time.sleep(60)
"""
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
while True:
    time.sleep(60)
"""
# Leaves a grandchild behind that holds the pipe open, then dies.
CARELESS = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("grandchild", child.pid, flush=True)
os._exit(3)
"""


class Recorder:
    """A sink that remembers, and lets a test wait for a line."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, str]] = []
        self._changed = threading.Condition()

    def line(self, process: str, text: str) -> None:
        with self._changed:
            self.entries.append((process, text))
            self._changed.notify_all()

    def say(self, text: str, *, level: str = "info") -> None:
        self.line("supervisor", text)

    def wait_for(self, wanted: Callable[[list[tuple[str, str]]], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: wanted(self.entries), _DEADLINE_S), self.entries


def service(name: str, stage: int, program: str, *arguments: str, grace_s: float = 10.0, **more: object) -> Service:
    return Service(name, stage, lambda _run: [sys.executable, "-c", program, *arguments], grace_s, **more)  # type: ignore[arg-type]


def supervise(
    services: list[Service],
    during: Callable[[Supervisor, Recorder], None],
    gone: Callable[[Service, str], None] = lambda _service, _run: None,
) -> Recorder:
    """Run a supervisor here, in the main thread, and ``during`` beside it; it is stopped when that returns."""
    sink = Recorder()
    supervisor = Supervisor(services, sink, gone)
    failures: list[BaseException] = []

    def beside() -> None:
        try:
            during(supervisor, sink)
        except BaseException as error:
            failures.append(error)
        finally:
            supervisor.stop()

    thread = threading.Thread(target=beside)
    thread.start()
    supervisor.run()
    thread.join()
    if failures:
        raise failures[0]
    return sink


def gone_from_the_machine(pid: int) -> bool:
    deadline = time.monotonic() + _DEADLINE_S
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):  # the second where it goes between opening and reading
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False


def test_stops_in_the_opposite_order_of_the_start() -> None:
    names = ["index", "daemon", "web", "worker"]
    services = [service(name, stage, POLITE) for stage, name in enumerate(names)]

    def during(_supervisor: Supervisor, sink: Recorder) -> None:
        sink.wait_for(lambda lines: all((name, "up") in lines for name in names))

    sink = supervise(list(reversed(services)), during)
    assert [name for name, text in sink.entries if text == "ends"] == ["worker", "web", "daemon", "index"]


def test_the_next_stage_starts_when_the_one_before_is_ready(tmp_path: Path) -> None:
    mark = tmp_path / "ready"
    first = service("first", 0, f"open({str(mark)!r}, 'w').close()\n" + POLITE, ready=mark.exists)
    second = service("second", 1, f"import os; print(os.path.exists({str(mark)!r}), flush=True)\n" + POLITE)

    def during(_supervisor: Supervisor, sink: Recorder) -> None:
        sink.wait_for(lambda lines: ("second", "up") in lines)

    assert ("second", "True") in supervise([first, second], during).entries


def test_what_dies_is_started_again_under_a_new_id_and_its_end_is_reported() -> None:
    seen: list[tuple[str, str]] = []
    argv_ids: list[str] = []

    def argv(run_id: str) -> list[str]:
        argv_ids.append(run_id)
        return [sys.executable, "-c", f"import os; print('pid', os.getpid(), flush=True)\n{POLITE}"]

    def pids(lines: list[tuple[str, str]]) -> list[int]:
        return [int(text.split()[1]) for name, text in lines if text.startswith("pid ")]

    def during(_supervisor: Supervisor, sink: Recorder) -> None:
        sink.wait_for(lambda lines: len(pids(lines)) == 1)
        os.kill(pids(sink.entries)[0], signal.SIGKILL)
        sink.wait_for(lambda lines: len(pids(lines)) == 2)

    sink = supervise([Service("worker", 12, argv)], during, lambda who, run: seen.append((who.name, run)))
    assert len(argv_ids) == 2
    assert argv_ids[0] != argv_ids[1]
    assert seen == [("worker", argv_ids[0])], "the run that died, once, and not the one that was asked to stop"
    assert any("worker was killed by SIGKILL" in text for name, text in sink.entries if name == "supervisor")


def test_one_of_its_own_is_killed_when_asked_for_and_a_stranger_only_told_of() -> None:
    seen: list[str] = []

    def during(supervisor: Supervisor, sink: Recorder) -> None:
        sink.wait_for(lambda lines: ("worker", "up") in lines)
        (worker,) = [run.process.pid for run in supervisor._runs.values()]
        supervisor.kill(os.getpid(), "stands still")
        supervisor.kill(worker, "stands still")
        sink.wait_for(lambda lines: lines.count(("worker", "up")) == 2)

    sink = supervise([service("worker", 12, POLITE)], during, lambda who, _run: seen.append(who.name))
    said = [text for name, text in sink.entries if name == "supervisor"]
    assert f"process {os.getpid()}, which is none of ours, stands still" in said
    assert "worker stands still; killing it" in said
    assert seen == ["worker"]


def test_what_a_dead_process_leaves_in_its_group_is_killed() -> None:
    def during(_supervisor: Supervisor, sink: Recorder) -> None:
        sink.wait_for(lambda lines: any(text.startswith("grandchild") for _, text in lines))
        pid = next(int(text.split()[1]) for _, text in sink.entries if text.startswith("grandchild"))
        assert gone_from_the_machine(pid)

    sink = supervise([service("careless", 0, CARELESS)], during)
    assert any("exited with 3" in text for _, text in sink.entries)


def test_a_program_that_is_not_there_is_said_and_tried_again() -> None:
    def during(_supervisor: Supervisor, sink: Recorder) -> None:
        sink.wait_for(lambda lines: sum("cannot be started" in text for _, text in lines) >= 2)

    supervise([Service("missing", 0, lambda _run: ["/nonexistent/program"])], during)


def test_one_that_ignores_sigterm_is_killed_after_its_grace() -> None:
    def during(_supervisor: Supervisor, sink: Recorder) -> None:
        sink.wait_for(lambda lines: ("stubborn", "up") in lines)

    sink = supervise([service("stubborn", 0, STUBBORN, grace_s=0.1)], during)
    assert ("supervisor", "stubborn has not stopped; killing it") in sink.entries


def test_a_second_stop_waits_only_for_those_that_clean_up() -> None:
    def during(supervisor: Supervisor, sink: Recorder) -> None:
        sink.wait_for(lambda lines: ("worker", "up") in lines and ("daemon", "up") in lines)
        supervisor.stop()
        sink.wait_for(lambda lines: ("supervisor", "stopping worker") in lines)
        supervisor.stop()

    sink = supervise([service("daemon", 2, POLITE), service("worker", 12, STUBBORN, grace_s=600)], during)
    assert ("supervisor", "worker has not stopped; killing it") in sink.entries
    assert ("daemon", "ends") in sink.entries


def test_children_end_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    program = """
import sys
from cloche.cli.up.child import Service
from cloche.cli.up.supervisor import Supervisor
class Sink:
    def line(self, process, text): print(text, flush=True)
    def say(self, text, *, level="info"): pass
argv = lambda run: [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(600)"]
Supervisor([Service("child", 0, argv)], Sink(), lambda service, run: None).run()
"""
    read, write = os.pipe()
    pid = os.posix_spawn(
        sys.executable, [sys.executable, "-c", program], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, write, 1)]
    )
    os.close(write)
    with os.fdopen(read) as stream:
        child = int(stream.readline())
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert gone_from_the_machine(child)


def test_long_lines_are_cut_and_bytes_that_are_no_text_survive() -> None:
    program = r"import sys, time; sys.stdout.buffer.write(b'x' * 200000 + b'\n\xff\xfe end\n'); sys.stdout.flush(); time.sleep(60)"

    def during(_supervisor: Supervisor, sink: Recorder) -> None:
        sink.wait_for(lambda lines: any(text.endswith(" end") for _, text in lines))

    sink = supervise([service("loud", 0, program)], during)
    parts = [text for name, text in sink.entries if text.startswith("x")]
    assert sum(len(part) for part in parts) == 200_000
    assert len(parts) > 1
    assert ("loud", "�� end") in sink.entries


def test_back_off_doubles_once_deaths_keep_coming_quickly_and_forgets_a_steady_life() -> None:
    backoff = Backoff()
    waits = [backoff.after(0.1) for _ in range(QUICK + 12)]
    assert waits[: QUICK + 3] == [0.2] * QUICK + [0.4, 0.8, 1.6]
    assert waits == sorted(waits)
    assert waits[-1] == LONGEST_S
    assert backoff.after(STEADY_S) == 0.2


@pytest.mark.parametrize(
    ("code", "words"),
    [(0, "exited with 0"), (3, "exited with 3"), (-9, "was killed by SIGKILL"), (-200, "was killed by signal 200")],
)
def test_how_it_ended(code: int, words: str) -> None:
    assert how_it_ended(code) == words


def test_a_place_that_is_vacated_stays_empty_whether_it_was_filled_again_or_not() -> None:
    deaths: list[str] = []
    dies = "raise SystemExit(3)"
    supervisors: list[Supervisor] = []
    known = threading.Event()

    def gone(service: Service, _run: str) -> None:
        deaths.append(service.name)
        if service.name == "first":
            assert known.wait(_DEADLINE_S)
            supervisors[0].vacate("first", "is not wanted any more")

    def during(supervisor: Supervisor, sink: Recorder) -> None:
        supervisors.append(supervisor)
        known.set()
        sink.wait_for(lambda lines: ("supervisor", "first is not wanted any more") in lines)
        sink.wait_for(lambda lines: ("second", "up") in lines)
        supervisor.vacate("second", "is not wanted either")
        sink.wait_for(lambda lines: ("supervisor", "second exited with 0") in lines)
        sink.wait_for(lambda _: deaths.count("third") >= 3)  # others still come back

    services = [service("first", 1, dies), service("second", 2, POLITE), service("third", 3, dies)]
    sink = supervise(services, during, gone)
    assert deaths.count("first") == 1
    assert deaths.count("second") == 1
    assert sink.entries.count(("second", "up")) == 1
    assert ("second", "ends") in sink.entries, "it was asked to stop"


def test_a_final_exit_leaves_the_place_empty_and_says_so() -> None:
    deaths: list[str] = []

    def during(_supervisor: Supervisor, sink: Recorder) -> None:
        sink.wait_for(lambda lines: ("supervisor", "first has left for good") in lines)
        # The other one dies and comes back meanwhile: whoever is started again is started after the first was not.
        sink.wait_for(lambda lines: lines.count(("second", "up")) >= 2)

    dies = "print('up', flush=True); raise SystemExit(3)"
    leaves = "print('up', flush=True); raise SystemExit(90)"
    final = {90: "has left for good"}
    services = [service("first", 1, leaves, final=final), service("second", 2, dies, final=final)]
    sink = supervise(services, during, lambda service, _run: deaths.append(service.name))
    assert sink.entries.count(("first", "up")) == 1
    assert set(deaths) == {"second"}
