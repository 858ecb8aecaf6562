"""Jobs that ask for a cell, and which of them is first."""

from __future__ import annotations

from dataclasses import dataclass

from cloche.isolation.cell_spec import CellKey
from cloche.sandboxd.cells.home import Home
from cloche.sandboxd.turns import Turns


@dataclass(eq=False)
class Claim:
    """One job's. ``makes``: the container that its thread is making, if it is."""

    key: CellKey
    owner: str
    priority: int
    number: int
    makes: Home | None = None

    def is_away(self) -> bool:
        """Whether it could not take a cell now; those behind it need not wait for it."""
        return self.makes is not None and self.makes.container is None


class Line:
    """``join`` from any thread, without a lock; everything else under the pool's.

    A job joins before it waits for the lock. So whoever has the lock sees all that ask at once, and gives way to the first of them.
    """

    def __init__(self) -> None:
        self._turns = Turns()
        self._claims: list[Claim] = []

    def join(self, key: CellKey, owner: str, priority: int) -> Claim:
        """Leave it in any case, also when it is given up."""
        claim = Claim(key, owner, priority, self._turns.number())
        self._claims.append(claim)
        return claim

    def is_first(self, claim: Claim) -> bool:
        """Of all that want the same kind of cell, as :class:`Turns` has it."""
        if len(self._claims) == 1:
            return True
        return (
            self._turns.first(other for other in self._claims if other.key == claim.key and not other.is_away())
            is claim
        )

    def leave(self, claim: Claim, *, served: bool) -> bool:
        """Whether anybody is left, whose turn may have come. Nothing happens when it has left."""
        if claim in self._claims:
            self._claims.remove(claim)
            if served:
                self._turns.served(claim)
        return bool(self._claims)
