"""How long to wait before a process that died is started again."""

from __future__ import annotations

FIRST_S = 0.2
QUICK = 3  # deaths in a row that cost no more than that: a few accidents are not a process that cannot live
LONGEST_S = 30.0
STEADY_S = 5.0  # a process that lived this long has recovered: its next death is a first one again, and starting it costs little


class Backoff:
    """0.2 s for the first deaths, then doubling up to 30 s while deaths come quickly. Pure: the caller measures time."""

    def __init__(self) -> None:
        self._deaths = 0

    def after(self, lived_s: float) -> float:
        """Seconds to wait after a process that lived ``lived_s`` seconds."""
        if lived_s >= STEADY_S:
            self._deaths = 0
        delay = min(LONGEST_S, FIRST_S * 2 ** min(max(self._deaths - QUICK + 1, 0), 16))
        self._deaths += 1
        return float(delay)
