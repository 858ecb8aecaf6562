"""Hostile probes: too much of everything. Bounded, named, and the host goes on."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cloche.domain.states import Reason
from cloche.errors import PluginFailure
from cloche.isolation import channel
from cloche.isolation.backend import Sandbox
from tests.support import sandbox as support

pytestmark = pytest.mark.docker
MIB = 1 << 20
Run = Callable[..., support.Outcome]


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with support.temporary_home() as folder, support.running_sandboxd(folder):
        yield folder


@pytest.fixture(scope="module")
def run(home: Path) -> Iterator[Run]:
    backend = support.client(home)

    def probe(source: str, payload: Any = None, **options: Any) -> support.Outcome:
        text = source if "@hookimpl" in source else support.plugin(source)
        look = options.pop("look", None)
        small = {"memory": 64 * MIB, "output": 2 * MIB, "tmp": 2 * MIB, "shm": MIB, "pids": 32, **options}
        return support.run_job(backend, support.spec(support.write_bundle(home, text), **small), payload, look=look)

    yield probe
    backend.close()


def usage(outcome: support.Outcome) -> dict[str, int]:
    assert outcome.remains is not None
    return dict(outcome.remains.usage)


def test_a_fork_bomb(run: Run) -> None:
    outcome = run("""
        made = 0
        try:
            while True:
                if os.fork() == 0:
                    time.sleep(600)
                made += 1
        except OSError as error:
            return [made, error.errno]
    """)
    made, number = outcome.value
    assert made < 32
    assert number == 11
    assert usage(outcome)["pids_denied"] > 0
    assert run("return 'the host goes on'").value == "the host goes on"


def test_memory_of_the_agent_itself(run: Run) -> None:
    outcome = run("kept = [bytearray(MiB) for MiB in [1 << 20] * 4096]")
    assert outcome.last is None
    assert outcome.remains is not None
    assert outcome.remains.oom_killed
    assert outcome.remains.exit_code == -9
    assert usage(outcome)["memory_peak"] > 60 * MIB


def test_memory_of_a_child_alone(run: Run) -> None:
    outcome = run("""
        import subprocess
        code = "kept = [bytearray(1 << 20) for _ in range(4096)]"
        return subprocess.run([sys.executable, '-c', code]).returncode
    """)
    assert outcome.value == -9
    assert outcome.remains is not None
    assert outcome.remains.oom_killed
    assert outcome.remains.exit_code is None


def test_output_by_bytes(run: Run) -> None:
    outcome = run("""
        with open(job.out / 'big', 'wb') as file:
            while True:
                file.write(b'x' * 65536)
    """)
    assert outcome.last is not None
    assert "No space left" in outcome.last["message"] or "File too large" in outcome.last["message"]
    assert usage(outcome)["output_full"] == 1
    assert sum(map(len, outcome.contents.values())) <= 2 * MIB


def test_output_by_number_of_files(run: Run) -> None:
    outcome = run(
        """
        for number in range(100_000):
            (job.out / str(number)).touch()
        """,
        output_files=50,
    )
    assert outcome.last is not None
    assert "No space left" in outcome.last["message"]
    assert usage(outcome)["output_inodes_full"] == 1
    assert outcome.remains is not None
    assert len(outcome.remains.files) == 50
    assert {reason for _, reason in outcome.remains.refused} == {"more files than the limit"}


@pytest.mark.parametrize("folder", ["/tmp", "/dev/shm"])
def test_scratch_space(run: Run, folder: str) -> None:
    outcome = run(
        """
        try:
            with open(job.payload['folder'] + '/big', 'wb') as file:
                for _ in range(1000):
                    file.write(b'x' * 65536)
        except OSError as error:
            return error.errno
        """,
        {"folder": folder},
    )
    assert outcome.value in (27, 28)  # EFBIG or ENOSPC, whichever is met first
    assert outcome.remains is not None
    assert not outcome.remains.oom_killed


def test_what_is_no_file_stays_behind(run: Run) -> None:
    outcome = run("""
        os.chdir(job.out)
        Path('good').write_text('good')
        os.symlink('/etc/passwd', 'link')
        os.symlink('/', 'rootlink')
        os.mkfifo('fifo')
        Path('first').write_text('x')
        os.link('first', 'second')
        socket.socket(socket.AF_UNIX).bind('socket')
        Path('a\\nb').write_text('x')
        open(b'\\xff\\xfe', 'w').close()
        with open('sparse', 'wb') as file:
            file.truncate(2 << 20)
        return None
    """)
    assert outcome.contents.keys() <= {"good", "sparse"}
    assert outcome.contents["good"] == b"good"
    assert outcome.remains is not None
    refused = dict(outcome.remains.refused)
    assert {"link", "rootlink", "fifo", "first", "second", "socket"} <= refused.keys()
    json.dumps(refused).encode("utf-8")
    assert refused["first"] == "a hard link"
    assert refused["link"] == "not a regular file"


def test_a_log_flood(run: Run) -> None:
    outcome = run(
        """
        for number in range(50_000):
            print('flood', number, 'x' * 100)
            print('error', file=sys.stderr)
        return 'done'
        """,
        log=100_000,
    )
    assert outcome.value == "done"
    assert 50_000 < len(outcome.log) < 101_000
    assert outcome.log.count("[log truncated") == 1
    assert len(outcome.frames) < 1_000


def test_binary_in_the_log(run: Run) -> None:
    outcome = run(
        "os.write(1, bytes(range(256)) * 10)\nos.write(2, b'\\xf0\\x9f\\x98')\nprint('end \\ud800')\nreturn 1"
    )
    assert outcome.value == 1
    assert "end" in outcome.log
    outcome.log.encode("utf-8")


def test_a_progress_flood(run: Run) -> None:
    outcome = run("for n in range(100_000):\n    job.progress(n + 1, 100_000, 'x' * 50)\nreturn 'done'")
    assert outcome.value == "done"
    progress = [frame for frame in outcome.frames if frame["type"] == "progress"]
    assert progress[-1]["current"] == 100_000
    assert len(progress) < 500


FORGE = """
from cloche_guest.protocol import encode
private = [fd for fd in range(3, 30) if os.path.exists(f'/proc/self/fd/{fd}')]
def forge(frame):
    for fd in private:
        try:
            os.write(fd, encode(frame))
        except OSError:
            continue
