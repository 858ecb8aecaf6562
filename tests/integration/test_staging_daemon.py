"""The private rclone daemon: alone, unreachable from elsewhere, gone with its parent."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cloche.errors import EnvironmentProblem, PlatformFailure
from cloche.staging.rclone import Fault, RcloneDaemon, RemoteFault, Stopped, rclone_binary
from cloche.staging.remotes import RemoteConfig, to_fs
from tests.support import ports
from tests.support import rclone as support
from tests.support.stores import alive, until


@pytest.fixture
def daemon(home: Path):
    with support.daemon(home / "run") as made:
        yield made


def ended(pid: int) -> bool:
    """Whether it runs no more: it is gone, or nobody has asked yet how it ended."""
    try:
        return "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]
    except (FileNotFoundError, ProcessLookupError):  # the second where it goes between opening and reading
        return True


def test_it_runs_with_nothing_of_ours(daemon: RcloneDaemon, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RCLONE_CONFIG_EVIL_TYPE", "local")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    assert daemon.call("rc/noop", a=1) == {"a": 1}
    environment = Path(f"/proc/{daemon.pid}/environ").read_bytes().strip(b"\0").split(b"\0")
    assert {line.partition(b"=")[0] for line in environment} == {b"PATH", b"HOME", b"TMPDIR"}
    (folder,) = (home / "run").iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert list((folder / "home").iterdir()) == list((folder / "bin").iterdir()) == []
    assert daemon.call("config/listremotes") == {"remotes": []}
    assert b"\0--config\0\0" in Path(f"/proc/{daemon.pid}/cmdline").read_bytes()


def test_it_starts_again_when_it_died(daemon: RcloneDaemon) -> None:
    daemon.start()
    first = daemon.pid
    assert first
    os.kill(first, signal.SIGKILL)
    until(lambda: not alive(first), 5, "the daemon is gone")
    assert daemon.call("rc/noop") == {}
    assert daemon.pid != first


def test_close_removes_all_and_ends_it(home: Path) -> None:
    with support.daemon(home / "run") as daemon:
        daemon.start()
        pid = daemon.pid
        assert pid
        daemon.close()
        daemon.close()
        assert not alive(pid)
        assert list((home / "run").iterdir()) == []
        with pytest.raises(PlatformFailure):
            daemon.call("rc/noop")


def test_it_outlives_the_thread_that_started_it(daemon: RcloneDaemon) -> None:
    """The parent-death signal follows the thread that forked: were it the caller's, the end of that one would kill the daemon."""
    thread = threading.Thread(target=daemon.start)
    thread.start()
    thread.join()
    pid = daemon.pid
    for _ in range(20):
        assert daemon.call("rc/noop") == {}
    assert daemon.pid == pid


def test_it_dies_with_a_killed_parent_and_the_next_one_tidies(home: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from cloche.staging.rclone import RcloneDaemon, rclone_binary\n"
        f"d = RcloneDaemon(rclone_binary(), Path({str(home / 'run')!r})); d.start(); print(d.pid, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.kill()
        parent.wait()
    until(lambda: ended(pid), 30, "gone with its parent")
    (left,) = (home / "run").iterdir()
    with support.daemon(home / "run") as daemon:
        daemon.start()
        assert not left.exists()


def test_many_threads_start_one(daemon: RcloneDaemon, home: Path) -> None:
    threads = [threading.Thread(target=daemon.call, args=("rc/noop",)) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list((home / "run").iterdir())) == 1


def test_what_is_wrong_with_the_host_is_said(home: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="no rclone"):
        RcloneDaemon(home / "none", home / "run").start()
    with pytest.raises(EnvironmentProblem, match="too long"):
        RcloneDaemon(rclone_binary(), home / ("x" * 90)).start()
    (home / "false").symlink_to("/bin/false")
    broken = RcloneDaemon(home / "false", home / "run")
    with pytest.raises(PlatformFailure, match="did not start"):
        broken.start()


def test_stop_cancels_a_transfer_and_leaves_nothing(daemon: RcloneDaemon, home: Path) -> None:
    served, here = home / "dav", home / "here"
    served.mkdir()
    here.mkdir()
    (served / "big").write_bytes(b"\0" * 50_000_000)
    with support.serving("webdav", served, "--bwlimit", "1M") as server:
        fs = to_fs(RemoteConfig("webdav", server.options), daemon.obscure, proxy=None)
        local = {"type": "local", "_root": str(here)}
        with pytest.raises(Stopped):
            daemon.call(
                "operations/copyfile",
                stop=lambda: any(here.iterdir()),
                srcFs=fs,
                srcRemote="big",
                dstFs=local,
                dstRemote="0",
            )
        until(lambda: not any(here.iterdir()), 5, "the partial file is removed")


def test_errors_hold_no_secret_and_say_whose(daemon: RcloneDaemon) -> None:
    port = ports.free_port()
    fs = {
        "type": "webdav",
        "url": f"http://127.0.0.1:{port}",
        "vendor": "other",
        "user": "u",
        "pass": daemon.obscure("geheim"),
    }
    with pytest.raises(RemoteFault) as caught:
        daemon.call("operations/list", fs=fs, remote="")
    assert caught.value.fault is Fault.UNREACHABLE
    assert fs["pass"] not in caught.value.message


def test_the_guard_lets_nothing_private_through(home: Path) -> None:
    """Even with a configuration that was never checked: rclone has no other way out."""
    for kind in ("webdav", "s3", "sftp"):
        with (
            support.serving(kind, home / kind / "garden") as server,
            support.daemon(home / "run", allow_addresses=False) as daemon,
        ):
            daemon.start()
            fs = to_fs(RemoteConfig(kind, server.options), daemon.obscure, proxy=daemon.proxy)
            with pytest.raises(RemoteFault) as plain:
                daemon.call("operations/list", fs=fs, remote="")
            assert plain.value.fault is Fault.REFUSED or "Forbidden" in plain.value.message
            for name in ("url", "endpoint"):
                if name in fs:
                    fs[name] = fs[name].replace("http://", "https://")
                    with pytest.raises(RemoteFault, match=r"Address refused|Forbidden|refused"):
                        daemon.call("operations/list", fs=fs, remote="")


def test_the_guards_password_is_not_in_the_arguments(home: Path) -> None:
    with support.daemon(home / "run", allow_addresses=False) as daemon:
        daemon.start()
        assert daemon.proxy is not None
        secret = daemon.proxy.partition("cloche:")[2].partition("@")[0]
        assert secret.encode() not in Path(f"/proc/{daemon.pid}/cmdline").read_bytes()
