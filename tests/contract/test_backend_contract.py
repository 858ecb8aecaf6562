"""One suite over both backends: the scripted one and sandboxd's, on a real engine, with cold and with warm starts."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from cloche.domain.egress import Endpoint
from cloche.domain.states import Reason
from cloche.errors import PlatformFailure, PluginFailure
from cloche.isolation.backend import Backend, Sandbox, SandboxSpec
from cloche.isolation.egress import EgressReport
from cloche.isolation.scripted import READY, Script, ScriptedBackend, error, result
from tests.support import sandbox as support
from tests.support.egress import platform, running_egress

WAIT = 20.0
ABSENT = "f" * 64
PROGRESS = {"type": "progress", "current": 1, "total": None, "message": None}


@dataclass(frozen=True)
class Case:
    """The same behaviour, written for both: a script, and a plugin's source."""

    script: Script
    source: str


CASES = {
    "echo": Case(
        Script(running=lambda job: [result(job["payload"])], files={"deep/a.txt": b"abc"}),
        support.plugin("(job.out / 'deep').mkdir(); (job.out / 'deep/a.txt').write_text('abc'); return job.payload"),
    ),
    "raises": Case(
        Script(running=[error(Reason.PLUGIN_FAILED, "ValueError: no luck")]),
        support.plugin("raise ValueError('no luck')"),
    ),
    "cannot_load": Case(
        Script(loading=[error(Reason.PLUGIN_FAILED, "ImportError: no luck")]), "raise ImportError('no luck')"
    ),
    "exits": Case(Script(ending="exit", exit_code=3), support.plugin("os._exit(3)")),
    "memory": Case(
        Script(ending="exit", exit_code=-9, oom_killed=True),
        support.plugin("kept = [bytearray(1 << 20) for _ in range(4096)]"),
    ),
    "garbage": Case(
        Script(ending="garbage"),
        support.plugin("""
            for fd in range(3, 20):
                try:
                    os.write(fd, b'\\xff' * 4096)
                except OSError:
                    pass
            time.sleep(60)
        """),
    ),
    "floods": Case(
        Script(running=lambda job: itertools.repeat(PROGRESS)),
        support.plugin("""
            from cloche_guest.protocol import encode
            data = encode({"type": "progress", "current": 1, "total": None, "message": None}) * 100
            while True:
                for fd in range(3, 20):
                    try:
                        os.write(fd, data)
                    except OSError:
                        pass
        """),
    ),
    "deaf": Case(
        Script(reads=False),
        """
        import fcntl, os, stat
        from cloche_guest import hookimpl
        silent, kept_open = os.pipe()

        for fd in set(range(3, 256)) - {silent}:  # the agent reads frames from one of these
            try:
                reads = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
                if reads and os.get_blocking(fd) and stat.S_ISFIFO(os.fstat(fd).st_mode):
                    os.dup2(silent, fd)
            except OSError:
                continue

        @hookimpl
        def run(job):
            return 1
        """,
    ),
    "hangs": Case(Script(), support.plugin("time.sleep(600)")),
    "cancelable": Case(
        Script(on_cancel=[result("canceled")]),
        """
        import threading
        from cloche_guest import hookimpl
        asked = threading.Event()

        @hookimpl
        def run(job):
            print("running")
            return "canceled" if asked.wait(60) else "late"

        @hookimpl
        def on_cancel(job):
            asked.set()
        """,
    ),
}


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with support.temporary_home() as folder, support.running_sandboxd(folder), running_egress(folder, platform()):
        yield folder


@dataclass
class Made:
    backend: Backend
    bundles: dict[str, str]
    least_cpu_ms: int = 1  # a job is not charged for a setup that was done before it came
    level: str = "container"

    def spec(self, case: str) -> SandboxSpec:
        return support.spec(self.bundles[case], self.level, memory=64 << 20, output=1 << 20, tmp=1 << 20)