"""


def test_a_forged_result_only_lies_about_itself(run: Run) -> None:
    outcome = run(FORGE + "forge({'type': 'result', 'value': 'forged', 'id': 'another job'})\nreturn 'real'")
    assert outcome.value == "forged"


@pytest.mark.parametrize(
    "line",
    [
        "while True: forge({'type': 'progress', 'current': 1, 'total': None, 'message': None})",
        "forge({'type': 'completed'}); time.sleep(600)",
        "forge({'type': 'ready', 'protocol': 99, 'python': '3.11'}); time.sleep(600)",
    ],
)
def test_forged_frames_beyond_the_protocol(run: Run, line: str) -> None:
    with pytest.raises(PluginFailure) as caught:
        run(FORGE + line)
    assert caught.value.reason == Reason.BAD_RESULT


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("float('nan')", Reason.BAD_RESULT),
        ("{'a': float('inf')}", Reason.BAD_RESULT),
        ("{1: 2}", Reason.BAD_RESULT),
        ("object()", Reason.BAD_RESULT),
        ("'\\ud800'", Reason.BAD_RESULT),
        ("10**100", Reason.BAD_RESULT),
        ("[[[]]] and __import__('functools').reduce(lambda a, _: [a], range(100), [])", Reason.BAD_RESULT),
        ("'x' * (1 << 20)", Reason.RESULT_TOO_LARGE),
        ("'x' * (9 << 20)", Reason.RESULT_TOO_LARGE),
        ("sys.exit(0)", Reason.NO_RESULT),
        ("(_ for _ in ()).throw(KeyboardInterrupt())", Reason.PLUGIN_FAILED),
        ("int('x')", Reason.PLUGIN_FAILED),
    ],
)
def test_results_that_are_none(run: Run, expression: str, reason: Reason) -> None:
    outcome = run(f"return {expression}", result=1_000)
    assert outcome.last is not None
    assert outcome.last["type"] == "error"
    assert outcome.last["reason"] == reason


@pytest.mark.parametrize("value", [None, True, 0, -1.5, "text", [], {"a": [1, {"b": None}]}])
def test_results_that_are_plain_json(run: Run, value: Any) -> None:
    assert run("return job.payload['value']", {"value": value}).value == value


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("os._exit(7)", 7),
        ("os.kill(os.getpid(), 11)", -11),
        ("os.abort()", -6),
        ("import resource; resource.setrlimit(resource.RLIMIT_CPU, (1, 1))\nwhile True: pass", -9),
    ],
)
def test_how_it_died(run: Run, body: str, code: int) -> None:
    outcome = run("print('last words')\n" + body)
    assert outcome.last is None
    assert outcome.remains is not None
    assert outcome.remains.exit_code == code
    assert not outcome.remains.oom_killed


def test_closing_every_descriptor(run: Run) -> None:
    outcome = run("os.closerange(0, 1000)\nreturn 1")
    assert outcome.last is None
    assert outcome.remains is not None
    assert outcome.remains.exit_code not in (None, 0)


def test_a_closed_channel_is_no_quiet_end(run: Run) -> None:
    """The agent's thread that reads frames meets it, with the plugin at work: it ends the process as one that has failed."""

    def until_ready(sandbox: Sandbox) -> None:
        frame = support.wait_until(lambda: sandbox.channel.receive(30), "a frame")
        assert frame["type"] == "ready"

    source = """
        import gc, os, threading, time
        from cloche_guest import hookimpl
        from cloche_guest.link import Link

        @hookimpl
        def setup():
            # Who waits for a frame already gets the next one all the same: the job, which is sent after this.
            (frames,) = [thread for thread in threading.enumerate() if thread.name == "frames"]
            reading = {"x86_64": "0", "aarch64": "63"}[os.uname().machine]
            while open(f"/proc/self/task/{frames.native_id}/syscall").read().split()[0] != reading:
                time.sleep(0.001)
            for link in gc.get_objects():
                if isinstance(link, Link):
                    os.close(link._read_fd)

        @hookimpl
        def run(job):
            time.sleep(600)
    """
    outcome = run(source, look=until_ready)
    assert outcome.last is None
    assert outcome.remains is not None
    assert outcome.remains.exit_code == 1


