"""How many of something happened within the last minute, and when there is room for more. Pure; Redis has the same in Lua (queueing/pace.py)."""

from __future__ import annotations

WINDOW_S = 60


class Window:
    """Counts by the second. What happened counts for at least a minute, and for less than a second more: never more than the limit in any
    minute. Not thread-safe."""

    def __init__(self) -> None:
        self._seconds: dict[int, int] = {}

    def wait_ms(self, count: int, limit: int, now_ms: int) -> int:
        """0 when ``count`` more fit into ``limit``, else after how long they will. ``count`` may not be more than ``limit``."""
        second = now_ms // 1000
        self._seconds = {at: number for at, number in self._seconds.items() if at >= second - WINDOW_S}
        over = sum(self._seconds.values()) + count - limit
        for at in sorted(self._seconds):
            if over <= 0:
                break
            over -= self._seconds[at]
            if over <= 0:
                return (at + WINDOW_S + 1) * 1000 - now_ms
        return 0

    def used(self) -> int:
        """As of the last :meth:`wait_ms`."""
        return sum(self._seconds.values())

    def add(self, count: int, now_ms: int) -> None:
        second = now_ms // 1000
        self._seconds[second] = self._seconds.get(second, 0) + count
