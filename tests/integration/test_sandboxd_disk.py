"""Outputs above 64 MB: an ext4 file system of their own over a loop device, with a hard quota, gone without a trace."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloche.domain.states import Reason
from cloche.errors import PlatformFailure
from cloche.sandboxd import disk, syscalls
from tests.support import sandbox as support

pytestmark = pytest.mark.docker
MIB = 1 << 20


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with support.temporary_home() as folder, support.running_sandboxd(folder):
        yield folder


def loops(home: Path) -> list[str]:
    """Loop devices whose file lies under the home, deleted ones too."""
    found = []
    for place in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if place.read_text().startswith(str(home)):
                found.append(place.parts[3])
        except OSError:
            continue  # freed while we looked
    return found


def run(home: Path, body: str, **limits: int) -> support.Outcome:
    backend = support.client(home)
    try:
        bundle = support.write_bundle(home, support.plugin(body))
        return support.run_job(backend, support.spec(bundle, output=100 * MIB, memory=64 * MIB, **limits))
    finally:
        backend.close()
        support.wait_until(lambda: not loops(home), "its loop device is free")


def test_a_file_as_large_as_the_quota_and_more_than_the_memory(home: Path) -> None:
    outcome = run(
        home,
        """
        with open(job.out / 'big', 'wb') as file:
            for _ in range(100):
                file.write(b'x' * (1 << 20))
        return sorted(os.listdir(job.out))
        """,
    )
    assert outcome.value == ["big"]
    assert outcome.remains is not None
    assert not outcome.remains.oom_killed
    assert outcome.remains.refused == ()
    assert outcome.remains.usage["output_bytes"] == len(outcome.contents["big"]) == 100 * MIB
    assert 100 * MIB <= outcome.remains.usage["output_used"] <= 101 * MIB


def test_not_one_megabyte_more(home: Path) -> None:
    outcome = run(
        home,
        """
        with open(job.out / 'a', 'wb') as one, open(job.out / 'b', 'wb') as two:
            while True:
                one.write(b'x' * 65536)
                two.write(b'x' * 65536)
        """,
    )
    assert outcome.last is not None
    assert "No space left" in outcome.last["message"]
    assert outcome.remains is not None
    assert outcome.remains.usage["output_full"] == 1
    assert outcome.remains.usage["output_used"] <= 101 * MIB


def test_inodes_are_bounded_too(home: Path) -> None:
    outcome = run(
        home,
        """
        for number in range(100_000):
            (job.out / str(number)).touch()
        """,
        output_files=50,
    )
    assert outcome.last is not None
    assert "No space left" in outcome.last["message"]
    assert outcome.remains is not None
    assert outcome.remains.usage["output_inodes_full"] == 1
    assert len(outcome.remains.files) == 50


def test_its_flags_and_its_owner(home: Path) -> None:
    outcome = run(
        home,
        """
        me = os.stat(job.out)
        (job.out / 'tool').write_text('#!/bin/sh\\n')
        os.chmod(job.out / 'tool', 0o755)
        try:
            os.execv(str(job.out / 'tool'), ['tool'])
        except PermissionError:
            pass
        (job.out / 'link').symlink_to('tool')
        try:
            (job.out / 'link').read_text()
            followed = True
        except OSError:
            followed = False
        (line,) = [line for line in Path('/proc/self/mountinfo').read_text().splitlines() if ' /job/out ' in line]
        return [me.st_uid == os.getuid(), me.st_mode & 0o7777, followed, line]
        """,
    )
    mine, mode, followed, line = outcome.value
    assert (mine, mode, followed) == (True, 0o700, False)
    assert {"nosuid", "nodev", "noexec", "nosymfollow"} <= set(line.split(" ")[5].split(","))
    assert " - ext4 " in line


def test_a_host_without_the_means_says_what_is_missing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value, word in (
        ("MKFS", (Path("/nowhere/mkfs.ext4"),), "e2fsprogs"),
        ("CONTROL", Path("/nowhere/loop-control"), "loop devices"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(disk, name, value)
            with pytest.raises(PlatformFailure, match=word) as caught:
                run(home, "return 1")
            assert caught.value.reason == Reason.ENGINE_UNAVAILABLE
    assert not syscalls.mounts_below(home)
    assert run(home, "return 1").value == 1


def test_a_host_without_room_refuses(home: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    syscalls.mount_tmpfs(small, "size=1m,nr_inodes=10")
    try:
        (small / "out").mkdir()
        with pytest.raises(OSError, match="No space left"):
            disk.mount(small / "image", small / "out", 100 * MIB, 100, 2_000)
        assert loops(small) == []
    finally:
        syscalls.unmount(small)


def test_left_behind_by_a_killed_sandboxd_it_is_reaped_by_the_next() -> None:
    code = "import sys; from cloche import config; from cloche.sandboxd.main import run; sys.exit(run(config.load(home=sys.argv[1])))"
    with support.temporary_home() as folder:
        bundle = support.write_bundle(folder, support.plugin("return 1"))
        process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stderr=subprocess.DEVNULL)
        backend = support.client(folder)
        try:
            support.wait_until(lambda: backend.health() is None, "sandboxd is ready", support.READY_SECONDS)
            backend.create(support.spec(bundle, output=100 * MIB))
            assert len(loops(folder)) == 1
        finally:
            process.kill()
            process.wait(30)
            backend.close()
        assert loops(folder)
        with support.running_sandboxd(folder):
            assert not syscalls.mounts_below(folder)
            assert not list((folder / "sandboxes").iterdir())
            support.wait_until(lambda: not loops(folder), "its loop device is free")
