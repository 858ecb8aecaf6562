"""Plugins with an image of their own, on a real engine: the contract, every failure by its name, and images made to lead us astray."""

from __future__ import annotations

import io
import platform
import shutil
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloche.domain.limits import Limits
from cloche.domain.states import Reason
from cloche.errors import PlatformFailure
from cloche.isolation.backend import Sandbox, SandboxSpec
from cloche.isolation.client import SandboxdBackend
from cloche.isolation.plugin_image import ENVIRONMENT
from cloche.isolation.spec import memory_limit
from cloche.sandboxd import entered, image_parts, own_image, syscalls
from cloche.sandboxd.main import Sandboxd
from cloche.worker.verdict import verdict
from tests.support import images
from tests.support import sandbox as support

pytestmark = pytest.mark.docker
MIB = 1 << 20
PYZIP = f"python{image_parts.PYTHON.replace('.', '')}.zip"


@pytest.fixture(scope="module")
def daemon() -> Iterator[Sandboxd]:
    with support.temporary_home() as home, support.running_sandboxd(home) as made:
        yield made


@pytest.fixture(scope="module")
def backend(daemon: Sandboxd) -> Iterator[SandboxdBackend]:
    made = SandboxdBackend(daemon.server._path, "test-worker")
    yield made
    made.close()


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    with images.loaded() as made:
        yield made


def home_of(daemon: Sandboxd) -> Path:
    return daemon.server._path.parents[1]


def asked(daemon: Sandboxd, image: str, script: str, **limits: Any) -> SandboxSpec:
    bundle = support.write_bundle(home_of(daemon), "", {"run.sh": script})
    return replace(support.spec(bundle, **limits), image=image, command=("/bin/sh", "/cloche/plugin/run.sh"))


@pytest.fixture
def run(daemon: Sandboxd, backend: SandboxdBackend, image: str) -> Callable[..., support.Outcome]:
    def one(script: str, image: str = image, look: Any = None, seconds: float = 30, **limits: Any) -> support.Outcome:
        spec = asked(daemon, image, script, **limits)
        return support.run_job(backend, spec, {"word": "Ünï"}, {"in.txt": b"hello\n"}, seconds=seconds, look=look)

    return one


DONE = "\necho '{\"done\": true}' > /job/result.json\n"


def reason_of(outcome: support.Outcome, limits: Limits | None = None) -> tuple[str, str]:
    """The name a failure gets, as the worker gives it."""
    assert outcome.remains is not None
    if outcome.last is not None and outcome.last["type"] == "error" and not outcome.remains.oom_killed:
        return outcome.last["reason"], outcome.last["message"]
    assert outcome.last is None or outcome.last["type"] == "error"
    failure = verdict(EOFError(), outcome.remains, limits or Limits())
    return failure.reason, failure.message


def test_the_contract(run: Callable[..., support.Outcome], image: str) -> None:
    """What goes in, what comes out, from an image that holds a shell and nothing else."""
    seen: list[str] = []
    outcome = run(
        """
        set -eu
        IFS= read -r job < /job/job.json
        IFS= read -r text < /job/in/in.txt
        echo "$PWD $text"
        echo to-stderr >&2
        echo "$job" > job-copy.json
        [ ! -e /usr/local/bin/python3 ]
        [ ! -w /cloche/runtime/ld.so ] && [ ! -w /job/in/in.txt ] && [ ! -w /cloche/plugin/run.sh ]
        if (: > /made) 2>/dev/null; then exit 9; fi
        printf '%s' "$job" > /job/result.json
        """,
        look=lambda sandbox: seen.append(sandbox.image),
    )
    assert outcome.value["payload"] == {"word": "Ünï"}
    assert outcome.value["inputs"] == ["/job/in/in.txt"]
    assert outcome.value["out"] == "/job/out"
    assert outcome.value["limits"] == Limits().to_dict()
    assert outcome.contents.keys() == {"job-copy.json"}
    assert "/job/out hello\n" in outcome.log
    assert "to-stderr\n" in outcome.log
    assert seen == [image], "the record names the plugin's image, not the platform's"
    assert outcome.remains is not None
    assert outcome.remains.usage["memory_peak"] > 0


