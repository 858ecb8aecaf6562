"""Which containers of cells have to go although nothing happened to them."""

from __future__ import annotations

from collections.abc import Sequence

from cloche import logs
from cloche.sandboxd.cells.home import Bounds, Home, greediest
from cloche.sandboxd.cells.survey import Tally

log = logs.get(__name__)
_TOO_MUCH = "its cells take too much memory while they wait"


def retire_due(homes: Sequence[Home], bounds: Bounds, tally: Tally, now: float) -> None:
    """Retire those whose time has come, and those whose waiting cells take most, until the rest keeps within bounds. Under the pool's lock."""
    for home in homes:
        try:
            tally.of(home.key.bundle).expired += home.judge(bounds, now)
        except Exception:
            log.exception("cell_container_not_judged", bundle=home.key.bundle)
            home.retired = home.retired or "it cannot be judged"
    while (greedy := greediest(homes, bounds.memory)) is not None:
        log.warning("cells_given_up", bundle=greedy.key.bundle, reason=_TOO_MUCH)
        tally.of(greedy.key.bundle).evicted += 1
        greedy.give_up(_TOO_MUCH)
