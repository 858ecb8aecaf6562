"""The containers of cells in numbers, for operators. Nothing of any tenant is in them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cloche.isolation.cell_spec import CellKey
from cloche.sandboxd.cells.home import Home
from cloche.sandboxd.cells.preloaded import PreloadFailed
from cloche.sandboxd.cells.slot import State
from cloche.sandboxd.pool import Counts

_BACK_OFF_SECONDS = 30.0
_MOST_SECONDS = 1_800.0
_PRELOAD = "its preload failed"
MAX_BUNDLES = 64  # with counts that are kept after their last container went


def states(homes: Iterable[Home]) -> dict[str, int]:
    """``containers``, and slots by state."""
    homes = list(homes)
    found = {"containers": len(homes), **{str(state): 0 for state in State}}
    for home in homes:
        for slot in home.slots:
            found[str(slot.state)] += 1
    return found


@dataclass(frozen=True)
class _Problem:
    """``until``: monotonic seconds, after so many ``seconds`` of waiting; when it comes again soon, twice as many. ``kind``: what it is where ``why``
    may have the plugin's words."""

    until: float
    seconds: float
    why: str
    kind: str | None


class Problems:
    """Kinds of containers that could not be made, which for a while nobody tries again. Guarded by the pool's lock."""

    def __init__(self) -> None:
        self._found: dict[CellKey, _Problem] = {}

    def note(self, key: CellKey, error: Exception) -> None:
        of_plugin = isinstance(error, PreloadFailed)
        why = str(error) or type(error).__name__
        now = time.monotonic()
        kept = {other: problem for other, problem in self._found.items() if problem.until + problem.seconds > now}
        seconds = min(2 * kept[key].seconds, _MOST_SECONDS) if key in kept else _BACK_OFF_SECONDS
        self._found = kept | {key: _Problem(now + seconds, seconds, why, _PRELOAD if of_plugin else None)}

    def of(self, key: CellKey) -> str | None:
        """For the jobs of that kind."""
        return next((problem.why for found, problem in self._current() if found == key), None)

    def newest(self) -> str | None:
        """For the operator: nothing of a plugin's own words."""
        newest = max((problem for _, problem in self._current()), key=lambda problem: problem.until, default=None)
        return None if newest is None else newest.kind or newest.why

    def bundles(self) -> dict[str, str]:
        """In words that name nothing of the plugin's."""
        return {key.bundle: problem.kind or "no cell can be made" for key, problem in self._current()}

    def _current(self) -> list[tuple[CellKey, _Problem]]:
        now = time.monotonic()
        return [(key, problem) for key, problem in self._found.items() if problem.until > now]


class Tally:
    """Counts by bundle since sandboxd's start. Guarded by the pool's lock."""

    def __init__(self) -> None:
        self._counts: defaultdict[str, Counts] = defaultdict(Counts)

    def of(self, bundle: str) -> Counts:
        return self._counts[bundle]

    def forget(self, alive: Iterable[Home]) -> None:
        """Drop those of bundles without a container, when there are many."""
        if len(self._counts) > MAX_BUNDLES:
            kept = {home.key.bundle for home in alive}
            for bundle in self._counts.keys() - kept:
                del self._counts[bundle]

    def facts(self, homes: Iterable[Home], troubled: Mapping[str, str]) -> list[dict[str, object]]:
        """One item for each bundle, of the form of :meth:`cloche.sandboxd.pool.Pool.facts`. ``troubled``: bundles that cannot be had now."""
        homes = list(homes)
        bundles = dict.fromkeys([*(home.key.bundle for home in homes), *troubled])
        return [
            self._facts(bundle, [home for home in homes if home.key.bundle == bundle], troubled) for bundle in bundles
        ]

    def _facts(self, bundle: str, homes: list[Home], troubled: Mapping[str, str]) -> dict[str, object]:
        found, counts = states(homes), self.of(bundle)
        waiting = [slot for home in homes for slot in home.slots if slot.state == State.READY]
        return {
            "bundle": bundle,
            "warm": sum(slot.cell is not None for slot in waiting),
            "filling": found[State.PREPARING],
            "busy": found[State.BUSY],
            "hits": counts.hits,
            "cold_starts": counts.cold,
            "evictions": counts.evicted,
            "expired": counts.expired,
            "lost": counts.lost,
            "failures": counts.failed,
            "memory": sum(slot.group.group.memory_used() for slot in waiting),
            "last_error": troubled.get(bundle),
        }
