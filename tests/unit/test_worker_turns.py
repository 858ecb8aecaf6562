"""A worker's queues take turns, and all of them are asked at once."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cloche.config import WorkerSettings, load
from cloche.domain.jobs import QUEUES
from cloche.domain.queues import is_name
from cloche.errors import SettingsError
from cloche.queueing.broker import HOLD_MS, Ready, Taken
from cloche.queueing.memory_broker import MemoryBroker
from cloche.worker.turns import Turns
from tests.support.queues import make_whole


class Asked(MemoryBroker):
    """Notes in which order the queues were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def take(self, queues: Sequence[str], count: int, hold_ms: int = HOLD_MS) -> Sequence[Taken]:
        self.asked.append("".join(queues))
        return super().take(queues, count, hold_ms)


@pytest.fixture
def broker() -> Asked:
    made = Asked()
    make_whole(made, queues=("a", "b", "c"))
    return made


def names(taken: Sequence[Taken]) -> list[str]:
    return [one.job_id for one in taken]


def test_a_queue_that_is_always_full_starves_no_other(broker: Asked) -> None:
    broker.push([Ready(f"{name}{n}", name, "t", n) for name in "ab" for n in range(4)])
    turns = Turns(("a", "b", "c"))
    assert [names(turns.take(broker, 1)) for _ in range(6)] == [[f"{name}{n}"] for n in range(3) for name in ("a", "b")]


def test_one_call_serves_all_queues_and_the_latest_served_comes_last_the_next_time(broker: Asked) -> None:
    broker.push([Ready(f"{name}{n}", name, "t", n) for name in "abc" for n in range(4)])
    turns = Turns(("a", "b", "c"))
    assert names(turns.take(broker, 4)) == ["a0", "b0", "c0", "a1"]
    assert names(turns.take(broker, 4)) == ["b1", "c1", "a2", "b2"]
    assert broker.asked == ["abc", "bca"]


def test_nothing_is_there_when_all_are_empty(broker: Asked) -> None:
    turns = Turns(("a", "b"))
    assert list(turns.take(broker, 1)) == []
    broker.push([Ready("b0", "b", "t", 0)])
    assert names(turns.take(broker, 1)) == ["b0"]


def test_a_queue_that_nobody_has_created_is_empty(broker: Asked) -> None:
    broker.push([Ready("x0", "x", "t", 0), Ready("a0", "a", "t", 0)])
    turns = Turns(("x", "a"))
    assert names(turns.take(broker, 9)) == ["a0"]


def test_a_worker_has_a_queue() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Turns(())


def test_the_settings_take_any_names_of_queues_and_not_too_many(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    assert WorkerSettings().queue_names == QUEUES
    for right in ("fast", "x" * 64, "a-b_c9"):
        assert is_name(right)
        assert load(worker={"queues": f"{right} sensitive"}).worker.queue_names == (right, "sensitive")
    for wrong in ("Fast", "9", "a.b", "a:b", "ü", "x" * 65, "-a", "{a}"):
        assert not is_name(wrong)
        with pytest.raises(SettingsError, match=r"worker\.queues"):
            load(worker={"queues": wrong})
    for wrong in ("", "default,default", " ".join(f"q{n}" for n in range(65))):
        with pytest.raises(SettingsError, match=r"worker\.queues"):
            load(worker={"queues": wrong})
    assert not is_name("a\n")