def test_daemons_die_with_their_job(run: Run) -> None:
    uids: list[int] = []

    def look(_: Any) -> None:
        uids.extend(uid for uid in _uids() if 210_000 <= uid < 220_000)

    outcome = run(
        """
        for _ in range(3):
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    while True:
                        time.sleep(1)
                os._exit(0)
        return os.getuid()
        """,
        look=look,
    )
    assert outcome.value in uids
    assert outcome.value not in set(_uids())


def _uids() -> list[int]:
    """The user of every process of the host."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                found.append(os.stat(f"/proc/{entry}").st_uid)
            except FileNotFoundError:
                continue
    return found


def test_a_guest_that_stops_reading(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "_SEND_SECONDS", 1.0)
    bundle = support.write_bundle(
        home, "import os, signal\nfrom cloche_guest import hookimpl\n\n@hookimpl\ndef setup():\n    os.kill(os.getpid(), signal.SIGSTOP)\n"
        "\n@hookimpl\ndef run(job):\n    return 1\n"
    )  # fmt: skip
    backend = support.client(home)
    spec = support.spec(bundle)
    sandbox = backend.create(spec)
    try:
        support.wait_until(lambda: _stopped(sandbox.id), "the guest stops itself")
        with pytest.raises(PluginFailure) as caught:
            sandbox.channel.send(support.job_frame(spec, {"big": "x" * (4 * MIB)}))
        assert caught.value.reason == Reason.PLUGIN_CRASHED
        sandbox.finish()
    finally:
        sandbox.destroy()
        backend.close()


def _stopped(sandbox_id: str) -> bool:
    """Whether a process of the sandbox is stopped."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                mounts = Path(f"/proc/{entry}/mountinfo").read_text()
                state = Path(f"/proc/{entry}/stat").read_text().rsplit(") ", 1)[1][0]
            except OSError:
                continue
            if sandbox_id in mounts and state == "T":
                return True
    return False


def test_a_plugin_that_ignores_everything_is_killed(home: Path) -> None:
    backend = support.client(home)
    source = """
        import signal
        for number in range(1, 65):
            try:
                signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError):
                pass
        print('deaf')
        while True:
            time.sleep(1)
    """
    spec = support.spec(support.write_bundle(home, support.plugin(source)))
    sandbox = backend.create(spec)
    try:
        sandbox.channel.send(support.job_frame(spec))
        support.wait_until(lambda: (sandbox.channel.receive(1) or {}).get("text") == "deaf\n", "the plugin is deaf")
        sandbox.channel.send({"type": "cancel"})
        before = time.monotonic()
        sandbox.kill()
        remains = sandbox.finish()
        assert time.monotonic() - before < 15
        assert remains.exit_code is None
    finally:
        sandbox.destroy()
        backend.close()
