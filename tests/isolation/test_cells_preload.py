"""Packages that a slot imports once for all its cells: what a cell finds, and what is done when that fails."""

from __future__ import annotations

import hashlib
import os
import signal
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloche import config
from cloche.errors import PlatformFailure
from cloche.isolation.backend import Backend, SandboxSpec
from cloche.sandboxd.cells.cell import RunningCell
from cloche.sandboxd.main import Sandboxd
from cloche.sandboxd.probes.rows_kernel import ENVIRONMENT
from cloche_guest.cell_preload import ENVIRONMENT as threads
from tests.support import sandbox as support
from tests.support.cells import preloader

pytestmark = pytest.mark.docker
MIB = 1 << 20
SMALL = {"memory": 64 * MIB, "output": 2 * MIB, "tmp": 2 * MIB, "shm": MIB, "pids": 16}
PACKAGE = """
import os, random, sys

def kinds():
    targets = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            targets.add(os.readlink("/proc/self/fd/" + name))
        except FileNotFoundError:  # the listing's own
            continue
    return sorted(target.split(":")[0] for target in targets)

made = {"path": list(sys.path), "environ": sorted(os.environ), "uid": os.getuid(), "fds": kinds()}
big = [object() for _ in range(20_000)]
drawn = random.random()

def power():
    fields = dict(line.split(":\\t", 1) for line in open("/proc/self/status") if ":\\t" in line)
    return {name: fields[name].strip() for name in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb", "NoNewPrivs", "Seccomp", "Uid")}

"""
PLUGIN = """
import sys
ready_before = "tiny" in sys.modules
from cloche_guest import hookimpl
import tiny, os, random

@hookimpl
def run(job):
    (job.out / "a.txt").write_text("out")
    return {
        "ready_before": ready_before, "same user": tiny.made["uid"] == os.getuid(), "made": tiny.made, "now": tiny.power(),
        "path": sys.path, "drawn": random.random(), "pid": os.getpid(), "fds": tiny.kinds(), "environ": sorted(os.environ),
        "uid": os.getuid(), "inputs": [path.read_text() for path in job.inputs], "proc": sorted(n for n in os.listdir("/proc") if not n.isdigit()),
        "threads": os.environ.get("OPENBLAS_NUM_THREADS"), "slot": os.listdir("/cloche/slot"), "host": os.uname().nodename,
        "seen": sorted(int(n) for n in os.listdir("/proc") if n.isdigit()), "tmp": os.listdir("/tmp"),
    }
"""


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[Path, Sandboxd, Backend]]:
    with support.temporary_home() as home, pytest.MonkeyPatch.context() as patch:
        patch.setattr("cloche.sandboxd.cells.survey._BACK_OFF_SECONDS", 3_600.0)
        daemon = Sandboxd(config.load(home=home))
        daemon.start()
        try:
            support.wait_until(lambda: daemon.host.health()["problem"] is None, "ready", support.READY_SECONDS)
            backend = support.client(home)
            try:
                yield home, daemon, backend
            finally:
                backend.close()
        finally:
            daemon.close()


def site(home: Path, files: Mapping[str, str]) -> str:
    """Packages as the registry unpacks a bundle's wheels; returns their digest."""
    digest = hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()
    for name, text in files.items():
        path = home / "wheels" / digest / "site" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return digest


def spec(home: Path, package: str, plugin: str = PLUGIN, *names: str) -> SandboxSpec:
    wheels = site(home, {"tiny/__init__.py": package})
    made = support.spec(support.write_bundle(home, plugin), "namespace", wheels=wheels, **SMALL)
    return replace(made, preload=names or ("tiny",))


def test_cells_find_it_imported_and_are_cells_as_ever(shared: tuple[Path, Sandboxd, Backend]) -> None:
    home, _, backend = shared
    of = spec(home, PACKAGE)
    outcomes = [support.run_job(backend, of, inputs={"a.txt": b"in"}) for _ in range(5)]
    for outcome in outcomes:
        value = outcome.value
        assert value["ready_before"]
        assert not value["same user"]
        assert value["inputs"] == ["in"]
        assert outcome.contents == {"a.txt": b"out"}
        assert value["path"][-2:] == ["/cloche/plugin", "/cloche/wheels"]
        assert value["path"].count("/cloche/wheels") == 1
        assert 1 <= value["uid"] < 64
        assert value["seen"] == [value["pid"]], "of its own user, the job's process alone"
        assert value["proc"] == ["self", "thread-self"]
        assert value["slot"] == value["tmp"] == []
        assert value["fds"] == ["/dev/null", "pipe", "pipe", "pipe", "socket"], "its streams and its channel"
        assert value["made"]["fds"] == ["/dev/null", "pid", "pipe", "pipe", "socket"], (
            "its own pid namespace, to go back to"
        )
        assert {"PATH"} <= set(value["environ"]) == set(value["made"]["environ"]) <= ENVIRONMENT | threads.keys()
        assert value["threads"] == "1"
        for name in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"):
            assert int(value["now"][name], 16) == 0
        assert value["now"]["Uid"] == "\t".join([str(value["uid"])] * 4)
        assert outcome.remains is not None
        assert outcome.remains.usage["cpu_ms"] < 20_000
    assert len({outcome.value["drawn"] for outcome in outcomes}) == 5
    assert len({outcome.value["made"]["path"][-1] for outcome in outcomes}) == 1