def test_the_container_is_as_sealed_as_any(daemon: Sandboxd, run: Callable[..., support.Outcome], image: str) -> None:
    found: dict[str, Any] = {}

    def look(sandbox: Sandbox) -> None:
        running = daemon.host.find(sandbox.id)
        assert running is not None
        found.update(daemon.host._engine.inspect(running.container) or {})

    assert run(DONE, look=look).value == {"done": True}
    host = found["HostConfig"]
    assert found["Image"] == image
    assert found["Config"]["User"].split(":")[0] != "0"
    assert (host["NetworkMode"], host["ReadonlyRootfs"], host["CapDrop"], host["Privileged"]) == (
        "none",
        True,
        ["ALL"],
        False,
    )
    assert any(option.startswith("seccomp={") for option in host["SecurityOpt"])
    assert host["Memory"] == host["MemorySwap"] == memory_limit(Limits(), own_image=True)
    assert host["PidsLimit"] == 64


def test_the_command_does_not_speak_for_the_agent(run: Callable[..., support.Outcome]) -> None:
    """Unlike a Python plugin it runs in a process of its own: the agent's memory, descriptors and channel stay closed to it."""
    outcome = run(
        """
        for pid in 1 $PPID; do
            for what in environ mem maps fd/0 fd/3 fd/4; do
                if (: < /proc/$pid/$what) 2>/dev/null; then echo "opened $pid $what"; fi
                if (: >> /proc/$pid/$what) 2>/dev/null; then echo "opened $pid $what to write"; fi
            done
            for what in /proc/$pid/fd/*; do echo "listed $what" ; done
        done
        for what in /proc/$$/fd/*; do echo "own ${what##*/}"; done
        """
        + DONE
    )
    assert outcome.value == {"done": True}
    assert "opened" not in outcome.log
    # A pattern that matches nothing stays as it is; of its own the shell sees the three standard streams and what it opens to look.
    assert {line for line in outcome.log.splitlines() if line.startswith("listed")} <= {
        line for line in outcome.log.splitlines() if line.endswith("/fd/*")
    }
    assert {line for line in outcome.log.splitlines() if line.startswith("own")} <= {
        f"own {n}" for n in (0, 1, 2, 3, 10)
    }


@pytest.mark.parametrize(
    ("script", "reason", "says"),
    [
        ("exit 7", "plugin_failed", "exit code 7"),
        ("no-such-program", "plugin_failed", "exit code 127"),
        ("true", "no_result", "left no /job/result.json"),
        ("echo NaN > /job/result.json", "bad_result", "NaN"),
        ("echo '{\"a\":1,\"a\":2}' > /job/result.json", "bad_result", "twice"),
        ("kill -SEGV $$", "plugin_crashed", "SIGSEGV"),
        ("kill -KILL $$", "plugin_crashed", "SIGKILL"),
        ("kill -KILL -1", "plugin_crashed", "SIGKILL"),
        ("kill -KILL $PPID; while :; do :; done", "plugin_crashed", "SIGKILL"),
        ("x=0123456789; for i in 1 2 3 4 5 6 7 8; do x=$x$x; done; printf '\"%s\"' $x > /job/result.json", "result_too_large", "2562"),
        ("while :; do printf 0123456789012345678901234567890123456789 || exit 5; done > /job/result.json 2>/dev/null", "plugin_failed", "5"),
        (": > /job/job.json", "plugin_failed", "exit code 2"),
    ],
)  # fmt: skip
def test_failures_by_name(run: Callable[..., support.Outcome], script: str, reason: str, says: str) -> None:
    if reason == "result_too_large":
        outcome = run(script, result=1_000)
        assert outcome.last is not None
        assert outcome.last["used"] == 2_562
    elif "job.json" in script:
        outcome = run(f"set -eu; {script}; exit 2")
    else:
        outcome = run(script)
    found = reason_of(outcome)
    assert found[0] == reason, found
    assert says in found[1]


