"""What a host's connections come to for each of many jobs that all want more of them."""

from __future__ import annotations

from typing import Any

import pytest

from cloche.egress.bounds import Bounds
from cloche.egress.grant import Shared
from tests.support.egress import Names, platform

EACH = Bounds().connections


def shared(places: int) -> Shared:
    return Shared(platform(), Bounds(), Names(), places)


def taken(host: Shared, job: Any, most: int = EACH) -> int:
    """How many one more job gets that wants as many as it may have."""
    return next((got for got in range(most) if not host.take(job)), most)


def test_as_many_jobs_as_could_fill_the_host_leave_some_to_fifty_more() -> None:
    host = shared(1_024)
    first = [taken(host, f"first-{number}") for number in range(1_024 // EACH)]
    assert first[:28] == [EACH] * 28, "all but an eighth of the host's are for whoever comes"
    later = [taken(host, f"later-{number}") for number in range(50)]
    assert first[28] == 5
    assert later[0] == 4
    assert host.places - host.open == 128 - sum(first[28:]) - sum(later) > 0
    assert min(later) >= 1
    assert [*first, *later] == sorted([*first, *later], reverse=True), "nobody has more for coming later"
    assert host.open == sum(first) + sum(later) <= host.places


def test_what_is_given_back_is_anybodys() -> None:
    host = shared(16)
    assert taken(host, "one") == 14
    assert taken(host, "two") == 1
    for _ in range(14):
        host.give_back("one")  # type: ignore[arg-type]
    assert host.open == 1
    assert taken(host, "two") == 13, "alone again: all but the eighth"


@pytest.mark.parametrize("jobs", range(1, 29))
def test_nobody_is_refused_while_more_than_an_eighth_is_free(jobs: int) -> None:
    host = shared(1_024)
    assert [taken(host, number) for number in range(jobs)] == [EACH] * jobs
    assert taken(host, "another") >= 5


@pytest.mark.parametrize("places", range(2, 40))
def test_one_job_never_has_the_last_one(places: int) -> None:
    host = shared(places)
    assert taken(host, "greedy", places) == places - max(1, places // 8)
    assert taken(host, "modest") >= 1


@pytest.mark.parametrize("places", [1, 2, 3, 8, 100])
def test_never_more_than_there_are_and_all_of_them_when_enough_ask(places: int) -> None:
    host = shared(places)
    assert sum(taken(host, number) for number in range(places + 5)) == places == host.open
    assert taken(host, "another") == 0
