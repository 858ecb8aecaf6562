"""What cannot be removed at once: nothing that something may still use is given to anybody else, and in the end it goes."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloche.domain.states import Reason
from cloche.errors import PlatformFailure
from cloche.isolation.backend import Sandbox
from cloche.isolation.spec import LABEL
from cloche.sandboxd import syscalls
from cloche.sandboxd.engine import Engine, EngineAway
from cloche.sandboxd.main import Sandboxd
from cloche.sandboxd.places import Places, home_digest
from cloche.sandboxd.uids import LOCKS
from tests.support import sandbox as support

pytestmark = pytest.mark.docker
SLEEPER = support.plugin("time.sleep(600)")
AWAY = EngineAway(Reason.ENGINE_UNAVAILABLE, "the container engine does not answer (ReadTimeout)")


@pytest.fixture
def home() -> Iterator[Path]:
    with support.temporary_home() as folder:
        yield folder


@pytest.fixture
def daemon(home: Path) -> Iterator[Sandboxd]:
    with support.running_sandboxd(home) as running:
        yield running


def user_of(home: Path) -> int:
    """The user id of the one container of the home."""
    [container] = containers(home)
    command = ["docker", "inspect", "--format", "{{.Config.User}}", container]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split(":")[0])


def containers(home: Path) -> list[str]:
    command = ["docker", "ps", "--all", "--quiet", "--filter", f"label={LABEL}.home={home_digest(home)}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def is_taken(uid: int) -> bool:
    return (LOCKS / str(uid)).exists()


def folders(home: Path) -> list[str]:
    return [*os.listdir(home / "sandboxes"), *map(str, syscalls.mounts_below(home))]


def test_what_may_still_be_starting_keeps_its_user_and_its_folder(
    home: Path, daemon: Sandboxd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to `start` does not come, nor that to `remove`, and the container comes up all the same."""
    start, remove = Engine.start, Engine.remove
    tries, silent = threading.Semaphore(0), threading.Event()
    silent.set()

    def started(self: Engine, container: str) -> None:
        start(self, container)
        raise AWAY

    def removed(self: Engine, container: str) -> None:
        tries.release()
        if silent.is_set():
            raise AWAY
        remove(self, container)

    backend = support.client(home)
    monkeypatch.setattr(Engine, "start", started)
    monkeypatch.setattr(Engine, "remove", removed)
    with pytest.raises(PlatformFailure, match="does not answer"):
        backend.create(support.spec(support.write_bundle(home, SLEEPER)))
    for _ in range(2):  # by the keeper, at once and again
        assert tries.acquire(timeout=60)
    uid = user_of(home)
    assert is_taken(uid)
    assert folders(home)
    silent.clear()
    support.wait_until(lambda: not containers(home), "the keeper removes the container", 60)
    support.wait_until(lambda: not folders(home), "then its folder", 60)
    support.wait_until(lambda: not is_taken(uid), "then nobody has its user", 60)
    backend.close()


def test_a_folder_that_stays_is_removed_later_and_its_user_waits_for_that(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = Places.remove
    tries, busy = threading.Semaphore(0), threading.Event()

    def removed(self: Places, sandbox_id: str) -> None:
        if busy.is_set():
            tries.release()
            raise OSError(16, "Device or resource busy")
        remove(self, sandbox_id)

    monkeypatch.setattr(Places, "remove", removed)
    with support.running_sandboxd(home):
        backend = support.client(home)
        sandbox = _ready(backend.create(support.spec(support.write_bundle(home, SLEEPER))))
        uid = user_of(home)
        busy.set()
        sandbox.destroy()
        assert not containers(home)
        for _ in range(2):  # the first by whoever destroyed it, the second by the keeper
            assert tries.acquire(timeout=60)
        assert is_taken(uid)
        busy.clear()
        support.wait_until(lambda: not folders(home), "the keeper removes the folder", 60)
        support.wait_until(lambda: not is_taken(uid), "then nobody has its user", 60)
        backend.close()


def _ready(sandbox: Sandbox) -> Sandbox:
    frame = sandbox.channel.receive(60)
    assert frame is not None
    assert frame["type"] == "ready"
    return sandbox
