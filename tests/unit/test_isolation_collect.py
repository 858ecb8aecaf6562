"""Collecting outputs: regular files only, nothing followed, everything capped, refusals reported."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from cloche.sandboxd import collect as module
from cloche.sandboxd.collect import Caps, Collected, collect, name_problem, printable


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    (tmp_path / "collected").mkdir()
    return tmp_path / "out"


def gather(out: Path, size: int = 1 << 20, files: int = 100) -> Collected:
    caps = Caps(size=size, files=files, uid=os.getuid(), gid=os.getgid())
    return collect(out, os.stat(out).st_dev, out.parent / "collected", caps)


def test_regular_files_keep_their_place_and_lose_their_modes(out: Path) -> None:
    (out / "a" / "b").mkdir(parents=True)
    (out / "a" / "b" / "c.txt").write_bytes(b"hello")
    (out / "run.sh").write_bytes(b"#!/bin/sh\n")
    (out / "run.sh").chmod(0o4777)
    (out / "empty").touch(mode=0o000)
    found = gather(out)
    assert found.files == [("a/b/c.txt", 5), ("empty", 0), ("run.sh", 10)]
    assert found.refused == []
    assert found.size == 15
    copied = out.parent / "collected"
    assert (copied / "a/b/c.txt").read_bytes() == b"hello"
    assert stat.S_IMODE((copied / "run.sh").stat().st_mode) == 0o600
    assert stat.S_IMODE((copied / "a").stat().st_mode) == 0o700


def test_what_is_no_regular_file_is_refused_and_never_opened(out: Path) -> None:
    (out / "passwd").symlink_to("/etc/passwd")
    (out / "etc").symlink_to("/etc")
    (out / "dangling").symlink_to("nowhere")
    os.mkfifo(out / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(out)
        try:
            server.bind("socket")
        finally:
            os.chdir(here)
    if os.getuid() == 0:
        os.mknod(out / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    found = gather(out)
    assert found.files == []
    reasons = dict(found.refused)
    assert reasons.keys() >= {"passwd", "etc", "dangling", "pipe", "socket"}
    assert set(reasons.values()) == {"not a regular file"}
    assert list((out.parent / "collected").iterdir()) == []


def test_hard_links_are_refused(out: Path) -> None:
    (out.parent / "secret").write_bytes(b"secret")
    os.link(out.parent / "secret", out / "mine")
    found = gather(out)
    assert found.files == []
    assert found.refused == [("mine", "a hard link")]


@pytest.mark.parametrize(
    "name",
    [b"a\nb", b"a\x00b"[:1] + b"\x1b[31m", b"\xff\xfe", "a\u202eb".encode(), "a\u2028b".encode(), b"a\\b", b"\x7f"],
)
def test_doubtful_names_are_refused_and_shown_escaped(out: Path, name: bytes) -> None:
    with open(os.fsencode(out) + b"/" + name, "wb"):
        pass
    (out / "good name ü.txt").write_bytes(b"x")
    found = gather(out)
    assert found.files == [("good name ü.txt", 1)]
    ((shown, _),) = found.refused
    assert shown.isprintable()
    shown.encode("utf-8")


def test_caps(out: Path) -> None:
    for number in range(5):
        (out / f"{number}").write_bytes(b"x" * 10)
    assert len(gather(out, size=35).files) == 3
    for path in (out.parent / "collected").iterdir():
        path.unlink()
    found = gather(out, files=2)
    assert [path for path, _ in found.files] == ["0", "1"]
    assert {reason for _, reason in found.refused} == {"more files than the limit"}


def test_a_sparse_file_counts_with_its_whole_length(out: Path) -> None:
    with open(out / "huge", "wb") as file:
        file.truncate(1 << 40)
    assert gather(out).refused == [("huge", "more bytes than the limit")]


def test_depth_is_bounded(out: Path) -> None:
    deep = out
    for _ in range(40):
        deep /= "d"
        deep.mkdir()
    (deep / "file").write_bytes(b"x")
    found = gather(out)
    assert found.files == []
    assert [reason for _, reason in found.refused] == ["nested too deeply"]


def test_many_refusals_are_counted_not_listed(out: Path) -> None:
    for number in range(150):
        (out / f"l{number}").symlink_to("/")
    found = gather(out)
    assert len(found.refused) == 101
    assert found.refused[-1] == ("…", "and 50 more")


def test_another_mount_in_its_place_is_noticed(out: Path) -> None:
    caps = Caps(size=1, files=1, uid=0, gid=0)
    with pytest.raises(OSError, match="not the mount"):
        collect(out, os.stat(out).st_dev + 1, out.parent / "collected", caps)


def test_a_link_in_place_of_out_is_noticed(out: Path) -> None:
    device = os.stat(out).st_dev
    out.rmdir()
    out.symlink_to("/etc")
    with pytest.raises(OSError):
        collect(out, device, out.parent / "collected", Caps(size=1, files=1, uid=0, gid=0))


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "x" * 256, "ü" * 128])
def test_names_that_no_file_may_have(name: str) -> None:
    assert name_problem(name)


@pytest.mark.parametrize("name", ["a", "...", "-rf", "x" * 255, "日本語.txt", "with space", ":colon", "😀"])
def test_names_that_are_fine(name: str) -> None:
    assert name_problem(name) is None


def test_printable_is_bounded() -> None:
    assert len(printable("\n" * 500)) == 200


def test_the_rule_is_written_down_for_authors() -> None:
    rules = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text().split("## What is collected")[1]
    for words in (
        f"1 to {module.MAX_NAME} bytes of UTF-8",
        f"at most {module.MAX_PATH:,} bytes, at most {module.MAX_DEPTH - 1} folders deep",
        f"after {module.MAX_REFUSED} names",
    ):
        assert words in rules, words


def test_the_deepest_folder_that_is_collected(out: Path) -> None:
    folder = out
    for _ in range(module.MAX_DEPTH):
        folder = folder / "d"
        folder.mkdir()
        (folder / "f").touch()
    found = gather(out)
    assert max(path.count("/") for path, _ in found.files) == module.MAX_DEPTH - 1
    assert found.refused == [("/".join(["d"] * module.MAX_DEPTH), "nested too deeply")]
