"""What one sandbox's connections may cost."""

from __future__ import annotations

from dataclasses import dataclass

from cloche.host_settings import EgressSettings


@dataclass(frozen=True)
class Bounds:
    """``connections`` open at once, ``total`` in one attempt; ``max_bytes`` both ways together; seconds for the rest."""

    connections: int = 32
    total: int = 1_000
    max_bytes: int = 1 << 30
    idle_s: float = 60.0
    max_time_s: float = 3_600.0
    head_s: float = 10.0  # for a whole request
    resolve_s: float = 10.0
    connect_s: float = 10.0  # all of a name's addresses together

    @staticmethod
    def of(settings: EgressSettings) -> Bounds:
        return Bounds(
            connections=settings.connections,
            total=settings.connections_total,
            max_bytes=settings.max_bytes,
            idle_s=settings.idle / 1000,
            max_time_s=settings.max_time / 1000,
        )


class Budget:
    """Bytes left of one attempt, for all its connections."""

    def __init__(self, size: int) -> None:
        self._left = size

    def take(self, size: int) -> bool:
        """Whether so many were left; nothing is taken otherwise."""
        if size > self._left:
            return False
        self._left -= size
        return True
