"""After gVisor sandboxes: no cgroup, no process, no mount, no folder, whoever died."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from cloche.isolation.gvisor import GroupLimits
from cloche.sandboxd.groups import Groups
from cloche.sandboxd.places import home_digest
from tests.support import gvisor
from tests.support import sandbox as support
from tests.support.engine import Engine

pytestmark = pytest.mark.docker


def test_after_jobs_and_after_the_daemon(gvisor_engine: Engine) -> None:
    with gvisor.bench(gvisor_engine.socket) as bench:
        for body in ("return 1", "os._exit(1)", "os.kill(1, 9)\ntime.sleep(60)", "sys.kept = bytes([1]) * (1 << 30)"):
            bench.run(body)
            assert gvisor.traces(bench.home) == []
        box = bench.backend.create(bench.spec("time.sleep(600)"))
        members = [pid for group in [bench.running(box).group] if group for pid in group.members()]
        assert len(members) > 2
    assert gvisor.groups_of(bench.home) == []
    assert not any(Path(f"/proc/{pid}").exists() for pid in members)


def test_what_a_killed_daemon_left_is_removed_by_the_next(gvisor_engine: Engine) -> None:
    """The cgroup of a sandbox outlives everybody; a process in it is killed."""
    with support.temporary_home() as home:
        process = subprocess.Popen(["sleep", "600"])
        try:
            group = Groups(home_digest(home)).make(
                "0190a0b0-0000-7000-8000-000000000000", GroupLimits(64 << 20, 64, 1.0)
            )
            group.add(process.pid)
            assert group.holds(process.pid)
            with support.running_sandboxd(home, docker_socket=str(gvisor_engine.socket)):
                assert process.wait(20) == -signal.SIGKILL
                assert not any(folder.exists() for folder in group.folders)
        finally:
            process.kill()
            process.wait()
        assert gvisor.groups_of(home) == []