def test_a_preload_that_raises_says_why_and_the_jobs_run_in_containers(shared: tuple[Path, Sandboxd, Backend]) -> None:
    """What else makes one unfit: the probes of group `preload`, and tests/unit/test_guest_preload.py."""
    home, daemon, backend = shared
    of = spec(home, "raise ValueError('no luck\\n\\x1b[31m')", support.plugin("return 1"))
    failed(daemon, backend, of, "cannot import 'tiny': ValueError: no luck  [31m")
    assert support.run_job(backend, of).last is not None, "the plugin does not need it"


def failed(daemon: Sandboxd, backend: Backend, of: SandboxSpec, why: str) -> None:
    sandbox = backend.create(of)
    try:
        assert sandbox.level == "container"
        assert sandbox.why is not None
        assert why in sandbox.why
        assert sandbox.why.startswith("no cell: preload failed: ")
        assert sandbox.why.isprintable()
    finally:
        sandbox.destroy()
    again = backend.create(of)
    try:
        assert again.level == "container"
        assert why in str(again.why), "it backs off, and says so"
    finally:
        again.destroy()
    (facts,) = [
        pool
        for pool in daemon.supply.facts()
        if pool["bundle"] == of.bundle and pool["last_error"] == "its preload failed"
    ]
    assert facts["failures"] == 1, "not tried again for each job"
    assert daemon.host.health()["cells"]["problem"] == "its preload failed", "none of the plugin's words"


def test_a_preload_that_hangs_is_ended(shared: tuple[Path, Sandboxd, Backend]) -> None:
    home, daemon, backend = shared
    of = spec(home, "import time\ntime.sleep(600)", support.plugin("return 1") + "\n# hangs\n")
    failed(daemon, backend, of, "it takes longer than 20 s")


def test_where_the_operator_switched_it_off_each_cell_imports() -> None:
    with support.temporary_home() as home:
        daemon = Sandboxd(config.load(home=home, cells={"preload": False}))
        daemon.start()
        try:
            support.wait_until(lambda: daemon.host.health()["problem"] is None, "ready", support.READY_SECONDS)
            backend = support.client(home)
            try:
                value = support.run_job(backend, spec(home, PACKAGE)).value
                assert not value["ready_before"]
                assert value["same user"]
            finally:
                backend.close()
        finally:
            daemon.close()


@pytest.fixture
def slot(shared: tuple[Path, Sandboxd, Backend]) -> Iterator[tuple[RunningCell, Any]]:
    home, daemon, backend = shared
    sandbox = backend.create(spec(home, PACKAGE, "import tiny\n" + support.plugin("time.sleep(600)")))
    try:
        running = daemon.host.find(sandbox.id)
        assert isinstance(running, RunningCell)
        yield running, sandbox
    finally:
        sandbox.destroy()


def test_a_preloader_that_dies_takes_its_slot_along_and_no_more(
    shared: tuple[Path, Sandboxd, Backend], slot: tuple[RunningCell, Any]
) -> None:
    home, _, backend = shared
    running, sandbox = slot
    os.kill(preloader(running), signal.SIGKILL)
    support.wait_until(running.is_dead, "its cell died with it")
    sandbox.destroy()
    support.wait_until(lambda: running.container not in support.containers_of(home), "the container is gone")
    assert support.run_job(backend, spec(home, PACKAGE)).value["ready_before"]


@pytest.mark.parametrize(
    ("body", "code"), [("os._exit(7)", 7), ("os.kill(os.getpid(), 11)", -11), ("os.kill(os.getpid(), 9)", -9)]
)
def test_how_the_plugin_ended_is_told(shared: tuple[Path, Sandboxd, Backend], body: str, code: int) -> None:
    home, _, backend = shared
    outcome = support.run_job(backend, spec(home, PACKAGE, "import tiny\n" + support.plugin(body)))
    assert outcome.last is None
    assert outcome.remains is not None
    assert outcome.remains.exit_code == code


def test_daemons_die_with_the_cell_and_nothing_but_ours_is_left(shared: tuple[Path, Sandboxd, Backend]) -> None:
    home, daemon, backend = shared
    body = "\nfor _ in range(3):\n    if os.fork() == 0:\n        os.setsid()\n        time.sleep(600)\nreturn 1"
    of = spec(home, PACKAGE, "import tiny\n" + support.plugin(body))
    groups: list[Callable[[], list[int]]] = []

    def look(sandbox: Any) -> None:
        running = daemon.host.find(sandbox.id)
        assert isinstance(running, RunningCell)
        groups.append(running.slot_cgroup.processes)

    containers = set()
    for _ in range(3):
        assert support.run_job(backend, of, look=look).value == 1
        containers |= set(support.containers_of(home))
    assert any(bool(group()) for group in groups)
    before = len(containers)
    assert support.run_job(backend, of).value == 1
    assert len(containers | set(support.containers_of(home))) == before, "the same container served them all"


