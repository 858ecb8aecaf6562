"""Which job gets the next cell: the rule itself, and the line of those that ask. tests/isolation has it with real cells."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest

from cloche.isolation.cell_spec import key_of
from cloche.sandboxd.cells.home import Home
from cloche.sandboxd.cells.line import Claim, Line
from cloche.sandboxd.turns import Turns
from tests.support.cells import SPEC

KEY = key_of(SPEC, "sha256:" + "1" * 64)
OTHER = replace(KEY, bundle="b" * 64)


@pytest.fixture
def line() -> Line:
    return Line()


def in_turn(line: Line, *claims: Claim) -> list[Claim]:
    """All of them, in the order in which they are served."""
    found: list[Claim] = []
    while left := [claim for claim in claims if claim not in found]:
        (first,) = [claim for claim in left if line.is_first(claim)]
        line.leave(first, served=True)
        found.append(first)
    return found


def test_the_higher_priority_is_first_then_who_asked_first(line: Line) -> None:
    low, high, middle, late = (line.join(KEY, "w1", priority) for priority in (2, 9, 5, 9))
    assert in_turn(line, low, high, middle, late) == [high, late, middle, low]


def test_owners_take_turns(line: Line) -> None:
    greedy = [line.join(KEY, "greedy", 5) for _ in range(3)]
    modest = [line.join(KEY, "modest", 5) for _ in range(2)]
    assert in_turn(line, *greedy, *modest) == [greedy[0], modest[0], greedy[1], modest[1], greedy[2]]
    assert in_turn(line, line.join(KEY, "greedy", 5))[0].owner == "greedy", (
        "alone, nobody has to wait for another's turn"
    )


def test_a_priority_counts_more_than_a_turn(line: Line) -> None:
    in_turn(line, line.join(KEY, "greedy", 5))
    modest, greedy = line.join(KEY, "modest", 5), line.join(KEY, "greedy", 6)
    assert in_turn(line, modest, greedy) == [greedy, modest]


def test_who_left_without_a_cell_had_no_turn(line: Line) -> None:
    unlucky = line.join(KEY, "w1", 5)
    assert not line.leave(unlucky, served=False)
    again, other = line.join(KEY, "w1", 5), line.join(KEY, "w2", 5)
    assert line.leave(unlucky, served=True), "and to leave once more changes nothing"
    assert in_turn(line, again, other) == [again, other]


def test_other_cells_have_a_line_of_their_own(line: Line) -> None:
    low, high = line.join(KEY, "w1", 1), line.join(OTHER, "w1", 9)
    assert line.is_first(low)
    assert line.is_first(high)


def test_nobody_waits_for_one_that_makes_a_container(line: Line) -> None:
    high, low = line.join(KEY, "w1", 9), line.join(KEY, "w1", 1)
    high.makes = Home(KEY)
    assert line.is_first(low)
    container: Any = object()
    high.makes.container = container
    assert not line.is_first(low), "it is there: its maker has its turn again"


def test_many_may_join_at_once(line: Line) -> None:
    claims: list[Claim] = []
    gate = threading.Barrier(8)

    def ask(priority: int) -> None:
        gate.wait()
        claims.extend(line.join(KEY, "w1", priority) for _ in range(10))

    threads = [threading.Thread(target=ask, args=(priority,)) for priority in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({claim.number for claim in claims}) == 80
    served = [claim.priority for claim in in_turn(line, *claims)]
    assert served == sorted(served, reverse=True)


def test_only_so_many_owners_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloche.sandboxd.turns._MAX_OWNERS", 2)
    turns = Turns()
    for owner in ("w1", "w2", "w3"):
        turns.served(Claim(KEY, owner, 5, turns.number()))
    late, early = Claim(KEY, "w3", 5, turns.number()), Claim(KEY, "w1", 5, turns.number())
    assert turns.first([late, early]) is early
    assert turns.last([late, early]) is late
    assert turns.first(list[Claim]()) is None
