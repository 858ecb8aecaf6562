"""The memory of all sandboxes that wait for a job: one budget, shared by whoever keeps such sandboxes."""

from __future__ import annotations

import threading


class Budget:
    """Bytes for all who hold a share, together. Thread-safe; calls nothing, so that any lock may be held."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._lock = threading.Lock()
        self._used: dict[Share, int] = {}

    def share(self) -> Share:
        """For one more kind of sandbox. All are taken before the first is used."""
        share = Share(self)
        with self._lock:
            self._used[share] = 0
        return share

    def _fits(self, share: Share, used: int, more: int) -> bool:
        with self._lock:
            self._used[share] = used
            return used + more <= self._most(share)

    def _most(self, share: Share) -> int:
        """With the lock held."""
        left = self.size - sum(self._used.values()) + self._used[share]
        return max(left, self.size // len(self._used))


class Share:
    """What the others leave, and an equal part at any rate.

    When all of them together take more than there is, somebody takes more than an equal part: whoever does gives up what is over. So one kind may
    have everything while the others need nothing, and none can keep another one out.
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget

    def fits(self, used: int, more: int = 0) -> bool:
        """Whether the bytes that this kind uses now, and so many more, are within its share. The others count with ``used`` from now on."""
        return self._budget._fits(self, used, more)

    def most(self) -> int:
        """The bytes that this kind may use now, all in all."""
        with self._budget._lock:
            return self._budget._most(self)
