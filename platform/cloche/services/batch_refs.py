"""Jobs of a batch that depend on others of it: named by ``ref`` in the request, by their ids once they are accepted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cloche.clock import uuid7
from cloche.domain.dependencies import MAX_BATCH_UPSTREAMS, circle, ordered
from cloche.errors import Invalid, Problem

MAX_PROBLEMS = 100  # told of one batch; checking ends there
_SHOWN = 10  # jobs of a circle that are named in words; each has a pointer


@dataclass(frozen=True)
class Plan:
    """In which order a batch's jobs are accepted: upstreams first, otherwise as in the request.

    ``numbers``: their places in the request. ``ids`` and ``bodies``: in the order of ``numbers``; ids grow, and stand for refs in ``depends_on``.
    ``refs``: the id of each job that has one.
    """

    numbers: Sequence[int]
    ids: Sequence[str]
    bodies: Sequence[Mapping[str, Any]]
    refs: Mapping[str, str]


def planned(bodies: Sequence[Mapping[str, Any]]) -> Plan:
    """
    Raises:
        Invalid: a ref is given twice, or is nobody's; jobs wait for themselves or in a circle; or there are too many dependencies.
    """
    if sum(len(body.get("depends_on") or ()) for body in bodies) > MAX_BATCH_UPSTREAMS:
        detail = f"have more than {MAX_BATCH_UPSTREAMS} dependencies together; send several batches"
        raise _refused([Problem("/jobs", detail)])
    places, problems = _places(bodies)
    upstreams, found = _upstreams(bodies, places)
    problems += found
    if problems:
        raise _refused(problems)
    if ring := circle(upstreams):
        raise _refused(_circle(bodies, places, ring))
    numbers = ordered(upstreams)
    ids = {number: uuid7() for number in numbers}
    refs = {ref: ids[number] for ref, number in places.items()}
    return Plan(numbers, list(ids.values()), [_named(bodies[number], refs) for number in numbers], refs)


def _places(bodies: Sequence[Mapping[str, Any]]) -> tuple[dict[str, int], list[Problem]]:
    """Which job has which ref."""
    places: dict[str, int] = {}
    problems = []
    for number, body in enumerate(bodies):
        ref = body.get("ref")
        if ref is None:
            continue
        if ref in places:
            problems.append(
                Problem(f"/jobs/{number}/ref", f"is the ref of /jobs/{places[ref]} too; each needs its own")
            )
        else:
            places[ref] = number
    return places, problems


def _upstreams(bodies: Sequence[Mapping[str, Any]], places: Mapping[str, int]) -> tuple[list[list[int]], list[Problem]]:
    """For each job the places of those that it names by ref."""
    upstreams: list[list[int]] = []
    problems = []
    for number, body in enumerate(bodies):
        mine: list[int] = []
        for n, one in _asked(body):
            place, pointer = places.get(one), f"/jobs/{number}/depends_on/{n}"
            if place is None:
                problems.append(Problem(f"{pointer}/ref", "no job of this batch has this ref"))
            elif place == number:
                problems.append(Problem(pointer, "a job cannot wait for itself"))
            else:
                mine.append(place)
        upstreams.append(mine)
    return upstreams, problems


def _circle(bodies: Sequence[Mapping[str, Any]], places: Mapping[str, int], ring: Sequence[int]) -> list[Problem]:
    """A problem at each step of the circle."""
    shown = [str(bodies[number]["ref"]) for number in ring[:_SHOWN]]
    way = " → ".join([*shown, *(["…"] if len(ring) > _SHOWN else []), shown[0]])
    problems = []
    for number, following in zip(ring, [*ring[1:], ring[0]], strict=True):
        n = next(n for n, one in _asked(bodies[number]) if places[one] == following)
        problems.append(Problem(f"/jobs/{number}/depends_on/{n}", f"these jobs wait for each other: {way}"))
    return problems


def _asked(body: Mapping[str, Any]) -> list[tuple[int, str]]:
    """The refs that a job names, each with its place in ``depends_on``."""
    return [(n, one["ref"]) for n, one in enumerate(body.get("depends_on") or ()) if isinstance(one, Mapping)]


def _named(body: Mapping[str, Any], refs: Mapping[str, str]) -> Mapping[str, Any]:
    if not body.get("depends_on"):
        return body
    return {**body, "depends_on": [refs[one["ref"]] if isinstance(one, Mapping) else one for one in body["depends_on"]]}


def _refused(problems: Sequence[Problem]) -> Invalid:
    return Invalid("the batch was not accepted; nothing was stored", problems=problems[:MAX_PROBLEMS])