LATER = {
    "a descriptor": "kept.append(os.dup(next(n for n in range(3, 30) if open_(n, 'mnt:'))))",
    "the folder": "kept.append(libc.setns(next(n for n in range(3, 30) if open_(n, 'mnt:')), 0x20000))",
}


@pytest.mark.parametrize("what", LATER)
def test_what_it_keeps_of_a_cell_costs_it_its_container(shared: tuple[Path, Sandboxd, Backend], what: str) -> None:
    """A hostile package waits for the first fork, when a cell's namespaces are in its hands."""
    home, _, backend = shared
    package = f"""
    import ctypes, os

    libc, kept = ctypes.CDLL(None), []

    def open_(number, kind):
        try:
            return os.readlink(f"/proc/self/fd/{{number}}").startswith(kind)
        except OSError:
            return False

    def later():
        {LATER[what]}

    os.register_at_fork(after_in_parent=later)
    """
    of = spec(home, package, "import tiny\n" + support.plugin("return 1") + f"\n# {what}\n")
    others = set(support.containers_of(home))
    assert support.run_job(backend, of).value == 1
    support.wait_until(lambda: set(support.containers_of(home)) <= others, "its container is gone")


@pytest.mark.parametrize("when", ["at its import", "at a fork"])
def test_a_file_whose_name_has_a_lines_end_in_it_ends_no_neighbour(
    shared: tuple[Path, Sandboxd, Backend], when: str
) -> None:
    """To Python a vertical tab ends a line, to the kernel none: such a name of a mapped file ended the worker's whole session."""
    home, daemon, backend = shared
    package = f"""
    import ctypes, os

    libc, kept = ctypes.CDLL(None), []
    libc.mmap.restype = ctypes.c_void_p

    def hold():
        if not kept:
            fd = os.memfd_create("a\\x0bb c d")
            os.ftruncate(fd, 4096)
            kept.append(libc.mmap(None, ctypes.c_size_t(4096), 1, 2, fd, ctypes.c_long(0)))  # to read, and private
            os.close(fd)

    {"hold()" if when == "at its import" else "os.register_at_fork(after_in_parent=hold)"}
    """
    waits = support.plugin("while not Path('/job/in/go').exists():\n    time.sleep(0.02)\nreturn 'done'")
    neighbour = backend.create(replace(spec(home, PACKAGE, waits), preload=()))
    try:
        neighbour.channel.send(support.job_frame(spec(home, PACKAGE)))
        others = set(support.containers_of(home))
        hostile = spec(home, package, "import tiny\n" + support.plugin("return len(tiny.kept)") + f"\n# {when}\n")
        levels: list[str] = []
        value = support.run_job(backend, hostile, look=lambda made: levels.append(made.level)).value
        assert (levels, value) == (["namespace"], 1 if when == "at its import" else 0)
        assert daemon.host.cells is not None
        daemon.host.cells.retire(hostile.bundle)
        support.wait_until(lambda: set(support.containers_of(home)) <= others, "its container is gone", 60)
        (neighbour.in_folder / "go").write_text("")
        last = None
        while last is None or last["type"] != "result":
            last = neighbour.channel.receive(60)
            assert last is not None
        assert last["value"] == "done"
        assert not neighbour.finish().oom_killed
    finally:
        neighbour.destroy()


def test_a_child_that_it_leaves_in_a_cell_costs_it_its_container(
    shared: tuple[Path, Sandboxd, Backend], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Born in the cell's pid namespace, it is killed with the cell; but its parent is outside, and never asks what became of it. Until
    somebody does, the namespace and its first process cannot end: the cell counts as alive."""
    home, daemon, backend = shared
    monkeypatch.setattr("cloche.sandboxd.running.DEATH_SECONDS", 3.0)
    package = """
    import os, time

    born = []

    def later():
        if not born:
            born.append(1)
            if os.fork() == 0:
                time.sleep(600)

    os.register_at_fork(after_in_parent=later)
    """
    of = spec(home, package, "import tiny\n" + support.plugin("return 1"))
    containers: list[str] = []

    def look(sandbox: Any) -> None:
        running = daemon.host.find(sandbox.id)
        assert isinstance(running, RunningCell)
        containers.append(running.container)

    with pytest.raises(PlatformFailure, match="the sandbox's processes do not die"):
        support.run_job(backend, of, look=look)
    support.wait_until(lambda: containers[0] not in support.containers_of(home), "its container is gone")
    support.wait_until(lambda: daemon.host.health()["running"] == 0, "nothing of it is left")
    assert support.run_job(backend, spec(home, PACKAGE)).value["ready_before"], "no other plugin notices"
