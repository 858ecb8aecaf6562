"""Permits for requests: so many per window, taken several at a time, so that most requests ask nobody.

The rule is GCRA: a key has a moment up to which what was taken is paid for; it moves on by one interval with each permit and may lie at most a
window ahead. There is no edge of a window at which twice as much passes, and a key is one number that goes by itself.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cloche.clock import now_ms
from cloche.errors import SettingsError, Unavailable

_TIMEOUT_S = 0.25  # a request waits no longer for this: the process then counts by itself
_PREFIX = "{cloche}:rate:"
_MAX_KEYS = 20_000  # kept in memory; beyond it the one unused for longest is forgotten
# For each key its limit, its window in ms and how many permits are wanted at most; the answer has for each how many were given, how many are
# left, and after how many ms there is one again (0: now).
_TAKE = """
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + tonumber(t[2]) / 1000
local out = {}
for i, key in ipairs(KEYS) do
  local limit, window, wanted = tonumber(ARGV[3 * i - 2]), tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i])
  local step = window / limit
  local paid = math.max(now, math.min(tonumber(redis.call('GET', key) or 0), now + window))
  local free = math.floor((now + window - paid) / step + 0.000001)
  local given = math.min(free, wanted)
  if given > 0 then
    paid = paid + given * step
    redis.call('SET', key, string.format('%.3f', paid), 'PX', math.ceil(paid - now) + 1)
  end
  out[3 * i - 2] = given
  out[3 * i - 1] = free - given
  out[3 * i] = free > 0 and 0 or math.ceil(paid + step - window - now)
end
return out
"""


@dataclass(frozen=True)
class Ask:
    """``limit`` permits in ``window_ms`` for ``key``; ``wanted``: how many to take at once at most."""

    key: str
    limit: int
    window_ms: int
    wanted: int


@dataclass(frozen=True)
class Given:
    """``left``: how many there are still to be had. ``wait_ms``: until there is one again, when none was given."""

    permits: int
    left: int
    wait_ms: int


class Permits(Protocol):
    """Any thread may ask. Several processes that share one are bounded together."""

    def take(self, asks: Sequence[Ask]) -> Sequence[Given]:
        """One answer for each.

        Raises:
            Unavailable: nobody can be asked.
        """
        ...

    def close(self) -> None: ...


class MemoryPermits:
    """Counts in this process. ``share`` of each limit is what it gives: 0.25 is a quarter."""

    def __init__(self, share: float = 1.0, clock: Callable[[], float] = now_ms) -> None:
        self._share = share
        self._clock = clock
        self._paid: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, asks: Sequence[Ask]) -> Sequence[Given]:
        with self._lock:
            return [self._one(ask) for ask in asks]

    def close(self) -> None:
        pass

    def _one(self, ask: Ask) -> Given:
        now, limit = float(self._clock()), max(1, int(ask.limit * self._share))
        step = ask.window_ms / limit
        paid = max(now, min(self._paid.get(ask.key, 0.0), now + ask.window_ms))
        free = int((now + ask.window_ms - paid) / step + 1e-6)
        given = min(free, ask.wanted)
        if given:
            self._paid[ask.key] = paid = paid + given * step
            self._paid.move_to_end(ask.key)
            if len(self._paid) > _MAX_KEYS:
                self._paid.popitem(last=False)
        wait = 0 if free else -int(-(paid + step - ask.window_ms - now) // 1)
        return Given(given, free - given, wait)


class RedisPermits:
    """Counts in Redis, for all processes together. Its connections are its own: they give up sooner than the broker's."""

    def __init__(self, url: str) -> None:
        try:
            self._client: Any = redis.Redis.from_url(
                url,
                decode_responses=True,
                socket_timeout=_TIMEOUT_S,
                socket_connect_timeout=_TIMEOUT_S,
                retry=Retry(NoBackoff(), 0),
            )
        except ValueError as error:
            raise SettingsError(f"redis.url: {error}") from None
        self._take = self._client.register_script(_TAKE)

    def take(self, asks: Sequence[Ask]) -> Sequence[Given]:
        arguments = [value for ask in asks for value in (ask.limit, ask.window_ms, ask.wanted)]
        try:
            found = self._take(keys=[_PREFIX + ask.key for ask in asks], args=arguments)
        except (redis.RedisError, OSError) as error:
            raise Unavailable(f"Redis does not answer: {type(error).__name__}.") from None
        parts = [iter(found)] * 3
        return [Given(int(given), int(left), int(wait)) for given, left, wait in zip(*parts, strict=True)]

    def close(self) -> None:
        self._client.close()
