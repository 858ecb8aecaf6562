"""Who has the turn, who waits, and who is sent away."""

from __future__ import annotations

import threading

import pytest

from cloche.errors import Unavailable
from cloche.services import turns
from cloche.services.turns import Turns
from tests.support.stores import until


class Crowd:
    """Threads that want the turn, each told apart by its name; whoever has it keeps it until let go."""

    def __init__(self, guard: Turns) -> None:
        self.guard = guard
        self.order: list[str] = []
        self.refused: list[str] = []
        self._go = threading.Semaphore(0)
        self._threads: list[threading.Thread] = []

    def comes(self, place: str, name: str) -> None:
        before = self._settled()
        thread = threading.Thread(target=self._run, args=(place, name))
        thread.start()
        self._threads.append(thread)
        until(lambda: self._settled() > before, 5, f"{name} has its turn, waits or is refused")

    def lets_go(self) -> None:
        before = len(self.order)
        waiting = self._waiting()
        self._go.release()
        if waiting:
            until(lambda: len(self.order) > before, 5, "the next one has its turn")

    def ends(self) -> None:
        for _ in self._threads:
            self._go.release()
        for thread in self._threads:
            thread.join()

    def _run(self, place: str, name: str) -> None:
        try:
            with self.guard.turn(place):
                self.order.append(name)
                self._go.acquire()
        except Unavailable:
            self.refused.append(name)

    def _waiting(self) -> int:
        return sum(len(line) for line in self.guard._lines.values())

    def _settled(self) -> int:
        return len(self.order) + len(self.refused) + self._waiting()


@pytest.fixture
def crowd():
    made = Crowd(Turns(1, 4))
    yield made
    made.ends()


def test_places_take_turns(crowd):
    for name in ("a1", "a2", "a3", "b1"):
        crowd.comes(name[0], name)
    for _ in range(3):
        crowd.lets_go()
    assert crowd.order == ["a1", "a2", "b1", "a3"]


def test_more_than_may_wait_are_sent_away_at_once(crowd):
    for n in range(5):
        crowd.comes("a", f"a{n}")
    with pytest.raises(Unavailable) as caught, crowd.guard.turn("a"):
        pass
    assert caught.value.retry_after > 0
    assert crowd.order == ["a0"]


def test_who_floods_makes_room_for_others_until_all_have_as_much(crowd):
    for n in range(5):
        crowd.comes("a", f"a{n}")
    crowd.comes("b", "b1")
    crowd.comes("b", "b2")
    assert sorted(crowd.refused) == ["a3", "a4"]
    crowd.comes("b", "b3")
    assert "b3" in crowd.refused
    for _ in range(4):
        crowd.lets_go()
    assert crowd.order == ["a0", "a1", "b1", "a2", "b2"]


def test_who_waits_too_long_is_sent_away_and_leaves_its_place(crowd, monkeypatch):
    crowd.comes("a", "a1")
    monkeypatch.setattr(turns, "_PATIENCE_S", 0.01)
    with pytest.raises(Unavailable), crowd.guard.turn("b"):
        pass
    assert crowd.guard._lines == {}
    monkeypatch.undo()
    crowd.lets_go()
    with crowd.guard.turn("b"):
        pass


def test_a_failure_gives_the_turn_back():
    guard = Turns(1, 1)
    with pytest.raises(KeyError), guard.turn():
        raise KeyError
    with guard.turn():
        pass
