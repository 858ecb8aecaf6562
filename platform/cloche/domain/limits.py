"""Limits of one attempt, their units, and how a plugin's wishes meet the platform's ceilings."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cloche.units import parse_size as parse_size

MAX_LOCKS = 1_000  # locks on files of one sandbox at once; SQLite holds three for each connection


@dataclass(frozen=True)
class Limits:
    """What one attempt may use. Bytes, milliseconds, CPUs; counts where nothing else is said."""

    cpu: float = 1.0
    memory: int = 256 << 20
    pids: int = 64
    time_ms: int = 60_000
    output: int = 64 << 20
    output_files: int = 1_000
    tmp: int = 64 << 20
    shm: int = 16 << 20
    nofile: int = 1_024
    log: int = 1 << 20
    result: int = 1 << 20

    def to_dict(self) -> dict[str, float | int]:
        return dict(vars(self))


CEILINGS = Limits(
    cpu=64.0,
    memory=64 << 30,
    pids=4_096,
    time_ms=24 * 3_600_000,
    output=2 << 30,
    output_files=10_000,
    tmp=1 << 30,
    shm=16 << 20,
    nofile=65_536,
    log=16 << 20,
    result=4 << 20,
)
FLOORS = Limits(
    cpu=0.05,
    memory=32 << 20,
    pids=8,
    time_ms=100,
    output=4_096,
    output_files=1,
    tmp=1 << 20,
    shm=0,
    nofile=32,
    log=0,
    result=1,
)


def watched_apart(limits: Limits) -> Limits:
    """The limits a sandbox is made with; those that the worker alone watches over (time, log, result) are at their floors."""
    return replace(limits, time_ms=FLOORS.time_ms, log=FLOORS.log, result=FLOORS.result)


def capped(asked: Limits, ceilings: Limits = CEILINGS) -> Limits:
    """The asked limits, none above its ceiling."""
    return replace(asked, **{k: min(v, getattr(ceilings, k)) for k, v in asked.to_dict().items()})


def violations(limits: Limits, ceilings: Limits = CEILINGS) -> list[str]:
    """One sentence for each limit outside what the platform allows. Empty: all is well."""
    found = []
    for name, value in limits.to_dict().items():
        low, high = getattr(FLOORS, name), getattr(ceilings, name)
        if not low <= value <= high:
            found.append(f"{name} is {value}, and must lie between {low} and {high}")
    return found