def test_memory_of_the_command(run: Callable[..., support.Outcome]) -> None:
    """The command is killed, not process 1: usage can still be read, and the reason is the limit's own."""
    limits = replace(Limits(), memory=48 * MIB)
    outcome = run("x=0123456789; while :; do x=$x$x; done", memory=48 * MIB)
    assert outcome.remains is not None
    assert outcome.remains.oom_killed
    assert outcome.remains.usage["memory_peak"] > 48 * MIB
    assert reason_of(outcome, limits)[0] == "out_of_memory"


def test_processes_of_the_command(run: Callable[..., support.Outcome]) -> None:
    outcome = run(
        "n=0; while [ $n -lt 40 ]; do (while :; do read x; done < /job/in/in.txt) & n=$((n+1)); done; wait", pids=16
    )
    assert outcome.remains is not None
    assert outcome.remains.usage["pids_denied"] > 0


def test_files_and_bytes(run: Callable[..., support.Outcome]) -> None:
    outcome = run("n=0; while [ $n -lt 400 ]; do : > f$n || exit 3; n=$((n+1)); done" + DONE, output_files=20)
    assert outcome.remains is not None
    assert outcome.remains.usage["output_inodes_full"] == 1


def test_logs_are_bounded(run: Callable[..., support.Outcome]) -> None:
    outcome = run(
        "n=0; while [ $n -lt 3000 ]; do echo 0123456789012345678901234567890123456789; n=$((n+1)); done" + DONE,
        log=10_000,
    )
    assert outcome.value == {"done": True}
    assert len(outcome.log) < 10_200
    assert "log truncated" in outcome.log


def test_cancel_is_a_soft_signal_to_the_group_first(daemon: Sandboxd, backend: SandboxdBackend, image: str) -> None:
    sandbox = backend.create(asked(daemon, image, "trap 'echo got-term; exit 4' TERM; echo up; while :; do :; done"))
    try:
        spec = asked(daemon, image, "")
        sandbox.channel.send(support.job_frame(spec))
        deadline = time.monotonic() + 30
        log = ""
        while "up" not in log:
            frame = sandbox.channel.receive(deadline - time.monotonic())
            assert frame is not None
            log += str(frame.get("text", ""))
        sandbox.channel.send({"type": "cancel"})
        while (frame := sandbox.channel.receive(deadline - time.monotonic())) is not None and frame["type"] != "error":
            log += str(frame.get("text", ""))
        assert frame is not None
        assert "exit code 4" in frame["message"]
        assert "got-term" in log
    finally:
        sandbox.destroy()


def test_a_command_that_hears_nothing_is_killed_from_outside(
    daemon: Sandboxd, backend: SandboxdBackend, image: str
) -> None:
    sandbox = backend.create(asked(daemon, image, "trap '' TERM INT HUP; while :; do :; done"))
    try:
        sandbox.channel.send(support.job_frame(asked(daemon, image, "")))
        sandbox.channel.send({"type": "cancel"})
        remains = sandbox.finish()
        assert remains.files == ()
    finally:
        sandbox.destroy()
    running = daemon.host.find(sandbox.id)
    assert running is None


def test_a_resize_counts_the_job_folder(daemon: Sandboxd, backend: SandboxdBackend, image: str) -> None:
    sandbox = backend.create(asked(daemon, image, DONE))
    try:
        running = daemon.host.find(sandbox.id)
        assert running is not None
        sandbox.resize(300 * MIB, 32 * MIB)
        info = daemon.host._engine.inspect(running.container) or {}
        assert info["HostConfig"]["Memory"] == memory_limit(running.limits, own_image=True)
    finally:
        sandbox.destroy()


# --- images made to lead us astray ---------------------------------------------------------------------------------------


