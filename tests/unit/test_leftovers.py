"""In which order what is left of a sandbox goes, and what waits for what."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloche.domain.states import Reason
from cloche.errors import PlatformFailure
from cloche.sandboxd import leftovers as module
from cloche.sandboxd.engine import EngineRefused
from cloche.sandboxd.leftovers import Leftovers, Remains
from cloche.sandboxd.uids import UidPool


class Host:
    """An engine, cgroups and folders that let go when the test says so. ``stuck``: what does not go now; ``gone``: what went, in turn."""

    def __init__(self, folder: Path) -> None:
        self.stuck: set[str] = set()
        self.gone: list[str] = []
        self.slow = False  # the engine says that it removes, and has not done so yet
        self.called = 0
        self.uids = UidPool(5_000, 1, folder)
        self.uid = self.uids.take()
        groups = type("Groups", (), {"remove": lambda _, name: self._go("group", OSError(16, "busy"))})()
        self.leftovers = Leftovers(self, groups, lambda name: self._go("folder", OSError(16, "busy")), self.uids)  # type: ignore[arg-type]
        self.leftovers.added = self._call

    def _call(self) -> None:
        self.called += 1

    def _go(self, what: str, error: Exception) -> None:
        if what in self.stuck:
            raise error
        self.gone.append(what)

    def remove(self, container: str) -> None:
        self._go("container", PlatformFailure(Reason.ENGINE_UNAVAILABLE, f"{container}: no answer"))

    def inspect(self, container: str) -> dict[str, str] | None:
        return {"Id": container} if self.slow else None

    @property
    def free(self) -> bool:
        """Whether the one user id can be had."""
        return not self.uids._held

    def remains(self, *, dead: bool, container: str | None = "c") -> Remains:
        return Remains("box", self.uid, container, dead=dead)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path / "locks")


@pytest.mark.parametrize("dead", [True, False])
def test_all_of_it_at_once(host: Host, dead: bool) -> None:
    host.leftovers.remove(host.remains(dead=dead))
    assert host.gone == ["container", "group", "folder"]
    assert host.free
    assert (len(host.leftovers), host.called) == (0, 0)


def test_where_nobody_saw_it_dead_everything_waits_for_the_container(host: Host) -> None:
    host.stuck = {"container"}
    host.leftovers.remove(host.remains(dead=False))
    host.leftovers.retry()
    assert host.gone == []
    assert not host.free
    assert (len(host.leftovers), host.called) == (1, 1)
    host.stuck, host.slow = set(), True
    host.leftovers.retry()
    assert host.gone == ["container"], "a removal that is under way is none yet"
    assert not host.free
    host.slow = False
    host.leftovers.retry()
    assert host.gone == ["container", "container", "group", "folder"]
    assert host.free
    assert len(host.leftovers) == 0


def test_the_folder_of_the_dead_goes_without_the_engine_and_once(host: Host) -> None:
    host.stuck = {"container"}
    host.leftovers.remove(host.remains(dead=True))
    assert host.gone == ["group", "folder"]
    assert host.free
    host.uid = host.uids.take()  # somebody else's from now on
    host.leftovers.retry()
    host.stuck = set()
    host.leftovers.retry()
    assert host.gone == ["group", "folder", "container"]
    assert not host.free
    assert len(host.leftovers) == 0


@pytest.mark.parametrize("stuck", ["group", "folder"])
def test_the_user_id_waits_for_cgroup_and_folder(host: Host, stuck: str) -> None:
    host.stuck = {stuck}
    host.leftovers.remove(host.remains(dead=True))
    host.leftovers.retry()
    assert not host.free
    assert (len(host.leftovers), host.called) == (1, 1)
    assert host.gone.count("container") == 1
    host.stuck = set()
    host.leftovers.retry()
    assert host.free
    assert len(host.leftovers) == 0


def test_where_no_container_was_asked_for_the_engine_is_not_either(host: Host) -> None:
    host.stuck = {"container"}
    host.leftovers.remove(host.remains(dead=False, container=None))
    assert host.free
    assert len(host.leftovers) == 0


def test_the_engine_may_also_refuse(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(container: str) -> None:
        raise EngineRefused("device or resource busy")

    monkeypatch.setattr(host, "remove", refused)
    host.leftovers.remove(host.remains(dead=False))
    assert len(host.leftovers) == 1
    assert not host.free


def test_what_nobody_expected_is_tried_again_and_keeps_nobody_else_waiting(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(container: str) -> None:
        raise ValueError("no JSON")

    with monkeypatch.context() as patch:
        patch.setattr(host, "remove", broken)
        with pytest.raises(ValueError, match="no JSON"):
            host.leftovers.remove(host.remains(dead=False))
        assert host.called == 1
        host.leftovers.remove(Remains("other", None, None))
        host.leftovers.retry()
        assert len(host.leftovers) == 1
        assert not host.free
    host.leftovers.retry()
    assert host.free


def test_of_what_is_released_only_the_container_waits_and_a_problem_with_it_is_told_once(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(module.log, "warning", lambda event, **_: told.append(event))
    host.leftovers.release(host.remains(dead=True))
    assert (host.gone, host.free) == (["group", "folder"], True)
    assert (len(host.leftovers), host.called, told) == (1, 1, []), "nothing went wrong"
    host.stuck = {"container"}
    host.leftovers.retry()
    host.leftovers.retry()
    assert told == ["sandbox_not_removed_yet"]
    host.stuck = set()
    host.leftovers.retry()
    assert (host.gone, len(host.leftovers)) == (["group", "folder", "container"], 0)
