"""Jobs under gVisor: what goes in, what comes out, and how they end."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import pytest

from cloche.domain.runtimes import RUNC
from cloche.domain.states import Reason
from cloche.errors import PlatformFailure
from cloche.isolation.backend import Sandbox
from tests.support import sandbox as support
from tests.support.gvisor import MIB, Bench, traces

pytestmark = pytest.mark.docker


def test_the_kernel_is_not_the_hosts(bench: Bench) -> None:
    ours = [os.uname().release, os.uname().version]
    assert bench.run("return [os.uname().release, os.uname().version]").value != ours
    assert bench.run("return [os.uname().release, os.uname().version]", runtime=RUNC).value == ours


def test_a_job_with_inputs_outputs_and_a_log(bench: Bench) -> None:
    body = """
        print('reading', job.inputs[0].name)
        (job.out / 'deep').mkdir()
        (job.out / 'deep' / 'copy').write_bytes(job.inputs[0].read_bytes() * 2)
        job.progress(1, 1)
        return {'uid': os.getuid(), 'in': sorted(os.listdir('/job/in')), 'out': job.payload['word']}
    """
    outcome = bench.run(body, {"word": "é"}, {"a.txt": b"mine", "b.txt": b""})
    assert outcome.value["uid"] >= 1_000
    assert outcome.value["in"] == ["a.txt", "b.txt"]
    assert outcome.value["out"] == "é"
    assert outcome.contents == {"deep/copy": b"minemine"}
    assert "reading a.txt" in outcome.log


def test_inputs_that_come_late_and_change_are_seen(bench: Bench) -> None:
    """gVisor's file server must not show what it has kept: the guest looks before, files come later, one replaces another."""
    source = """
        import os, time
        from pathlib import Path
        from cloche_guest import Job, hookimpl

        SEEN = []

        @hookimpl
        def setup():
            SEEN.append(os.listdir('/job/in'))
            SEEN.append(os.path.exists('/job/in/a.txt'))
            print('looked', flush=True)

        @hookimpl
        def run(job):
            return SEEN + [sorted(os.listdir('/job/in')), Path('/job/in/a.txt').read_text(), Path('/job/in/deep/b').read_text()]
    """
    spec = bench.spec(source)
    box = bench.backend.create(spec)
    try:
        while (box.channel.receive(30) or {})["type"] != "ready":
            continue
        (box.in_folder / "a.txt").write_text("first")
        (box.in_folder / "new").write_text("second")
        os.replace(box.in_folder / "new", box.in_folder / "a.txt")
        (box.in_folder / "deep").mkdir()
        (box.in_folder / "deep" / "b").write_text("third")
        box.channel.send(support.job_frame(spec))
        frame = support.wait_until(lambda: box.channel.receive(30), "a frame")
        assert frame == {"type": "result", "value": [[], False, ["a.txt", "deep"], "second", "third"]}
    finally:
        box.destroy()


def test_an_output_on_disk(bench: Bench) -> None:
    outcome = bench.run("(job.out / 'big').write_bytes(bytes(70 << 20))\nreturn 1", output=72 * MIB, memory=256 * MIB)
    assert outcome.value == 1
    assert len(outcome.contents["big"]) == 70 << 20


def test_a_filter_is_kept_inside_and_python_works_under_it(bench: Bench) -> None:
    body = """
        import select, subprocess, threading
        from concurrent.futures import ProcessPoolExecutor
        thread = threading.Thread(target=print, args=('from a thread',))
        thread.start()
        thread.join()
        reader, writer = os.pipe()
        os.write(writer, b'x')
        said = subprocess.run([sys.executable, '-c', 'print(1)'], capture_output=True, text=True, timeout=20, check=True).stdout
        with ProcessPoolExecutor(2) as pool:
            power = list(pool.map(abs, [-1, -2]))
        status = dict(line.split(':\\t', 1) for line in Path('/proc/self/status').read_text().splitlines())
        return [select.select([reader], [], [], 5)[0] == [reader], said, power, status['Seccomp']]
    """
    outcome = bench.run(body, memory=256 * MIB)
    assert outcome.value == [True, "1\n", [1, 2], "2"]
    assert "from a thread" in outcome.log


