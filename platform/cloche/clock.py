"""Time and identifiers.

Times inside Cloche are integers: milliseconds since 1970-01-01 UTC. They become RFC 3339 text with ``Z`` at the edges.
"""

from __future__ import annotations

import os
import re
import threading
import time
from datetime import UTC, datetime, timedelta

_LONGEST_MS = 36_500 * 86_400_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_SIMPLE = re.compile(r"^(\d{1,9}(?:\.\d{1,3})?)(ms|s|m|h|d)\Z")
_TIME = re.compile(r"^\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(?:\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)?\Z", re.ASCII)
_ISO = re.compile(r"^P(?:(\d{1,4})D)?(?:T(?:(\d{1,6})H)?(?:(\d{1,8})M)?(?:(\d{1,9}(?:\.\d{1,3})?)S)?)?\Z")


def now_ms() -> int:
    """Milliseconds since the epoch, by this machine's clock."""
    return time.time_ns() // 1_000_000


def to_rfc3339(ms: int | None) -> str | None:
    """``1700000000123`` → ``"2023-11-14T22:13:20.123Z"``; None stays None."""
    if ms is None:
        return None
    return f"{datetime.fromtimestamp(ms // 1000, UTC).isoformat()[:19]}.{ms % 1000:03d}Z"


def from_rfc3339(text: str) -> int:
    """Milliseconds of an RFC 3339 time.

    Raises:
        ValueError: the text is not a time, names no offset, or lies outside the years 1 to 9999 in UTC, where :func:`to_rfc3339` ends.
    """
    match = _TIME.match(text)
    if match is None:
        raise ValueError(f"'{text[:40]}' is not a time: write 2026-01-31T12:00:00Z")
    if match[1] is None:
        raise ValueError("a time needs an offset, such as 2026-01-31T12:00:00Z")
    try:
        moment = datetime.fromisoformat(text.upper()).astimezone(UTC)
    except OverflowError:
        raise ValueError(f"'{text}' is not a time in the years 1 to 9999 of UTC") from None
    except ValueError as error:
        raise ValueError(f"'{text}' is not a time: {error}") from None
    return (moment - _EPOCH) // timedelta(milliseconds=1)


def parse_duration(value: str | int | float) -> int:
    """Milliseconds of ``"5s"``, ``"1.5m"``, ``"PT5M"`` or a number of seconds.

    Raises:
        ValueError: none of these forms, negative, or not finite.
    """
    if isinstance(value, bool):
        raise ValueError("a duration is seconds or text such as '5s'")
    if isinstance(value, (int, float)):
        if not 0 <= value < 1e9:
            raise ValueError("a duration in seconds lies between 0 and 1e9")
        return int(value * 1000)
    if match := _SIMPLE.match(value):
        return _bounded(int(float(match[1]) * _UNITS_MS[match[2]]))
    match = _ISO.match(value)
    if match and any(match.groups()):
        days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
        return _bounded(int((((days * 24 + hours) * 60 + minutes) * 60 + seconds) * 1000))
    raise ValueError(f"'{value[:40]}' is not a duration: write '30s', '5m', '1h', 'PT5M' or a number of seconds")


def _bounded(ms: int) -> int:
    if ms > _LONGEST_MS:
        raise ValueError("a duration is at most 100 years")
    return ms


# A clock set back by more than this is followed, although ids of before sort after those of now: the audit trail is dated by its ids,
# and a record that stays in the future for as long as the clock was wrong is the worse of the two.
_FOLLOW_BACK_MS = 10_000
_last_tick = 0
_tick_lock = threading.Lock()


def uuid7() -> str:
    """A UUIDv7 (RFC 9562, method 3) as text: sorts by creation time, within a process strictly (until its clock is set back by
    more than ten seconds); 62 random bits.

    The 12 bits behind the millisecond hold its fraction, and one more than the last id's where the clock has not moved on.
    """
    global _last_tick
    ns = time.time_ns()
    tick = (ns // 1_000_000) << 12 | (ns % 1_000_000) * 4096 // 1_000_000
    with _tick_lock:
        if _last_tick - tick < _FOLLOW_BACK_MS << 12:
            tick = max(tick, _last_tick + 1)
        _last_tick = tick
    return _uuid7(tick)


def uuid7_at(us: int) -> str:
    """A UUIDv7 of another clock's moment, in microseconds since the epoch. Those of one moment are in no order."""
    return _uuid7((us // 1_000) << 12 | (us % 1_000) * 4096 // 1_000)


def _uuid7(tick: int) -> str:
    rand = int.from_bytes(os.urandom(8), "big") & ((1 << 62) - 1)
    value = (tick >> 12 & ((1 << 48) - 1)) << 80 | 0x7 << 76 | (tick & 0xFFF) << 64 | 0b10 << 62 | rand
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


_UUID = re.compile(r"^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\Z")


def uuid7_ms(text: str) -> int | None:
    """The milliseconds that a UUIDv7 begins with; None where the text is none."""
    return int(text[:8] + text[9:13], 16) if _UUID.match(text) else None


def uuid7_floor(text: str) -> str:
    """The least UUIDv7 of the same millisecond: nothing of the given one but when it was made."""
    return f"{text[:13]}-7000-8000-000000000000"


def is_uuid7(text: str) -> bool:
    """Whether the text is a UUIDv7 in its canonical lower-case form."""
    return _UUID.match(text) is not None
