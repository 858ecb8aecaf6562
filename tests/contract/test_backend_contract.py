"""One suite over both backends: the scripted one and sandboxd's, on a real engine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cloche.domain.states import Reason
from cloche.errors import PlatformFailure, PluginFailure
from cloche.isolation.backend import Backend, Sandbox, SandboxSpec
from cloche.isolation.scripted import READY, Script, ScriptedBackend, error, result
from tests.support import sandbox as support

WAIT = 20.0
ABSENT = "f" * 64


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
    with support.temporary_home() as folder, support.running_sandboxd(folder):
        yield folder


@dataclass
class Made:
    backend: Backend
    bundles: dict[str, str]
    level: str = "container"

    def spec(self, case: str) -> SandboxSpec:
        return support.spec(self.bundles[case], self.level, memory=64 << 20, output=1 << 20, tmp=1 << 20)


@pytest.fixture(params=["scripted", "sandboxd", "cells"])
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
    try:
        yield Made(backend, bundles, "namespace" if request.param == "cells" else "container")
    finally:
        backend.close()


def read_to_the_end(sandbox: Sandbox) -> None:
    """Frames already on their way, then EOFError."""
    for _ in range(100):
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
        assert remains.usage["cpu_ms"] > 0
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
        assert used["cpu_ms"] > 0
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
