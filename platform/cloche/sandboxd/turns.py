"""Who comes first of the jobs that ask a host for sandboxes: one rule for both isolation levels."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterable
from typing import Protocol, TypeVar

_MAX_OWNERS = 1_024


class Request(Protocol):
    """One job's. ``owner``: its worker. ``number``: from :meth:`Turns.number`, in the order of asking."""

    @property
    def owner(self) -> str: ...
    @property
    def priority(self) -> int: ...
    @property
    def number(self) -> int: ...


R = TypeVar("R", bound=Request)


class Turns:
    """The higher priority first, then the owner who has waited longest for its turn, then who asked first.

    Guarded by its keeper's lock, but for ``number``, which any thread may call at any time.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._last: OrderedDict[str, int] = OrderedDict()  # by owner: when it was served last

    def number(self) -> int:
        """For a new request."""
        return next(self._numbers)

    def first(self, requests: Iterable[R]) -> R | None:
        """Who is to be served next; None when nobody asks."""
        return min(requests, key=self._order, default=None)

    def last(self, requests: Iterable[R]) -> R | None:
        """Who has to give way when there are too many; None when nobody asks."""
        return max(requests, key=self._order, default=None)

    def served(self, request: Request) -> None:
        """It got one: its owner's next turn comes after everybody else's of the same priority."""
        self._last[request.owner] = self.number()
        self._last.move_to_end(request.owner)
        while len(self._last) > _MAX_OWNERS:
            self._last.popitem(last=False)

    def _order(self, request: Request) -> tuple[int, int, int]:
        return (-request.priority, self._last.get(request.owner, -1), request.number)
