"""Limits of one attempt, their units, and how a plugin's wishes meet the platform's ceilings."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace

_SIZE = re.compile(r"^(\d{1,12})\s?(B|KB|MB|GB|KiB|MiB|GiB)?$")
# 1 MB is 1 MiB here, as it is for Docker's and systemd's own limits.
_FACTOR = {None: 1, "B": 1, "KB": 1 << 10, "KiB": 1 << 10, "MB": 1 << 20, "MiB": 1 << 20, "GB": 1 << 30, "GiB": 1 << 30}


def parse_size(value: str | int) -> int:
    """Bytes of ``"256MB"`` or a number of bytes.

    Raises:
        ValueError: neither.
    """
    if isinstance(value, bool):
        raise ValueError("a size is bytes or text such as '256MB'")
    if isinstance(value, int):
        if value < 0:
            raise ValueError("a size is not negative")
        return value
    match = _SIZE.match(value)
    if not match:
        raise ValueError(f"'{value[:40]}' is not a size: write '64MB', '2GB' or a number of bytes")
    return int(match[1]) * _FACTOR[match[2]]


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
        return asdict(self)


CEILINGS = Limits(
    cpu=64.0,
    memory=64 << 30,
    pids=4_096,
    time_ms=24 * 3_600_000,
    output=64 << 20,  # tmpfs only, until outputs have a disk-backed quota
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
