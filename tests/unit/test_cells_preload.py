"""What the host makes of a preloader: its own processes stand in for one, and nothing it says of itself is believed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cloche.errors import PlatformFailure
from cloche.isolation.cell_spec import key_of
from cloche.sandboxd import kernel_text
from cloche.sandboxd.cells import preloaded, survey
from cloche.sandboxd.cells.preloaded import PreloadFailed
from cloche.sandboxd.cells.talk import Talk
from cloche_guest import control
from tests.support import sandbox as support

ME = os.getpid()


@contextmanager
def process(code: str = "") -> Iterator[int]:
    """One that has run the code, with one socket open, and waits."""
    script = f"import os, socket, sys, threading, mmap\nkept = socket.socket()\n{code}\nprint('.', flush=True)\nsys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        yield child.pid
        child.kill()


def told(pid: int, message: dict[str, Any], processes: list[int] | None = None, oom: int = 0) -> preloaded.Preloader:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    group: Any = SimpleNamespace(
        processes=lambda: [ME, pid] if processes is None else processes, usage=lambda: {"oom_kills": oom}
    )
    pidfd = os.pidfd_open(pid)
    control.send(theirs, {"type": "preloaded", **message}, [pidfd])
    os.close(pidfd)
    talk = Talk(ours)
    try:
        return preloaded.hear(talk, group, ME)
    finally:
        talk.close()
        theirs.close()


def test_one_that_is_fit() -> None:
    with process() as pid:
        found = told(pid, {"problem": None})
        assert found.pid == pid
        assert found.problem([ME, pid], ME) is None
        assert found.problem([ME, pid, 1], ME) == "it leaves 1 process running"
        assert found.problem([ME], ME) == "its process ended"
    assert found.problem([ME, pid], ME) == "its process ended"
    os.close(found.pidfd)


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("threading.Thread(target=threading.Event().wait, daemon=True).start()", "it leaves 1 thread running"),
        (
            "[threading.Thread(target=threading.Event().wait, daemon=True).start() for _ in range(2)]",
            "it leaves 2 threads running",
        ),
        ("more = socket.socket()", "it leaves sockets open"),
        ("kept.close()", "it leaves sockets open"),
    ],
)
def test_one_that_is_not(code: str, why: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with process(code) as pid, pytest.raises(PreloadFailed, match=why):
        told(pid, {"problem": None})
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_its_runner_says_of_it() -> None:
    with process() as pid:
        for message, oom, why in (
            ({"problem": "cannot import\n\x1b\u202ex"}, 0, "preload failed: cannot import   x"),
            ({"problem": "x" * 1_000}, 0, "preload failed: " + "x" * 300),
            ({"problem": ["x"]}, 0, r"preload failed: \['x'\]"),
            ({"problem": "its process ended"}, 1, "preload failed: it ran out of memory"),
        ):
            with pytest.raises(PreloadFailed, match=why) as caught:
                told(pid, message, oom=oom)
            assert str(caught.value).isprintable()
            assert len(str(caught.value)) <= 320
        with pytest.raises(PreloadFailed, match="1 process running"):
            told(pid, {"problem": None}, processes=[ME, pid, 1])
        with pytest.raises(PreloadFailed, match="its process ended"):
            told(pid, {"problem": None}, processes=[ME])
        with pytest.raises(PlatformFailure):
            told(pid, {"type": "cell"})


def test_what_it_keeps_of_a_cell_is_seen(tmp_path: Path) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_text("x")
    folder.mkdir()
    with process() as plain:
        expected = preloaded.holds(plain)
    for code in (
        f"fd = os.open({str(file)!r}, os.O_RDONLY)",
        f"os.chdir({str(folder)!r})",
        f"fd = os.open({str(file)!r}, os.O_RDONLY); view = mmap.mmap(fd, 1, prot=mmap.PROT_READ); os.close(fd)",
        "reader, writer = os.pipe()",
    ):
        with process(code) as pid:
            names = {item for item in preloaded.holds(pid) - expected if not item.startswith(("0 ", "1 ", "3 "))}
            assert names, code


@pytest.mark.parametrize("letter", ["\r", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"])
def test_no_name_that_it_chooses_makes_two_lines_of_one(letter: str) -> None:
    name = f"a{letter}b c d"
    code = f"""
fd = os.memfd_create({name!r})
os.ftruncate(fd, 4096)
view = mmap.mmap(fd, 4096, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
os.close(fd)
"""
    with process() as plain:
        expected = preloaded.holds(plain)
    with process(code) as pid:
        (line,) = [line for line in kernel_text.lines(f"/proc/{pid}/maps") if "/memfd:a" in line]
        assert name in line
        assert f"{line.split()[3]} {line.split()[4]}" in preloaded.holds(pid) - expected


def test_a_line_that_is_none_of_the_kernels_is_something_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_text, "lines", lambda path: ["what is this"])
    with process() as pid:
        assert "what is this" in preloaded.holds(pid)


def test_a_pool_backs_off_longer_each_time_and_tells_nothing_of_the_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_000.0]
    monkeypatch.setattr(survey.time, "monotonic", lambda: now[0])
    problems, key = survey.Problems(), key_of(support.spec("b" * 64, "namespace"), "image")
    waits = []
    for _ in range(8):
        problems.note(key, PreloadFailed("preload failed: secret words"))
        assert problems.of(key) == "preload failed: secret words"
        assert problems.newest() == "its preload failed"
        assert problems.bundles() == {"b" * 64: "its preload failed"}
        began = now[0]
        while problems.of(key):
            now[0] += 10
        waits.append(now[0] - began)
    assert waits == [30, 60, 120, 240, 480, 960, 1_800, 1_800]
    now[0] += 4_000
    problems.note(key, OSError("no room"))
    assert (problems.newest(), problems.bundles()) == ("no room", {"b" * 64: "no cell can be made"})
    now[0] += 30
    assert problems.newest() is None