@pytest.fixture(params=["scripted", "cold", "warm", "cells"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Made]:
    if request.param == "scripted":
        bundles = {name: f"{number:064x}" for number, name in enumerate(CASES)}
        names = {digest: name for name, digest in bundles.items()}

        def script(spec: SandboxSpec) -> Script:
            if spec.bundle not in names:
                return Script(create_failure=PlatformFailure(Reason.BUNDLE_UNAVAILABLE, "not here"))
            return CASES[names[spec.bundle]].script

        backend: Backend = ScriptedBackend(tmp_path, script)
    else:
        folder = request.getfixturevalue("home")
        bundles = {name: support.write_bundle(folder, case.source) for name, case in CASES.items()}
        backend = support.client(folder)
        if request.param == "warm":
            backend = support.Prewarmed(backend)
    try:
        level = "namespace" if request.param == "cells" else "container"
        yield Made(backend, bundles, 0 if request.param in ("warm", "cells") else 1, level)
    finally:
        backend.close()


def read_to_the_end(sandbox: Sandbox, frames: int = 100) -> None:
    """Frames already on their way, then EOFError."""
    for _ in range(frames):
        try:
            sandbox.channel.receive(WAIT)
        except EOFError:
            return
    raise AssertionError("the channel does not end")


def test_a_job_from_create_to_destroy(made: Made) -> None:
    spec = made.spec("echo")
    sandbox = made.backend.create(spec)
    try:
        assert sandbox.image.startswith("sha256:")
        assert sandbox.in_folder.is_dir()
        ready = sandbox.channel.receive(WAIT)
        assert ready is not None
        assert ready["type"] == "ready"
        assert sandbox.channel.receive(0.01) is None
        sandbox.channel.send(support.job_frame(spec, {"n": [1, "ü", None]}))
        assert sandbox.channel.receive(WAIT) == {"type": "result", "value": {"n": [1, "ü", None]}}
        remains = sandbox.finish()
        assert [(item.path, item.size) for item in remains.files] == [("deep/a.txt", 3)]
        assert remains.folder is not None
        assert (remains.folder / "deep/a.txt").read_bytes() == b"abc"
        assert remains.exit_code is None
        assert not remains.oom_killed
        assert remains.usage["output_bytes"] == 3
        assert remains.usage["output_files"] == 1
        assert remains.usage["memory_peak"] > 0
        assert remains.usage["cpu_ms"] >= made.least_cpu_ms
        with pytest.raises(PlatformFailure):
            sandbox.finish()
    finally:
        sandbox.destroy()
    sandbox.destroy()
    sandbox.kill()
    assert not sandbox.in_folder.exists()


@pytest.mark.parametrize(("case", "message"), [("raises", "no luck"), ("cannot_load", "no luck")])
def test_a_failing_plugin_says_why(made: Made, case: str, message: str) -> None:
    outcome = support.run_job(made.backend, made.spec(case))
    assert outcome.last is not None
    assert outcome.last["type"] == "error"
    assert outcome.last["reason"] == Reason.PLUGIN_FAILED
    assert message in outcome.last["message"]
    assert message in outcome.last["traceback"]
    assert [frame["type"] for frame in outcome.frames].count("ready") == (0 if case == "cannot_load" else 1)


def test_a_crash_leaves_its_exit_code(made: Made) -> None:
    outcome = support.run_job(made.backend, made.spec("exits"))
    assert outcome.last is None
    assert outcome.remains is not None
    assert (outcome.remains.exit_code, outcome.remains.oom_killed) == (3, False)


def test_memory_over_the_limit_is_told_apart(made: Made) -> None:
    outcome = support.run_job(made.backend, made.spec("memory"))
    assert outcome.last is None
    assert outcome.remains is not None
    assert outcome.remains.oom_killed


def test_garbage_on_the_channel_is_the_plugins_fault(made: Made) -> None:
    with pytest.raises(PluginFailure) as caught:
        support.run_job(made.backend, made.spec("garbage"))
    assert caught.value.reason == Reason.BAD_RESULT


def test_a_flood_of_frames_is_ended_as_the_plugins_fault(made: Made) -> None:
    spec = made.spec("floods")
    sandbox = made.backend.create(spec)
    try:
        assert sandbox.channel.receive(WAIT) == READY
        sandbox.channel.send(support.job_frame(spec))
        with pytest.raises(PluginFailure) as caught:
            read_to_the_end(sandbox, 1_000_000)
        assert caught.value.reason == Reason.BAD_RESULT
        sandbox.kill()
        assert not sandbox.finish().oom_killed
    finally:
        sandbox.destroy()


def test_sending_to_a_guest_that_does_not_read_can_be_given_up(made: Made) -> None:
    spec = made.spec("deaf")
    sandbox = made.backend.create(spec)
    asked: list[bool] = []

    def keep_on() -> bool:
        asked.append(True)
        return len(asked) < 3

    try:
        assert sandbox.channel.receive(WAIT) == READY
        # More than all pipes and sockets on the way can hold.
        assert sandbox.channel.send(support.job_frame(spec, {"text": "x" * (6 << 20)}), keep_on) is False
        assert len(asked) == 3
        sandbox.kill()
        sandbox.finish()
    finally:
        sandbox.destroy()


def test_kill_from_another_thread_ends_the_channel(made: Made) -> None:
    spec = made.spec("hangs")
    sandbox = made.backend.create(spec)
    try:
        assert sandbox.channel.receive(WAIT) == READY
        sandbox.channel.send(support.job_frame(spec))
        assert sandbox.channel.receive(0.05) is None
        killer = threading.Thread(target=sandbox.kill)
        killer.start()
        read_to_the_end(sandbox)
        killer.join()
        sandbox.kill()
        remains = sandbox.finish()
        assert (remains.exit_code, remains.oom_killed) == (None, False)
        with pytest.raises(PluginFailure):
            sandbox.channel.send({"type": "cancel"})
    finally:
        sandbox.destroy()


def test_usage_and_limits_of_a_running_sandbox(made: Made) -> None:
    spec = made.spec("hangs")
    sandbox = made.backend.create(spec)
    try:
        assert sandbox.channel.receive(WAIT) == READY
        used = sandbox.usage()
        assert used["memory_peak"] > 0
        assert used["cpu_ms"] >= made.least_cpu_ms
        sandbox.resize(48 << 20, 1 << 19)
        sandbox.resize(spec.limits.memory, spec.limits.output)
        for memory, output in ((1, 1 << 20), (64 << 20, 0), (64 << 20, (1 << 20) + 1), (1 << 50, 1 << 20)):
            with pytest.raises(PlatformFailure) as caught:
                sandbox.resize(memory, output)
            assert caught.value.reason == Reason.PLATFORM_FAILED
        sandbox.finish()
        assert sandbox.usage() == {}
        with pytest.raises(PlatformFailure):
            sandbox.resize(spec.limits.memory, spec.limits.output)
    finally:
        sandbox.destroy()
    for call in (sandbox.usage, lambda: sandbox.resize(spec.limits.memory, spec.limits.output)):
        with pytest.raises(PlatformFailure):
            call()


def test_cancel_reaches_the_plugin(made: Made) -> None:
    spec = made.spec("cancelable")
    sandbox = made.backend.create(spec)
    try:
        assert sandbox.channel.receive(WAIT) == READY
        sandbox.channel.send(support.job_frame(spec))
        if not isinstance(made.backend, ScriptedBackend):
            frame = sandbox.channel.receive(WAIT)
            assert frame is not None
            assert frame["text"] == "running\n"
        sandbox.channel.send({"type": "cancel"})
        assert sandbox.channel.receive(WAIT) == {"type": "result", "value": "canceled"}
    finally:
        sandbox.destroy()


def test_egress_is_opened_once_for_a_sandbox_made_for_it_and_told_of_at_the_end(made: Made) -> None:
    spec = replace(made.spec("echo"), egress=True)
    endpoints = [Endpoint("echo.example", 1), Endpoint("2001:db8::1", 443)]
    plain, sandbox = made.backend.create(made.spec("echo")), made.backend.create(spec)
    try:
        for of, allow in ((plain, endpoints), (sandbox, []), (sandbox, endpoints * 17)):
            with pytest.raises(PlatformFailure) as caught:
                of.open_egress(allow)
            assert caught.value.reason == Reason.PLATFORM_FAILED
        sandbox.open_egress(endpoints)
        with pytest.raises(PlatformFailure) as caught:
            sandbox.open_egress(endpoints)
        assert caught.value.reason == Reason.PLATFORM_FAILED
        assert sandbox.finish().egress == EgressReport()
        assert plain.finish().egress is None
        with pytest.raises(PlatformFailure):
            plain.open_egress(endpoints)
    finally:
        for each in (plain, sandbox):
            each.destroy()


def test_a_bundle_that_is_not_here(made: Made) -> None:
    with pytest.raises(PlatformFailure) as caught:
        made.backend.create(support.spec(ABSENT))
    assert caught.value.reason == Reason.BUNDLE_UNAVAILABLE


def test_a_spec_beyond_the_ceilings_is_refused(made: Made) -> None:
    spec = support.spec(made.bundles["echo"], pids=1_000_000)
    with pytest.raises(PlatformFailure) as caught:
        made.backend.create(spec)
    assert caught.value.reason == Reason.PLATFORM_FAILED
    assert "pids" in caught.value.message


def test_health_and_close(made: Made) -> None:
    assert made.backend.health() is None
    assert made.backend.image_python().startswith("3.")
    sandbox = made.backend.create(made.spec("hangs"))
    assert sandbox.channel.receive(WAIT) == READY
    made.backend.close()
    read_to_the_end(sandbox)
    support.wait_until(lambda: not sandbox.in_folder.exists(), "the sandbox is gone")
    with pytest.raises(PlatformFailure):
        made.backend.create(made.spec("hangs"))
    sandbox.destroy()


def test_how_it_started_and_why(made: Made) -> None:
    sandbox = made.backend.create(made.spec("echo"))
    try:
        if isinstance(made.backend, support.Prewarmed):
            assert (sandbox.start, sandbox.why) == ("warm", None)
        elif made.level == "namespace":  # a cell may wait since an earlier job of its bundle, or be made now
            assert (sandbox.start, sandbox.why) in {("warm", None), ("cold", "no cell waited")}
        else:
            assert sandbox.start == "cold"
            assert isinstance(made.backend, support.SandboxdBackend) == (
                sandbox.why is None
            )  # it was not asked for a warm one
    finally:
        sandbox.destroy()
