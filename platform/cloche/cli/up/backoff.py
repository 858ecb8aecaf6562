"""How long to wait before a process that died is started again."""

from __future__ import annotations

FIRST_S = 0.2
LONGEST_S = 30.0
STEADY_S = 20.0  # a process that lived this long has recovered: its next death is a first one again


class Backoff:
    """Doubles from 0.2 s to 30 s while deaths come quickly. Pure: the caller measures time."""

    def __init__(self) -> None:
        self._deaths = 0

    def after(self, lived_s: float) -> float:
        """Seconds to wait after a process that lived ``lived_s`` seconds."""
        if lived_s >= STEADY_S:
            self._deaths = 0
        delay = min(LONGEST_S, FIRST_S * 2 ** min(self._deaths, 16))
        self._deaths += 1
        return float(delay)
