"""One budget for all sandboxes that wait, and what each kind of them may take of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cloche.host_settings import PoolSettings
from cloche.isolation.cell_spec import key_of
from cloche.sandboxd.budget import Budget
from cloche.sandboxd.cells.home import Home, greediest
from cloche.sandboxd.cells.slot import State
from cloche.sandboxd.supply import budget
from tests.unit.test_cells_pool import SPEC

IMAGE = f"sha256:{'a' * 64}"


def test_one_kind_may_have_all_while_the_other_needs_nothing() -> None:
    pools, cells = (shares := Budget(100)).share(), shares.share()
    assert pools.fits(60, 40)
    assert not pools.fits(60, 41)
    assert cells.fits(0, 40), "what was asked for and not made is nobody's"


@pytest.mark.parametrize(("mine", "theirs"), [(100, 1), (80, 30), (51, 50), (70, 70)])
def test_beyond_the_budget_whoever_has_more_than_half_is_over(mine: int, theirs: int) -> None:
    whole = Budget(100)
    pools, cells = whole.share(), whole.share()
    pools.fits(mine)
    assert cells.fits(theirs) == (theirs <= 50), "nobody is kept out of half of it"
    assert not pools.fits(mine)
    assert pools.most() == max(50, 100 - theirs)
    assert pools.fits(max(50, 100 - theirs))


def test_who_is_alone_has_all() -> None:
    alone = Budget(100).share()
    assert alone.fits(100)
    assert not alone.fits(100, 1)


def test_without_a_setting_it_is_an_eighth_of_the_host() -> None:
    assert budget(PoolSettings(memory=7)).size == 7
    meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    assert budget(PoolSettings()).size == pytest.approx(int(meminfo["MemTotal"].split()[0]) * 1024 / 8, rel=0.01)


def home(bundle: str, *sizes: int) -> Any:
    slots = [SimpleNamespace(memory_waiting=lambda size=size: size, state=State.READY) for size in sizes]
    made = Home(key_of(replace(SPEC, bundle=bundle * 64), IMAGE))
    made.container = SimpleNamespace(slots=slots)  # type: ignore[assignment]
    return made


def test_cells_give_up_what_the_pools_have_taken_before_them() -> None:
    whole = Budget(100)
    pools, cells = whole.share(), whole.share()
    small, large = home("a", 20, 10), home("b", 40)
    assert greediest([small, large], cells) is None
    assert pools.fits(30)
    assert greediest([small, large], cells) is None
    assert pools.fits(31), "less than half is nobody's to take away"
    assert greediest([small, large], cells) is large, "who takes most goes first"
    large.retired = "given up"
    assert greediest([small, large], cells) is None
    assert pools.fits(31, 39), "what cells gave up is the pools'"