@pytest.mark.parametrize(
    ("body", "code"),
    [("os._exit(3)", 3), ("os.kill(os.getpid(), 9)", -9), ("os.abort()", -6), ("os._exit(0)", 0)],
)
def test_how_the_agent_ended_is_told(bench: Bench, body: str, code: int) -> None:
    outcome = bench.run(body)
    assert outcome.last is None
    assert outcome.remains is not None
    assert outcome.remains.exit_code == code
    assert not outcome.remains.oom_killed


def test_who_ends_process_1_from_inside_has_crashed(bench: Bench) -> None:
    """gVisor's kernel lets it happen; the platform must not be blamed, or it could be run for ever without charge."""
    outcome = bench.run("os.kill(1, 9)\ntime.sleep(60)")
    assert outcome.last is None
    assert outcome.remains is not None
    assert outcome.remains.exit_code == -9
    assert (
        bench.run("for number in (1, 2, 3, 10, 12, 15):\n    os.kill(1, number)\ntime.sleep(0.3)\nreturn 'lives'").value
        == "lives"
    )


def test_a_cancel_and_a_kill(bench: Bench) -> None:
    source = """
        import time
        from cloche_guest import Job, hookimpl

        @hookimpl
        def run(job):
            print('running', flush=True)
            time.sleep(600)

        @hookimpl
        def on_cancel(job):
            print('asked to stop', flush=True)
    """
    spec = bench.spec(source)
    box = bench.backend.create(spec)
    try:
        box.channel.send(support.job_frame(spec))
        _until_logged(box, "running")
        box.channel.send({"type": "cancel"})
        _until_logged(box, "asked to stop")
        box.kill()
        remains = box.finish()
        assert remains.exit_code is None
        assert not remains.oom_killed
        assert remains.usage["memory_peak"] > 0
    finally:
        box.destroy()
    assert traces(bench.home) == []


def test_other_limits_for_one_that_runs(bench: Bench) -> None:
    spec = bench.spec("sys.kept = [bytes([1]) * (1 << 20) for _ in range(150)]\nreturn len(sys.kept)")
    box = bench.backend.create(spec)
    try:
        box.resize(256 * MIB, MIB)
        box.channel.send(support.job_frame(spec))
        while (frame := box.channel.receive(30)) is not None and frame["type"] != "result":
            continue
        assert frame == {"type": "result", "value": 150}
        with pytest.raises(PlatformFailure) as caught:
            box.resize(64 * MIB, MIB)
        assert caught.value.reason == Reason.PLATFORM_FAILED
    finally:
        box.destroy()


def test_a_kernel_of_gvisors_that_dies_is_the_jobs_crash(bench: Bench) -> None:
    spec = bench.spec("time.sleep(60)")
    box = bench.backend.create(replace(spec, attempt=2))
    try:
        signal.pidfd_send_signal(bench.running(box).pidfd, signal.SIGKILL)
        support.wait_until(lambda: _has_ended(box), "the channel ends")
        assert box.finish().exit_code == -9
    finally:
        box.destroy()
    assert traces(bench.home) == []


def _has_ended(box: Sandbox) -> bool:
    try:
        box.channel.receive(1)
    except EOFError:
        return True
    return False


def _until_logged(box: Sandbox, word: str) -> None:
    text = ""
    while word not in text:
        frame = box.channel.receive(30)
        assert frame is not None, text
        text += frame.get("text", "") if frame["type"] == "log" else ""


def test_secrets_come_into_a_file_system_in_memory(bench: Bench) -> None:
    body = """
        path = Path('/job/secrets/API_KEY')
        lines = [line.split() for line in open('/proc/mounts')]
        [mount] = [line for line in lines if line[1] == '/job/secrets']
        info = path.stat()
        return [mount[2], path.read_text(), job.secrets['API_KEY'], oct(info.st_mode & 0o777), info.st_uid == os.getuid()]
    """
    of = replace(bench.spec(body), secrets=True)

    def send(made: Sandbox) -> None:
        assert made.channel.send({"type": "secret", "name": "API_KEY", "value": "ü-value"})

    outcome = support.run_job(bench.backend, of, look=send)
    assert outcome.value == ["tmpfs", "ü-value", "ü-value", "0o400", True]