EVIL = b"#!/bin/sh\necho evil\n"
GOOD = {
    "no folder of ours": {"/marker": b""},
    "links below what is covered": {"/job": None, "/job/out": "/tmp", "/job/in": "../../../../etc", "/dev": None, "/dev/shm": "/job"},
    "all of our folders": dict.fromkeys(("/job", "/job/in", "/job/out", "/cloche", "/cloche/runtime", "/run/cloche")),
    "files where ours are mounted over": {
        "/job/job.json": b"{}",
        "/job/result.json": b'"forged"',
        "/job/in/in.txt": b"forged",
        "/cloche/plugin/run.sh": EVIL,
        "/cloche/runtime/ld.so": EVIL,
        "/cloche/runtime/libs": "/lib",
        "/cloche/runtime/opt/cloche/__main__.py": b"raise SystemExit(66)",
    },
    "a library for our interpreter to find": {
        f"/cloche/lib/{PYZIP}": b"not a zip",
        f"/lib/{PYZIP}": b"not a zip",
        "/cloche/pyvenv.cfg": b"home = /evil\n",
        f"/usr/local/lib/python{image_parts.PYTHON}/sitecustomize.py": b"raise SystemExit(66)",
        f"/usr/lib/python{image_parts.PYTHON}/os.py": b"raise SystemExit(66)",
        "/usr/lib/python3/dist-packages/x.pth": b"import os; os._exit(66)",
    },
    "an odd /etc": {
        "/etc/passwd": b"root:x:0:0:" + b"x" * 65_000 + b":/:\n"
        + b"".join(b"%d:x:0:0::/:/bin/sh\n" % uid for uid in range(200_000, 216_000)),
        "/etc/group": b"root:x:0:root,200000\nall:x:1:" + b"job," * 1_000 + b"\n",
        "/etc/ld.so.cache": b"garbage",
        "/etc/hosts": None,
        "/etc/localtime": "/dev/zero",
    },
    "an /etc that is a link": {"/etc": "/job/out"},  # the engine puts a folder of its own there
    "a /proc, /sys and /dev that are links": {"/proc": "/job/out", "/sys": "/job/out", "/dev": "/job/out"},
}  # fmt: skip
BAD = {
    "/job": {"/job": "/tmp"},
    "/cloche": {"/cloche": "/job/out"},
    "/cloche/runtime": {"/cloche/runtime": "/evil", "/evil/ld.so": EVIL},
    "/run": {"/run": "/cloche"},
    "/run/cloche": {"/run/cloche": "/job"},
    "/tmp": {"/tmp": "/job/out"},
    "/etc/passwd": {"/etc/passwd": "/dev/zero"},
    "/etc/group": {"/etc/group": None},
    "/etc/ld.so.preload": {"/etc/ld.so.preload": b"/evil.so\n"},
    "/cloche/plugin": {"/cloche/plugin": b"a file"},
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_an_odd_image_changes_nothing(run: Callable[..., support.Outcome], name: str) -> None:
    with images.loaded(images.layer_of(GOOD[name])) as image:
        script = """
        IFS= read -r text < /job/in/in.txt
        echo "in: $text"
        while read -r name value; do case $name in Uid:|Groups:) echo "$name $value";; esac; done < /proc/self/status
        """
        outcome = run(script + DONE, image=image)
        assert outcome.value == {"done": True}
        assert "in: hello\n" in outcome.log
        groups = next(line for line in outcome.log.splitlines() if line.startswith("Groups:")).split()[1:]
        assert "0" not in groups
        assert "evil" not in outcome.log
        assert outcome.contents == {}


@pytest.mark.parametrize("path", BAD)
def test_an_image_whose_paths_lead_elsewhere_is_refused(run: Callable[..., support.Outcome], path: str) -> None:
    with images.loaded(images.layer_of(BAD[path])) as image:
        with pytest.raises(PlatformFailure, match=f"{path} is") as caught:
            run(DONE, image=image)
        assert caught.value.reason == Reason.BUNDLE_UNAVAILABLE


@pytest.mark.parametrize("more", [{"/job": "/job"}, {"/run": "/loop/a", "/loop": "/loop"}])
def test_links_in_a_circle_are_the_images_fault(run: Callable[..., support.Outcome], more: dict[str, str]) -> None:
    with images.loaded(images.layer_of(more)) as image:
        with pytest.raises(PlatformFailure, match="that the engine cannot follow") as caught:
            run(DONE, image=image)
        assert caught.value.reason == Reason.BUNDLE_UNAVAILABLE


def test_a_runtime_that_somebody_removed_is_made_again(daemon: Sandboxd, run: Callable[..., support.Outcome]) -> None:
    assert run(DONE).value == {"done": True}
    shutil.rmtree(daemon.host._places.runtimes)
    assert run(DONE).value == {"done": True}


def test_a_working_folder_that_cannot_be_means_nothing(run: Callable[..., support.Outcome]) -> None:
    """The engine makes it in whatever container is created, the one that only looks too."""
    with images.loaded(images.layer_of({"/file": b""}), WorkingDir="/file/below") as image:
        assert run(DONE, image=image).value == {"done": True}


def test_a_fifo_for_the_engine_to_wait_at_is_refused(run: Callable[..., support.Outcome]) -> None:
    """The engine opens it when it starts a container, and would hold that container for ever: it must not come so far."""
    fifo = images.loaded(images.layer_of(fifos=("/etc/passwd",)))
    with fifo as image, pytest.raises(PlatformFailure, match="/etc/passwd is not a regular file"):
        run(DONE, image=image)


def test_an_image_that_gives_users_another_group_is_refused(run: Callable[..., support.Outcome]) -> None:
    """This engine takes a group named like a number for one with that number, and would add its members to it."""
    groups = b"".join(b"%d:x:0:%d\n" % (uid, uid) for uid in range(200_000, 216_000))
    forged = images.loaded(images.layer_of({"/etc/group": groups}))
    with forged as image, pytest.raises(PlatformFailure, match="in another group"):
        run(DONE, image=image)


@pytest.mark.parametrize("size", [65_536, 5 << 20])
def test_a_line_that_the_engine_cannot_read_is_refused(run: Callable[..., support.Outcome], size: int) -> None:
    long = images.loaded(images.layer_of({"/etc/group": b"root:x:0:\n" + b"x" * size + b"\n"}))
    with long as image, pytest.raises(PlatformFailure, match=r"/etc/group has a line of \d+ bytes") as caught:
        run(DONE, image=image)
    assert caught.value.reason == Reason.BUNDLE_UNAVAILABLE


def test_an_image_that_the_engine_cannot_start_leaves_nothing(
    daemon: Sandboxd, run: Callable[..., support.Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the reason: the look that would have found this one is switched off."""
    monkeypatch.setattr(own_image, "_paths", lambda *_: own_image.Finding("paths", True, ""))
    long = images.loaded(images.layer_of({"/etc/passwd": b"x" * 70_000}))
    with long as image, pytest.raises(PlatformFailure, match="could not be started"):
        run(DONE, image=image)
    assert not syscalls.mounts_below(daemon.host._places.root)
    assert daemon.host._engine.containers(f"org.cloche.home={daemon.host._home}") == []


@pytest.mark.parametrize("path", [path for path in BAD if not path.startswith("/etc/")])
def test_without_the_first_look_the_second_still_sees_it(
    daemon: Sandboxd, run: Callable[..., support.Outcome], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two walls: links are refused before anything starts; were they not, what the kernel says of the started process is."""
    monkeypatch.setattr(own_image, "_paths", lambda *_: own_image.Finding("paths", True, ""))
    with images.loaded(images.layer_of({**BAD[path], "/marker": path.encode()})) as image:
        if path == "/etc/ld.so.preload":
            return  # seen by the first look alone: it changes neither mounts nor the program
        with pytest.raises(PlatformFailure):
            run(DONE, image=image)
    assert not syscalls.mounts_below(daemon.host._places.root)
    assert daemon.host._engine.containers(f"org.cloche.home={daemon.host._home}") == []


def test_variables_of_the_image_are_the_commands_alone(daemon: Sandboxd, run: Callable[..., support.Outcome]) -> None:
    evil = {
        "LD_PRELOAD": "/evil.so",
        "LD_LIBRARY_PATH": "/lib",
        "LD_AUDIT": "/evil.so",
        "GLIBC_TUNABLES": "glibc.malloc.check=3",
        "PYTHONPATH": "/evil",
        "PYTHONHOME": "/evil",
        "PYTHONSTARTUP": "/evil",
        "PATH": "/opt/bin:/bin",
        "TZDIR": "/evil",
        "LOCPATH": "/evil",
        "GREETING": "grüß dich = 'x'\n",
    }
    seen: dict[str, str] = {}

    def look(sandbox: Sandbox) -> None:
        running = daemon.host.find(sandbox.id)
        assert running is not None
        pid = (daemon.host._engine.inspect(running.container) or {})["State"]["Pid"]
        entries = Path(f"/proc/{pid}/environ").read_bytes().rstrip(b"\0").split(b"\0")
        seen.update(entry.decode().partition("=")[::2] for entry in entries)

    config = {"Env": [f"{name}={value}" for name, value in evil.items()], "Cmd": ["/evil"], "Entrypoint": ["/evil"]}
    with images.loaded(None, **config, WorkingDir="/evil", User="root", StopSignal="SIGSTOP") as image:
        outcome = run('printf "%s|%s|%s" "$GREETING" "$LD_AUDIT" "$PATH"; set' + DONE, image=image, look=look)
    assert outcome.value == {"done": True}
    assert f"{evil['GREETING']}|/evil.so|/opt/bin:/bin" in outcome.log
    assert seen.pop("HOSTNAME") == "sandbox"
    assert seen == ENVIRONMENT


def test_the_look_after_the_start(
    daemon: Sandboxd, backend: SandboxdBackend, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every part of it, by telling it to expect something else."""
    for name, change in (
        ("its first process is not", {"LOADER": "usr/local/bin/python3"}),
        ("the environment of", {"ENVIRONMENT": {"PATH": "/bin"}}),
        ("mounted at '/job'", {"JOB_FOLDER": "/elsewhere"}),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(entered, "START_SECONDS", 0.5)
            for key, value in change.items():
                patch.setattr(entered, key, value)
            with pytest.raises(PlatformFailure, match=name):
                backend.create(asked(daemon, image, DONE))
    assert daemon.host._engine.containers(f"org.cloche.home={daemon.host._home}") == []


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"Labels": {}}, "label"),
        ({"Volumes": {"/data": {}}}, "VOLUME"),
        ({"Healthcheck": {"Test": ["CMD", "/bin/sh"]}}, "HEALTHCHECK"),
        ({"OnBuild": ["RUN true"]}, "ONBUILD"),
        ({"Env": ["A-B=c"]}, "ENV"),
    ],
)
def test_rules(run: Callable[..., support.Outcome], config: dict[str, Any], says: str) -> None:
    with images.loaded(None, **config) as image, pytest.raises(PlatformFailure, match=says):
        run(DONE, image=image)


def test_another_architecture(run: Callable[..., support.Outcome]) -> None:
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setitem(images.build.ARCHITECTURES, platform.machine(), "s390x")
        image = stack.enter_context(images.loaded())
        with pytest.raises(PlatformFailure, match=r"linux/s390x.*Build it for linux/"):
            run(DONE, image=image)


def test_an_image_that_is_not_here_is_named_with_what_to_do(run: Callable[..., support.Outcome]) -> None:
    absent = "sha256:" + "1" * 64
    with pytest.raises(PlatformFailure, match=rf"{absent}.*docker load") as caught:
        run(DONE, image=absent)
    assert caught.value.reason == Reason.BUNDLE_UNAVAILABLE


def test_the_platforms_own_image_is_no_plugins_image(daemon: Sandboxd, run: Callable[..., support.Outcome]) -> None:
    with pytest.raises(PlatformFailure, match="label"):
        run(DONE, image=daemon.host.health()["image"]["id"])


def test_the_example_has_one_id_whenever_it_is_built() -> None:
    first = images.build.image_of(images.build.tar_of(images.build.shell_files()))
    assert first == images.build.image_of(images.build.tar_of(images.build.shell_files()))
    with tarfile.open(fileobj=io.BytesIO(images.build.tar_of(images.build.shell_files()))) as tar:
        assert not any("python" in name for name in tar.getnames())
