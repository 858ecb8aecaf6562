"""Failed sign-ins of this process, counted in memory: an account and address that fail too often have to wait."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable

from cloche.clock import now_ms
from cloche.errors import RateLimited

WINDOW_MS = 15 * 60_000
PER_ACCOUNT = 10  # failures of one account from one address in the window
PER_ADDRESS = 100  # failures from one address in the window, whatever the account
_MAX_KEYS = 20_000  # beyond it the longest unused key is forgotten, so memory stays flat


class Lockout:
    """Counts failures per (account, address) and per address. Safe from any thread; a restart forgets."""

    def __init__(self, clock: Callable[[], int] = now_ms) -> None:
        self._clock = clock
        self._failures: OrderedDict[tuple[str, str], deque[int]] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, account: str, address: str) -> None:
        """Call before a password is looked at.

        Raises:
            RateLimited: too many failures; it says when to try again.
        """
        with self._lock:
            for key, limit in self._keys(account, address):
                times = self._recent(key)
                if len(times) >= limit:
                    wait_ms = times[0] + WINDOW_MS - self._clock()
                    raise RateLimited(
                        "Too many failed sign-ins. Try again later.", retry_after=max(1, -(-wait_ms // 1000))
                    )

    def failed(self, account: str, address: str) -> None:
        """Count one failure."""
        with self._lock:
            for key, limit in self._keys(account, address):
                times = self._recent(key)
                times.append(self._clock())
                while len(times) > limit:
                    times.popleft()
                self._failures[key] = times
                self._failures.move_to_end(key)
            while len(self._failures) > _MAX_KEYS:
                self._failures.popitem(last=False)

    def succeeded(self, account: str, address: str) -> None:
        """Forget the account's failures from this address."""
        with self._lock:
            self._failures.pop((account, address), None)

    @staticmethod
    def _keys(account: str, address: str) -> tuple[tuple[tuple[str, str], int], ...]:
        return ((account, address), PER_ACCOUNT), (("", address), PER_ADDRESS)

    def _recent(self, key: tuple[str, str]) -> deque[int]:
        times = self._failures.get(key) or deque()
        oldest = self._clock() - WINDOW_MS
        while times and times[0] <= oldest:
            times.popleft()
        return times
